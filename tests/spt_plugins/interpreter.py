"""What Triton's interpreter does wrong for bfloat16, put right.

It keeps bfloat16 as the 16 bits of an integer (NumPy has no such type). Up to 3.9 at least, its ``tl.dot``
multiplies those integers, and its cast from float32 truncates where GPUs round to nearest even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _widened(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _narrowed(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def mend_bfloat16() -> None:
    """Give the interpreter GPUs' arithmetic for ``tl.dot`` in bfloat16 and for casts to it; again is no harm."""
    if hasattr(InterpreterBuilder, "mended"):
        return
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a = TensorHandle(_widened(a.data), tl.float32)
            b = TensorHandle(_widened(b.data), tl.float32)
        return dot(self, a, b, *rest)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return TensorHandle(_narrowed(source.data).reshape(source.data.shape), tl.bfloat16)
        return cast(self, source, to)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.mended = True

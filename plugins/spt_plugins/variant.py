"""One compilable form of a kernel: what Triton compiles at first use, and what is compiled ahead of time to PTX.

Parameters of every kernel stand in one order: the operator's inputs, then sizes, then its outputs, then
compile-time constants. It is the order in which TensorRT hands over arguments (inputs, extra arguments, outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Triton's names of the dtypes that the kernels take.
TRITON_TYPES: Mapping[torch.dtype, str] = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}
FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32)

# Symbolic sizes bring their own: any function (a, b) -> ceil(a / b).
CeilDiv = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Variant:
    """A kernel with its types and compile-time constants filled in.

    Attributes:
        kernel: the ``triton.jit`` function.
        signature: parameter name to Triton type in the order of the parameters: ``*fp16``, ``i32``, ``constexpr``.
        constants: value of each parameter whose type is ``constexpr``.
        num_warps: warps of 32 threads a program.
        num_stages: depth of the software pipeline that loads tiles ahead.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """Readable and unique, for reports: kernel, dtypes of its pointers, constants."""
        types = [kind[1:] for kind in self.signature.values() if kind in _FLOAT_POINTERS]
        values = [f"{key.lower()}{value}" for key, value in self.constants.items()]
        return "-".join([self.kernel.__name__.removesuffix("_kernel"), *dict.fromkeys(types), *values])

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told beside types and constants, at first use and ahead of time."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def launch(self, grid: tuple[int, ...], *arguments: Any) -> None:
        """Run on the current stream of the tensors' device.

        Args:
            grid: numbers of programs.
            arguments: inputs, sizes and outputs in the order of the signature, tensors of one device.
        """
        if 0 in grid:  # nothing to do, and CUDA refuses an empty grid
            return
        # Triton launches on the current device, wherever the tensors are.
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            self.kernel[grid](*arguments, **self.constants, **self.options)


_FLOAT_POINTERS = tuple(f"*{TRITON_TYPES[dtype]}" for dtype in FLOAT_TYPES)


def pointer(dtype: torch.dtype) -> str:
    """Triton's name for a pointer to values of ``dtype``."""
    return f"*{TRITON_TYPES[dtype]}"


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; for positive integers."""
    return (a + b - 1) // b


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is not less than the positive ``n``."""
    return 1 << (n - 1).bit_length()

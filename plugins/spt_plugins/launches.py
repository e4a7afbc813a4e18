"""The launch of each operator: variant, grid and sizes, from the operator's own sizes.

Said once for the callers that bring their own way to launch: TensorRT's plugins, whose sizes are symbolic expressions
and whose grid TensorRT evaluates for each shape, and the CUDA driver.

A size that picks the form of a kernel must be a number at compile time: a ``usual`` one stands beside the exact one.
Every form gives the right answer for every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spt_plugins import packed_attention, packed_qkv, select_tokens, unpack_project
from spt_plugins.variant import CeilDiv, Variant, cdiv


@dataclass(frozen=True)
class Launch:
    """What to launch over how many blocks, with which sizes between the inputs and the outputs."""

    variant: Variant
    grid: tuple[Any, ...]  # blocks in x (y, z); plain or symbolic integers
    sizes: tuple[Any, ...]  # 32-bit integers, plain or symbolic


def for_select_tokens(images: Any, tokens: Any, *, usual_tokens: int, ceil_div: CeilDiv = cdiv) -> Launch:
    """``SelectTokens`` on logits of ``images`` x ``tokens``."""
    variant = select_tokens.variant(usual_tokens)
    return Launch(variant, select_tokens.grid(variant, images, tokens, ceil_div), (images, tokens))


def for_packed_qkv(
    slots: Any, *, dtype: torch.dtype, channels: int, usual_slots: int, ceil_div: CeilDiv = cdiv
) -> Launch:
    """``PackedQKV`` on a list of ``slots`` slots and ``channels`` channels of ``dtype``."""
    variant = packed_qkv.variant(dtype, channels, usual_slots)
    return Launch(variant, packed_qkv.grid(variant, slots, ceil_div), (slots,))


def for_packed_attention(
    slots: Any,
    images: Any,
    *,
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    heads: int,
    window: int,
    tokens: int,
    width: int,
    packing: str,
    scale: float = packed_attention.DEFAULT_SCALE,
    ceil_div: CeilDiv = cdiv,
) -> Launch:
    """``PackedAttention`` on ``slots`` slots of ``images`` images of ``tokens`` tokens in rows of ``width``."""
    variant = packed_attention.variant(dtype, heads, window, packing, bias_dtype, scale)
    grid = packed_attention.grid(variant, slots, images, tokens, ceil_div)
    return Launch(variant, grid, packed_attention.sizes(slots, tokens, width))


def for_unpack_project(
    slots: Any,
    rows: Any,
    *,
    dtype: torch.dtype,
    residual_dtype: torch.dtype,
    channels: int,
    usual_slots: int,
    ceil_div: CeilDiv = cdiv,
) -> Launch:
    """``UnpackProject`` of ``slots`` slots into ``rows`` = B*N tokens of ``channels`` channels."""
    variant = unpack_project.variant(dtype, channels, usual_slots, residual_dtype)
    return Launch(variant, unpack_project.grid(variant, slots, rows, ceil_div), (slots, rows))

"""``PackedQKV``: gather the kept tokens, multiply each by its gate, project to query, key and value.

    qkv[s] = (gate[t] * h[t]) W^T + b = gate[t] * (h[t] W^T) + b,  t = token_of_slot[s]

Source: arXiv 2410.23608, equations 5 and 6; meaning in `spt_deploy.model.reference`.

A matrix product whose rows are gathered while they are loaded, so that the packed h never exists in memory. The gate
scales the sums, which are float32, so that rows go from shared memory to the tensor cores as they are. The grid spans
every slot there could be; a tile that begins past the last kept token returns at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spt_plugins import checks, tiles
from spt_plugins.tiles import Tile, grouped_tile
from spt_plugins.variant import CeilDiv, Variant, cdiv, pointer


@triton.jit(do_not_specialize=["slots"])
def packed_qkv_kernel(
    h,
    gate,
    token_of_slot,
    weight,
    bias,
    slots,
    qkv,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    WIDTH: tl.constexpr = 3 * CHANNELS
    row_tile, column_tile = grouped_tile(tl.program_id(0), tl.cdiv(slots, BLOCK_M), tl.cdiv(WIDTH, BLOCK_N), GROUP)
    slot = row_tile * BLOCK_M
    if tl.load(token_of_slot + slot) < 0:
        return
    slot += tl.arange(0, BLOCK_M)
    token = tl.load(token_of_slot + slot, mask=slot < slots, other=-1)
    # Slots past the end read token 0 and the columns past the end another column: cheaper than masks in the loop.
    source = tl.maximum(token, 0)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    rows = h + source[:, None] * CHANNELS + inner[None, :]
    columns = weight + (column % WIDTH)[None, :] * CHANNELS + inner[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, CHANNELS, BLOCK_K):
        total = tl.dot(tl.load(rows + start), tl.load(columns + start), total, input_precision="ieee")
    total *= tl.load(gate + source)[:, None]
    inside = column < WIDTH
    total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    target = qkv + slot.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(target, total.to(qkv.dtype.element_ty), mask=(token >= 0)[:, None] & inside[None, :])


def variant(dtype: torch.dtype, channels: int, slots: int, tile: Tile | None = None) -> Variant:
    """The form for one width.

    Args:
        dtype: of h, weight, bias and qkv.
        channels: C.
        slots: about how many slots the list has; right for any number.
        tile: chosen by ``slots`` unless given.
    """
    tile = tile or tiles.choose(dtype, 3 * channels, slots)
    depth = min(tile.depth, tiles.largest_power_of_two_in(channels))
    return Variant(
        kernel=packed_qkv_kernel,
        signature={
            "h": pointer(dtype),
            "gate": "*fp32",
            "token_of_slot": "*i64",
            "weight": pointer(dtype),
            "bias": pointer(dtype),
            "slots": "i32",
            "qkv": pointer(dtype),
            "CHANNELS": "constexpr",
            "BLOCK_M": "constexpr",
            "BLOCK_N": "constexpr",
            "BLOCK_K": "constexpr",
            "GROUP": "constexpr",
        },
        constants={
            "CHANNELS": channels,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": depth,
            "GROUP": tiles.GROUP,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def grid(variant: Variant, slots: Any, cdiv: CeilDiv = cdiv) -> tuple[Any]:
    """Programs to launch for a list of ``slots`` slots, which may be symbolic."""
    constants = variant.constants
    columns = -(-3 * constants["CHANNELS"] // constants["BLOCK_N"])
    return (cdiv(slots, constants["BLOCK_M"]) * columns,)


def packed_qkv(h: Tensor, gate: Tensor, token_of_slot: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gather the kept tokens, multiply each by its gate, project.

    Args:
        h: B x N x C float16, bfloat16 or float32 (T), the normalised input of the block; C a multiple of 32.
        gate: B x N float32, sigmoid of the score.
        token_of_slot: S int64, -1 past the last kept token.
        weight: 3C x C T.
        bias: 3C T.

    Returns:
        S x 3C T: query, key and value, each heads x 32. Rows past the last kept token hold anything.

    Raises:
        UsageError: a shape or dtype is another.
    """
    checks.one_device(h=h, gate=gate, token_of_slot=token_of_slot, weight=weight, bias=bias)
    checks.dimensions("h", h, 3)
    dtype = checks.float_dtype("h", h)
    channels = checks.channels(h.shape[2])
    checks.same_dtype("gate", gate, torch.float32)
    checks.shape("gate", gate, (h.shape[0], h.shape[1]))
    checks.dimensions("token_of_slot", token_of_slot, 1)
    checks.same_dtype("token_of_slot", token_of_slot, torch.int64)
    slots = checks.slots(token_of_slot.shape[0])
    for name, parameter, sizes in (("weight", weight, (3 * channels, channels)), ("bias", bias, (3 * channels,))):
        checks.same_dtype(name, parameter, dtype)
        checks.shape(name, parameter, sizes)
    qkv = h.new_empty(slots, 3 * channels)
    form = variant(dtype, channels, slots)
    inputs = [tensor.contiguous() for tensor in (h, gate, token_of_slot, weight, bias)]
    form.launch(grid(form, slots), *inputs, slots, qkv)
    return qkv

"""``UnpackProject``: project the kept tokens and put each back in its place; all others pass unchanged.

    out[t] = residual[t] + o[s] W^T + b   where t = token_of_slot[s]
    out[t] = residual[t]                  where slot_of_token[t] = -1

Source: arXiv 2410.23608, "negative tokens are directly passed to the feedforward network"; meaning in
`spt_deploy.model.reference`.

One launch, two kinds of programs. The first take tiles of slots: a matrix product with dense rows, whose result is
scattered to its tokens. The others take tiles of tokens and copy the dropped ones. Every row of the output is
written once, by one kind or the other, and the work follows the number of kept tokens.
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


@triton.jit
def copy_dropped(
    slot_of_token, residual, out, tile, rows, CHANNELS: tl.constexpr, COPY: tl.constexpr, CHUNK: tl.constexpr
):
    """Copy what tile number ``tile`` of the tokens holds of dropped ones."""
    token = tile * COPY + tl.arange(0, COPY)
    slot = tl.load(slot_of_token + token, mask=token < rows, other=0)
    at = token.to(tl.int64)[:, None] * CHANNELS + tl.arange(0, CHUNK)[None, :]
    for start in tl.static_range(0, CHANNELS, CHUNK):
        value = tl.load(residual + at + start, mask=(slot < 0)[:, None])
        tl.store(out + at + start, value, mask=(slot < 0)[:, None])


@triton.jit(do_not_specialize=["slots", "rows"])
def unpack_project_kernel(
    o,
    token_of_slot,
    slot_of_token,
    residual,
    weight,
    bias,
    slots,
    rows,
    out,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    COPY: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row_tiles = tl.cdiv(slots, BLOCK_M)
    column_tiles = tl.cdiv(CHANNELS, BLOCK_N)
    program = tl.program_id(0)
    if program >= row_tiles * column_tiles:
        copy_dropped(slot_of_token, residual, out, program - row_tiles * column_tiles, rows, CHANNELS, COPY, CHUNK)
        return

    row_tile, column_tile = grouped_tile(program, row_tiles, column_tiles, GROUP)
    slot = row_tile * BLOCK_M
    if tl.load(token_of_slot + slot) < 0:
        return
    slot += tl.arange(0, BLOCK_M)
    token = tl.load(token_of_slot + slot, mask=slot < slots, other=-1)
    kept = token >= 0
    # Rows past the end read row 0 and the columns past the end another column: cheaper than masks in the loop.
    source = tl.where(kept, slot, 0).to(tl.int64)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    left = o + source[:, None] * CHANNELS + inner[None, :]
    right = weight + (column % CHANNELS)[None, :] * CHANNELS + inner[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, CHANNELS, BLOCK_K):
        total = tl.dot(tl.load(left + start), tl.load(right + start), total, input_precision="ieee")
    inside = column < CHANNELS
    total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = token[:, None] * CHANNELS + column[None, :]
    mask = kept[:, None] & inside[None, :]
    total += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


# Tokens of a copying program, and channels that it moves at a time, at most.
COPY, CHUNK = 32, 128


def variant(
    dtype: torch.dtype,
    channels: int,
    slots: int,
    residual_dtype: torch.dtype | None = None,
    tile: Tile | None = None,
) -> Variant:
    """The form for one width.

    Args:
        dtype: of o, weight and bias.
        channels: C.
        slots: about how many slots the list has; right for any number.
        residual_dtype: of the residual and the output; ``dtype`` unless given.
        tile: chosen by ``slots`` unless given.
    """
    tile = tile or tiles.choose(dtype, channels, slots)
    depth = min(tile.depth, tiles.largest_power_of_two_in(channels))
    return Variant(
        kernel=unpack_project_kernel,
        signature={
            "o": pointer(dtype),
            "token_of_slot": "*i64",
            "slot_of_token": "*i64",
            "residual": pointer(residual_dtype or dtype),
            "weight": pointer(dtype),
            "bias": pointer(dtype),
            "slots": "i32",
            "rows": "i32",
            "out": pointer(residual_dtype or dtype),
            "CHANNELS": "constexpr",
            "BLOCK_M": "constexpr",
            "BLOCK_N": "constexpr",
            "BLOCK_K": "constexpr",
            "GROUP": "constexpr",
            "COPY": "constexpr",
            "CHUNK": "constexpr",
        },
        constants={
            "CHANNELS": channels,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": depth,
            "GROUP": tiles.GROUP,
            "COPY": COPY,
            "CHUNK": min(CHUNK, tiles.largest_power_of_two_in(channels)),
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def grid(variant: Variant, slots: Any, rows: Any, cdiv: CeilDiv = cdiv) -> tuple[Any]:
    """Programs to launch for ``slots`` slots and ``rows`` = B*N tokens; sizes may be symbolic."""
    constants = variant.constants
    columns = -(-constants["CHANNELS"] // constants["BLOCK_N"])
    return (cdiv(slots, constants["BLOCK_M"]) * columns + cdiv(rows, constants["COPY"]),)


def unpack_project(
    o: Tensor, token_of_slot: Tensor, slot_of_token: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Project the kept tokens and add each to its place in the residual; dropped tokens pass unchanged.

    Args:
        o: S x C float16, bfloat16 or float32 (T); C a multiple of 32.
        token_of_slot: S int64, -1 past the last kept token.
        slot_of_token: B x N int64, -1 for a dropped token.
        residual: B x N x C float16, bfloat16 or float32, not necessarily T.
        weight: C x C T.
        bias: C T.

    Returns:
        B x N x C in the dtype of ``residual``, with its strides if it is dense.

    Raises:
        UsageError: a shape or dtype is another.
    """
    lists = {"token_of_slot": token_of_slot, "slot_of_token": slot_of_token}
    checks.one_device(o=o, residual=residual, weight=weight, bias=bias, **lists)
    checks.dimensions("residual", residual, 3)
    dtype = checks.float_dtype("o", o)
    residual_dtype = checks.float_dtype("residual", residual)
    images, tokens, _ = residual.shape
    channels = checks.channels(residual.shape[2])
    checks.dimensions("token_of_slot", token_of_slot, 1)
    slots = checks.slots(token_of_slot.shape[0])
    checks.slots(images * tokens)
    checks.shape("o", o, (slots, channels))
    checks.shape("slot_of_token", slot_of_token, (images, tokens))
    for name, index in lists.items():
        checks.same_dtype(name, index, torch.int64)
    for name, parameter, sizes in (("weight", weight, (channels, channels)), ("bias", bias, (channels,))):
        checks.same_dtype(name, parameter, dtype)
        checks.shape(name, parameter, sizes)
    form = variant(dtype, channels, slots, residual_dtype)
    inputs = [tensor.contiguous() for tensor in (o, token_of_slot, slot_of_token, residual, weight, bias)]
    promised = torch.empty_like(residual)  # with the strides of a dense residual, as torch.compile was told
    out = promised if promised.is_contiguous() else promised.new_empty(residual.shape)
    form.launch(grid(form, slots, images * tokens), *inputs, slots, images * tokens, out)
    return out if out is promised else promised.copy_(out)

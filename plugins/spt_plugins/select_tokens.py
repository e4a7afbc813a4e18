"""``SelectTokens``: the list of kept tokens in one launch, without a word to the host.

    token_of_slot = [b * N + n  for b  for n in order  if logits[b, n] > threshold] + [-1, ...]
    slot_of_token = its inverse, -1 for a dropped token
    cu_seqlens[b] = kept tokens of the images before b

Source: arXiv 2410.23608, equation 4 and figure 3; meaning in `spt_deploy.model.reference`.

A program owns one tile of one image's order. It counts by itself what is kept before its tile: scores are
4 bytes a token and lie in the L2 cache, so reading them again costs less than a second launch. From that count
everything follows. The rank of a kept token is its slot; the rank of a *dropped* token, counted from the end of
the list, is a slot that nobody fills, for the two ranks add up to B*N: there it writes its -1. So no program needs
to know how many tokens are kept in all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spt_plugins import checks
from spt_plugins.variant import CeilDiv, Variant, cdiv


@triton.jit(do_not_specialize=["images", "tokens"])
def select_tokens_kernel(
    logits,
    order,
    threshold,
    images,
    tokens,
    token_of_slot,
    slot_of_token,
    cu_seqlens,
    TILE: tl.constexpr,
    COUNT: tl.constexpr,
):
    tiles = tl.cdiv(tokens, TILE)
    image = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    image_start = image * tokens
    tile_start = tile * TILE
    limit = tl.load(threshold)

    # Kept before the tile: in earlier images, where the order does not matter, then in this one, where it does.
    at = tl.arange(0, COUNT)
    counts = tl.zeros((COUNT,), tl.int32)
    for start in range(0, image_start, COUNT):
        score = tl.load(logits + start + at, mask=start + at < image_start, other=float("-inf"))
        counts += (score > limit).to(tl.int32)
    for start in range(0, tile_start, COUNT):
        earlier = start + at < tile_start
        token = tl.load(order + start + at, mask=earlier, other=0)
        score = tl.load(logits + image_start + token, mask=earlier, other=float("-inf"))
        counts += (score > limit).to(tl.int32)
    before = tl.sum(counts, 0)

    place = tl.arange(0, TILE)
    inside = tile_start + place < tokens
    token = tl.load(order + tile_start + place, mask=inside, other=0)
    score = tl.load(logits + image_start + token, mask=inside, other=float("-inf"))
    keep = score > limit  # false for NaN
    kept = keep.to(tl.int32)
    rank = tl.cumsum(kept, 0) - kept
    slot = before + rank
    dropped = image_start + tile_start - before + place - rank
    last = images * tokens - 1
    token += image_start
    tl.store(token_of_slot + tl.where(keep, slot, last - dropped), tl.where(keep, token, -1), mask=inside)
    tl.store(slot_of_token + token, tl.where(keep, slot, -1).to(tl.int64), mask=inside)

    if tile == 0:
        tl.store(cu_seqlens + image, before.to(tl.int64))
    if tl.program_id(0) == images * tiles - 1:
        tl.store(cu_seqlens + images, (before + tl.sum(kept, 0)).to(tl.int64))


class _Tile(NamedTuple):
    up_to: int  # tokens an image for which it is meant
    tile: int  # tokens of the order a program
    block: int  # scores that a program reads at once
    num_warps: int


# Programs are many where images are small, and read much at once where there is much to count.
TILES = (
    _Tile(up_to=512, tile=256, block=4096, num_warps=4),
    _Tile(up_to=16384, tile=1024, block=4096, num_warps=8),
    _Tile(up_to=2**31, tile=4096, block=8192, num_warps=16),
)


def variant(tokens: int) -> Variant:
    """The form for images of ``tokens`` tokens; any form gives the right answer for any number."""
    tile = next(tile for tile in TILES if tokens <= tile.up_to)
    return Variant(
        kernel=select_tokens_kernel,
        signature={
            "logits": "*fp32",
            "order": "*i64",
            "threshold": "*fp32",
            "images": "i32",
            "tokens": "i32",
            "token_of_slot": "*i64",
            "slot_of_token": "*i64",
            "cu_seqlens": "*i64",
            "TILE": "constexpr",
            "COUNT": "constexpr",
        },
        constants={"TILE": tile.tile, "COUNT": tile.block},
        num_warps=tile.num_warps,
        num_stages=2,
    )


def grid(variant: Variant, images: Any, tokens: Any, cdiv: CeilDiv = cdiv) -> tuple[Any]:
    """Programs to launch for ``images`` images of ``tokens`` tokens; sizes may be symbolic."""
    return (images * cdiv(tokens, variant.constants["TILE"]),)


def select_tokens(logits: Tensor, order: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """List the tokens whose logit exceeds the threshold, image after image, in the given order.

    Args:
        logits: B x N float32, the score before the sigmoid; NaN is dropped.
        order: N int64, a permutation of the tokens.
        threshold: scalar, on the same scale as ``logits``; float32, or what a model's conversion made of it.

    Returns:
        token_of_slot: B*N int64, ``b * N + n`` of each kept token, -1 past the last.
        slot_of_token: B x N int64, its inverse; -1 for a dropped token.
        cu_seqlens: B + 1 int64, kept tokens before each image; the last is their number.

    Raises:
        UsageError: a shape or dtype is another.
    """
    checks.one_device(logits=logits, order=order, threshold=threshold)
    checks.dimensions("logits", logits, 2)
    images, tokens = logits.shape
    checks.same_dtype("logits", logits, torch.float32)
    checks.same_dtype("order", order, torch.int64)
    checks.float_dtype("threshold", threshold)
    checks.shape("order", order, (tokens,))
    checks.shape("threshold", threshold, ())
    checks.slots(images * tokens)
    token_of_slot = logits.new_empty(images * tokens, dtype=torch.int64)
    slot_of_token = logits.new_empty((images, tokens), dtype=torch.int64)
    cu_seqlens = logits.new_empty(images + 1, dtype=torch.int64)
    if not logits.numel():  # no program would write it
        return token_of_slot, slot_of_token, cu_seqlens.zero_()
    form = variant(tokens)
    inputs = logits.contiguous(), order.contiguous(), threshold.float()
    outputs = token_of_slot, slot_of_token, cu_seqlens
    form.launch(grid(form, images, tokens), *inputs, images, tokens, *outputs)
    return outputs

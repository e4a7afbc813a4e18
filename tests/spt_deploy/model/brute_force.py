"""The SPA block's attention written token by token from its definition; nothing is shared with the code it checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Token = tuple[int, int]  # image, number in the image


def token_order(height: int, width: int, window: int, shift: int) -> list[int]:
    """Window by window after rolling the map by ``-shift``, row-major inside each, cut short at the edges."""
    rolled = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    order: list[int] = []
    for top in range(0, height, window):
        for left in range(0, width, window):
            order += rolled[top : top + window, left : left + window].flatten().tolist()
    return order


def kept_tokens(keep: Tensor, order: Sequence[int]) -> list[Token]:
    """Image after image, each in the given order; ``keep`` B x N bool."""
    return [(image, n) for image in range(keep.shape[0]) for n in order if keep[image, n]]


def containers(kept: Sequence[Token], length: int, packing: str) -> list[list[Token]]:
    """The list cut into containers of at most ``length`` tokens."""
    runs = [list(kept)]
    if packing == "per-image":
        runs = [[token for token in kept if token[0] == image] for image in sorted({image for image, _ in kept})]
    return [run[start : start + length] for run in runs for start in range(0, len(run), length)]


def attention(
    q: Tensor, k: Tensor, v: Tensor, box: Sequence[Token], bias_table: Tensor, window: int, width: int
) -> list[Tensor]:
    """Attention inside one container.

    Args:
        q: tokens of the container x heads x head dimension; ``k`` and ``v`` likewise.
        box: its tokens.
        bias_table: (2M - 1)^2 x heads.
        window: M.
        width: tokens a row of the map.

    Returns:
        heads x head dimension of each token.
    """
    out: list[Tensor] = []
    for i, (image, token) in enumerate(box):
        seen: list[int] = []
        rows: list[int] = []
        for j, (other_image, other) in enumerate(box):
            if other_image != image:
                continue
            dy = max(1 - window, min(window - 1, token // width - other // width))
            dx = max(1 - window, min(window - 1, token % width - other % width))
            seen.append(j)
            rows.append((dy + window - 1) * (2 * window - 1) + dx + window - 1)
        scores = (q[i] * k[seen]).sum(-1) / q.shape[-1] ** 0.5 + bias_table[rows]  # seen x heads
        out.append((scores.softmax(0)[:, :, None] * v[seen]).sum(0))
    return out


def packed_attention(
    qkv: Tensor, kept: Sequence[Token], bias_table: Tensor, heads: int, window: int, width: int, packing: str
) -> Tensor:
    """``qkv`` S x 3C of the kept tokens in their order; S x C out."""
    if not kept:
        return qkv[:, : qkv.shape[1] // 3]
    q, k, v = qkv.view(len(kept), 3, heads, -1).unbind(1)
    slot = {token: i for i, token in enumerate(kept)}
    out: dict[Token, Tensor] = {}
    for box in containers(kept, window * window, packing):
        rows = [slot[token] for token in box]
        out.update(zip(box, attention(q[rows], k[rows], v[rows], box, bias_table, window, width), strict=True))
    return torch.stack([out[token].flatten() for token in kept])

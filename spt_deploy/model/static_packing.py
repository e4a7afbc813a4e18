"""The four ``spt`` operations with static shapes: for runtimes that cannot make a list as long as the selection.

Each image has a fixed number of slots, whole containers of L = M*M. Its kept tokens fill the first of them, in order;
the others hold -1 and are seen by nobody. What finds no room is dropped, the lowest scores first and, of equal scores,
the later tokens. Where no image overflows the answer is that of ``per-image`` packing in `reference.py`, whose notation
this module shares.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_deploy.model.reference import attend


def select_tokens(logits: Tensor, order: Tensor, threshold: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """List at most ``slots`` tokens an image whose logit exceeds the threshold, in the given order.

    Args:
        logits: B x N float32, the score before the sigmoid.
        order: N int64, a permutation of the tokens.
        threshold: scalar float32, on the same scale as ``logits``.
        slots: of an image.

    Returns:
        token_of_slot: B * slots int64, ``b * N + n`` of each kept token, -1 in slots that are not filled.
        slot_of_token: B x N int64, its inverse; -1 for a dropped token.
        cu_seqlens: B + 1 int64, kept tokens before each image.
    """
    batch, tokens = logits.shape
    device = logits.device
    # Export knows topk, and ONNX's gives the lower index first; PyTorch's promises nothing of equal scores.
    best = logits.sort(dim=1, descending=True, stable=True).indices[:, : min(slots, tokens)]
    in_reach = torch.zeros_like(logits, dtype=torch.bool).scatter(1, best, True)
    keep = ((logits > threshold) & in_reach)[:, order]
    place = keep.cumsum(1) - 1
    image = torch.arange(batch, device=device)[:, None]
    token_of_slot = torch.full((batch, slots), -1, dtype=torch.int64, device=device)
    at = keep.nonzero(as_tuple=True)
    token_of_slot[at[0], place[at]] = at[0] * tokens + order[at[1]]
    slot_of_token = torch.full_like(logits, -1, dtype=torch.int64)
    slot_of_token[:, order] = torch.where(keep, image * slots + place, -1)
    return token_of_slot.flatten(), slot_of_token, F.pad(keep.sum(1).cumsum(0), (1, 0))


def packed_qkv(h: Tensor, gate: Tensor, token_of_slot: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `reference.packed_qkv`; a slot that is not filled gives the row of some token, which nobody sees."""
    token = token_of_slot.clamp(min=0)
    rows = h.flatten(0, 1).index_select(0, token)
    factor = gate.flatten().index_select(0, token).to(rows.dtype)
    return F.linear(rows * factor[:, None], weight, bias)


def packed_attention(
    qkv: Tensor,
    token_of_slot: Tensor,
    bias_table: Tensor,
    *,
    heads: int,
    window: int,
    tokens: int,
    width: int,
    scale: float | None = None,
) -> Tensor:
    """As `reference.packed_attention`, on containers that lie in the list one after the other."""
    containers = token_of_slot.view(-1, window * window)
    sees = (containers >= 0)[:, None, :]
    packed = qkv.view(*containers.shape, qkv.shape[1])
    out = attend(packed, containers.clamp(min=0) % tokens, sees, bias_table, heads, window, width, scale)
    return out.flatten(0, 1)


def unpack_project(o: Tensor, slot_of_token: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `reference.unpack_project`, from the tokens' side."""
    projected = F.linear(o, weight, bias).to(residual.dtype)
    rows = projected.index_select(0, slot_of_token.flatten().clamp(min=0)).view_as(residual)
    return residual + torch.where(slot_of_token[..., None] >= 0, rows, 0.0)

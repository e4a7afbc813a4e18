"""The meaning of the four ``spt`` operations in PyTorch: differentiable, any device, any float dtype.

Notation: B images of N tokens and C channels; S kept tokens in all; L slots a container, see ``container_length``;
K containers. A *slot* is a place in the dense list of kept tokens. Kernels may hand on a longer list than there are
kept tokens, filled up with -1; these functions make and take exact ones.

Source: "Context-Aware Token Selection and Packing", arXiv 2410.23608, equations 4 to 6 and figure 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_deploy.model.shapes import container_length

# Added to the attention logit of a pair that must not see each other. Finite, so that fp16 holds it and a row
# of nothing else stays finite; exp(-1e4) is exactly 0 in every dtype.
MASKED = -1e4


def select_tokens(logits: Tensor, order: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """List the tokens whose logit exceeds the threshold, image after image, in the given order.

    Args:
        logits: B x N float32, the score before the sigmoid.
        order: N int64, a permutation of the tokens.
        threshold: scalar float32, on the same scale as ``logits``.

    Returns:
        token_of_slot: S int64, ``b * N + n`` of each kept token.
        slot_of_token: B x N int64, its inverse; -1 for a dropped token.
        cu_seqlens: B + 1 int64, kept tokens before each image; the last is S.
    """
    batch, tokens = logits.shape
    keep = logits[:, order] > threshold
    image, place = keep.nonzero(as_tuple=True)
    token_of_slot = image * tokens + order[place]
    slot_of_token = torch.full((batch * tokens,), -1, dtype=torch.int64, device=logits.device)
    slot_of_token[token_of_slot] = torch.arange(token_of_slot.numel(), device=logits.device)
    cu_seqlens = F.pad(keep.sum(1).cumsum(0), (1, 0))
    return token_of_slot, slot_of_token.view(batch, tokens), cu_seqlens


def packed_qkv(h: Tensor, gate: Tensor, token_of_slot: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gather the kept tokens, multiply each by its gate, project.

    Args:
        h: B x N x C, the normalised input of the block.
        gate: B x N, sigmoid of the score (equation 5).
        token_of_slot: S int64.
        weight: 3C x C.
        bias: 3C.

    Returns:
        S x 3C in the dtype of ``h``: query, key and value, each heads x head dimension.
    """
    rows = h.flatten(0, 1).index_select(0, token_of_slot)
    factor = gate.flatten().index_select(0, token_of_slot).to(rows.dtype)
    return F.linear(rows * factor[:, None], weight, bias)


def containers(
    token_of_slot: Tensor, cu_seqlens: Tensor, length: int, tokens: int, packing: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the list of kept tokens into containers.

    ``batch`` fills every container but the last; ``per-image`` starts each image in a new one, so that at most
    ``length - 1`` slots an image stay empty.

    Args:
        token_of_slot: S int64.
        cu_seqlens: B + 1 int64.
        length: L, slots a container.
        tokens: N.
        packing: ``batch`` or ``per-image``.

    Returns:
        slots: K x L int64, the slot in each place; an empty place repeats some other slot.
        filled: K x L bool, False for an empty place.
        places: S int64, where in the flattened K x L each slot went.
    """
    device = token_of_slot.device
    kept = token_of_slot.numel()
    inside = torch.arange(length, device=device)
    if packing == "batch":
        slots = torch.arange(-(-kept // length), device=device)[:, None] * length + inside
        filled = slots < kept
        places = torch.arange(kept, device=device)
    else:
        ends = ((cu_seqlens.diff() + length - 1) // length).cumsum(0)
        starts = F.pad(ends, (1, 0))[:-1]
        index = torch.arange(int(ends[-1]), device=device)
        image = torch.searchsorted(ends, index, right=True)
        slots = (cu_seqlens[image] + (index - starts[image]) * length)[:, None] + inside
        filled = slots < cu_seqlens[image + 1][:, None]
        own = token_of_slot // tokens
        places = torch.arange(kept, device=device) - cu_seqlens[own] + starts[own] * length
    return slots.clamp(max=max(kept - 1, 0)), filled, places


def packed_attention(
    qkv: Tensor,
    token_of_slot: Tensor,
    cu_seqlens: Tensor,
    bias_table: Tensor,
    *,
    heads: int,
    window: int,
    tokens: int,
    width: int,
    packing: str,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention inside each container; a token sees tokens of its own image only.

    The relative position bias is Swin's table, indexed by the true row and column difference of two tokens, each
    clamped to +-(M - 1).

    Args:
        qkv: S x 3C.
        token_of_slot: S int64.
        cu_seqlens: B + 1 int64.
        bias_table: (2M - 1)^2 x heads.
        heads: attention heads; C is a multiple.
        window: M; a container holds M*M tokens, or ``tokens`` if these are fewer and packing is ``per-image``.
        tokens: N, tokens an image.
        width: tokens a row of the map.
        packing: ``batch`` or ``per-image``.
        scale: of the product of a query and a key; ``default_scale`` unless given, 1 where queries come scaled.

    Returns:
        S x C in the dtype of ``qkv``.
    """
    length = container_length(window, tokens, packing)
    slots, filled, places = containers(token_of_slot, cu_seqlens, length, tokens, packing)
    token = token_of_slot[slots] if token_of_slot.numel() else slots
    image = token // tokens
    sees = filled[:, None, :] & (image[:, :, None] == image[:, None, :])
    # index_select and embedding, not fancy indexing: their backward passes run in parallel on a CPU.
    packed = qkv.index_select(0, slots.flatten()).view(*slots.shape, qkv.shape[1])
    out = attend(packed, token % tokens, sees, bias_table, heads, window, width, scale)
    return out.flatten(0, 1).index_select(0, places)


def default_scale(qkv: Tensor, heads: int) -> float:
    """One over the square root of the channels of a head; ``qkv`` ... x 3C."""
    return float((qkv.shape[-1] // (3 * heads)) ** -0.5)


def attend(
    packed: Tensor,
    token: Tensor,
    sees: Tensor,
    bias_table: Tensor,
    heads: int,
    window: int,
    width: int,
    scale: float | None = None,
) -> Tensor:
    """Attention inside each of K containers.

    Args:
        packed: K x L x 3C.
        token: K x L int64, number of each token in its image.
        sees: K x L x L bool, or K x 1 x L: who sees whom.
        bias_table: (2M - 1)^2 x heads.
        heads: attention heads.
        window: M.
        width: tokens a row of the map.
        scale: see ``packed_attention``.

    Returns:
        K x L x C.
    """
    y, x = token // width, token % width
    dy = (y[:, :, None] - y[:, None, :]).clamp(1 - window, window - 1) + window - 1
    dx = (x[:, :, None] - x[:, None, :]).clamp(1 - window, window - 1) + window - 1
    # One gather gives bias and mask: the row after the table's last is the masked one.
    row = torch.where(sees, dy * (2 * window - 1) + dx, bias_table.shape[0])
    bias = F.embedding(row, F.pad(bias_table, (0, 0, 0, 1), value=MASKED)).permute(3, 0, 1, 2)  # heads x K x L x L
    if scale is None:
        scale = default_scale(packed, heads)
    count, length, columns = packed.shape
    packed = packed.view(count, length, 3, heads, columns // (3 * heads)).permute(
        2, 3, 0, 1, 4
    )  # 3 x heads x K x L x d
    q, k, v = packed.unbind(0)
    scores = (q * scale) @ k.transpose(-1, -2) + bias
    out: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return out.permute(1, 2, 0, 3).flatten(2)


def unpack_project(
    o: Tensor, token_of_slot: Tensor, slot_of_token: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Project the kept tokens and add each to its place in the residual; dropped tokens pass unchanged.

    Args:
        o: S x C.
        token_of_slot: S int64, where each row of ``o`` belongs.
        slot_of_token: B x N int64, -1 for a dropped token. It says the same the other way round: a kernel that
            writes each row of the output once needs both; this function does not.
        residual: B x N x C.
        weight: C x C.
        bias: C.

    Returns:
        B x N x C in the dtype of ``residual``.
    """
    projected = F.linear(o, weight, bias).to(residual.dtype)
    return residual.flatten(0, 1).index_add(0, token_of_slot, projected).view_as(residual)

"""Transformer blocks: Swin's window attention block, and the Select and Pack (SPA) block.

Both hold the same parameters under the same names, so that Swin weights fit either; the SPA block adds a gate.

Source: Swin Transformer, arXiv 2103.14030; SPA, arXiv 2410.23608.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_deploy.config import BackboneConfig
from spt_deploy.model import operators
from spt_deploy.model.order import effective_shift, relative_position_index, shift_mask, window_order, window_place


class DropPath(nn.Module):
    """Stochastic depth: in training, an image's branch is dropped with probability ``rate`` (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """``branch`` B x ...; the same in evaluation."""
        if not self.training or self.rate == 0.0:
            return branch
        kept = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * kept / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ... x C."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class AttentionWeights(nn.Module):
    """The parameters of multi-head attention with Swin's relative position table, under Swin's names."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.scale = (width // heads) ** -0.5  # of the product of a query and a key
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def fold_scale(self) -> None:
        """Scale the queries by their weights from now on: a graph has one step less, and these are Swin's no more."""
        with torch.no_grad():
            for each in (self.qkv.weight, self.qkv.bias):
                each[: len(each) // 3] *= self.scale
        self.scale = 1.0


class WindowAttention(AttentionWeights):
    """W-MSA and SW-MSA: attention inside each M x M window of a cyclically shifted map."""

    def forward(self, x: Tensor, height: int, width: int, shift: int) -> Tensor:
        """``x`` B x N x C, normalised, of a map of any height and width: padded to whole windows first, then rolled."""
        batch, _, channels = x.shape
        window, heads = self.window, self.heads
        pad_bottom, pad_right = -height % window, -width % window
        if pad_bottom or pad_right:
            x = F.pad(x.view(batch, height, width, channels), (0, 0, 0, pad_right, 0, pad_bottom)).flatten(1, 2)
        padded = height + pad_bottom, width + pad_right
        windows = padded[0] * padded[1] // window**2
        x = x.index_select(1, window_order(*padded, window, shift, x.device))
        qkv = self.qkv(x).view(batch, windows, window**2, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table.t()[:, relative_position_index(window, x.device)]  # heads x L x L
        # Matrices of four dimensions, not five, are what runtimes fuse: windows count as images, or, where each has a
        # mask of its own, as heads.
        if shift:
            bias = (bias + shift_mask(*padded, window, shift, x.device)[:, None]).flatten(0, 1)
            q, k, v = qkv.flatten(2, 3).unbind(0)
        else:
            q, k, v = qkv.flatten(1, 2).unbind(0)
        if self.scale != 1.0:
            q = q * self.scale
        scores = q @ k.transpose(-1, -2) + bias
        x = (scores.softmax(-1).to(v.dtype) @ v).view(batch, windows, heads, window**2, -1).transpose(2, 3)
        attended: Tensor = self.proj(x.reshape(batch, windows * window**2, channels))
        return attended.index_select(1, window_place(height, width, window, shift, x.device))


class SwinBlock(nn.Module):
    """LayerNorm, (shifted) window attention, residual; LayerNorm, MLP, residual."""

    def __init__(self, config: BackboneConfig, stage: int, block: int, drop_path: float) -> None:
        super().__init__()
        width = config.stage_width(stage)
        self.shift = config.window // 2 if block % 2 else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, config.heads[stage - 1], config.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` B x H x W x C; the same shape out."""
        batch, height, width, channels = x.shape
        shift = effective_shift(height, width, self.attn.window, self.shift)
        tokens = x.view(batch, height * width, channels)  # LayerNorm of three dimensions: OpenVINO fuses no other
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), height, width, shift))
        out: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return out.view(batch, height, width, channels)


def gate_layer(width: int, bias: float) -> nn.Linear:
    """The linear gate f of equation 4: C channels to one logit."""
    gate = nn.Linear(width, 1)
    nn.init.trunc_normal_(gate.weight, std=0.02)
    nn.init.constant_(gate.bias, bias)
    return gate


def gate_logits(gate: nn.Linear, tokens: Tensor, finer: Tensor | None) -> Tensor:
    """Scores before the sigmoid, equation 4, always in float32.

    Args:
        gate: the block's linear gate.
        tokens: B x N x C.
        finer: B x N, scores of the finer scale pooled to this one; None where there is no finer one.

    Returns:
        B x N float32.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        logits = F.linear(tokens.float(), gate.weight.float(), gate.bias.float()).squeeze(-1)
        return logits if finer is None else torch.maximum(logits, finer)


class SpaBlock(nn.Module):
    """A transformer block whose attention runs on selected tokens, packed across the batch."""

    def __init__(self, config: BackboneConfig, stage: int, block: int, drop_path: float) -> None:
        super().__init__()
        width = config.stage_width(stage)
        self.config = config
        self.shift = config.window // 2 if block % 2 else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = AttentionWeights(width, config.heads[stage - 1], config.window)
        self.gate = gate_layer(width, config.gate_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, finer: Tensor | None, threshold: Tensor, forced: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select, pack, attend, put back.

        Args:
            x: B x H x W x C.
            finer: B x N, see ``gate_logits``.
            threshold: scalar float32, in logits.
            forced: B x N bool, takes the place of the selection (labels as mask, parity checks).

        Returns:
            The block's output, B x H x W x C; its scores before the sigmoid, B x N float32; its kept tokens,
            B x N bool.
        """
        batch, height, width, channels = x.shape
        residual = x.reshape(batch, height * width, channels)
        h = self.norm1(residual)
        logits = gate_logits(self.gate, h, finer)
        gate = logits.sigmoid()
        selection = self._selection_scores(logits, forced)
        if self.training and forced is None and self.config.selector == "threshold":
            selection = selection + _logistic_noise(selection)
            soft = selection.sigmoid()
            gate = gate * (1 + (soft - soft.detach()))  # hard mask forward (exactly 1), soft one backward
        if forced is not None or self.config.selector == "topk":
            threshold = torch.zeros_like(threshold)
        shift = effective_shift(height, width, self.config.window, self.shift)
        order = window_order(height, width, self.config.window, shift, x.device)
        packing = self.config.packing
        slots = self.config.static_slots(height * width) if packing == operators.STATIC else None
        token_of_slot, slot_of_token, cu_seqlens = operators.select_tokens(selection, order, threshold, slots)
        attn = self.attn
        qkv = operators.packed_qkv(h, gate, token_of_slot, attn.qkv.weight, attn.qkv.bias, packing)
        o = operators.packed_attention(
            qkv,
            token_of_slot,
            cu_seqlens,
            attn.relative_position_bias_table,
            heads=attn.heads,
            window=attn.window,
            tokens=height * width,
            width=width,
            packing=packing,
            scale=attn.scale,
        )
        project = attn.proj.weight, attn.proj.bias, packing
        if self.training and self.drop_path.rate:
            zeros = torch.zeros_like(residual)
            branch = operators.unpack_project(o, token_of_slot, slot_of_token, zeros, *project)
            residual = residual + self.drop_path(branch)
        else:
            residual = operators.unpack_project(o, token_of_slot, slot_of_token, residual, *project)
        residual = residual + self.drop_path(self.mlp(self.norm2(residual)))
        return residual.view(batch, height, width, channels), logits, slot_of_token >= 0

    def _selection_scores(self, logits: Tensor, forced: Tensor | None) -> Tensor:
        """What is compared with the threshold; +-1 where the mask is given or comes from a ranking."""
        if forced is not None:
            return forced.float() * 2 - 1
        if self.config.selector == "threshold":
            return logits
        return best_tokens(logits, self.config.best_count(logits.shape[1])).float() * 2 - 1


def best_tokens(logits: Tensor, count: int) -> Tensor:
    """The ``count`` highest scores of each image, and of equal ones the earlier tokens.

    Which of equal scores a sort gives first is each runtime's own affair, so they are counted out.

    Args:
        logits: B x N.
        count: of an image, from 1 to N.

    Returns:
        B x N bool.
    """
    from_below = logits.shape[1] - count + 1  # counted from the nearer end: TensorRT lists no more than 3840
    listed = logits.topk(min(count, from_below), dim=1, largest=count <= from_below)
    lowest = listed.values[:, -1:]
    above, equal = logits > lowest, logits == lowest
    left = count - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= left))


def _logistic_noise(like: Tensor) -> Tensor:
    """The difference of two Gumbel variables: what Gumbel-softmax adds to a two-class logit (arXiv 1611.01144)."""
    uniform = torch.rand_like(like).clamp(1e-6, 1 - 1e-6)
    return uniform.logit()

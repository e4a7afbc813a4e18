"""The SPT backbone: patch embedding, four stages, the score maps between them.

Drop it into any detector: ``Backbone(BackboneConfig.from_name("spt_t"))(images).maps`` are four feature maps at
strides 4, 8, 16 and 32.

Source: Swin Transformer, arXiv 2103.14030; SPT, arXiv 2410.23608, equations 1 to 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_deploy.config import BackboneConfig, check_image_size
from spt_deploy.model.blocks import SpaBlock, SwinBlock, gate_layer, gate_logits
from spt_deploy.model.operators import STATIC
from spt_deploy.model.shapes import PATCH


@dataclass(frozen=True)
class BackboneOutput:
    """What the backbone found.

    Attributes:
        tokens: of each stage, B x H/s x W/s x width at strides s = 4, 8, 16, 32 (sides rounded up).
        gate_scores: of the gate before the first SPA stage, B x h x w float32 logits; None without one.
        scores: of each SPA block in order, B x h x w float32, logits before the sigmoid.
        kept: of each SPA block in order, B x h x w bool.
        spa_stages: the stage (1 to 4) of each SPA block in order.
        wanted: what each SPA block would have kept with room for all, like ``kept``; empty but for static packing.
    """

    tokens: tuple[Tensor, ...]
    gate_scores: Tensor | None
    scores: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    spa_stages: tuple[int, ...]
    wanted: tuple[Tensor, ...] = ()

    @property
    def overflow(self) -> Tensor:
        """Tokens that static packing dropped for want of room, B x SPA blocks int64."""
        lost = [
            want.flatten(1).sum(1) - keep.flatten(1).sum(1) for want, keep in zip(self.wanted, self.kept, strict=True)
        ]
        return torch.stack(lost, dim=1)

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The stages as B x width x H/s x W/s."""
        return tuple(t.permute(0, 3, 1, 2) for t in self.tokens)

    @property
    def supervised_scores(self) -> tuple[Tensor, ...]:
        """The score maps that the select loss sums over: the gate's and every SPA block's."""
        return self.scores if self.gate_scores is None else (self.gate_scores, *self.scores)

    @property
    def select_ratio(self) -> Tensor:
        """Share of tokens kept, B x SPA blocks float32."""
        return torch.stack([k.flatten(1).float().mean(1) for k in self.kept], dim=1)

    @property
    def token_weights(self) -> Tensor | None:
        """How much each token of stage 4 has been heard: its gate in the last block, 0 where that dropped it.

        B x H/32 x W/32 float32; None where stage 4 selects nothing.
        """
        if 4 not in self.spa_stages:
            return None
        # The sigmoid with all its digits where it is small: ONNX Runtime's own is exact to 1e-7, whatever it is.
        return (-F.softplus(-self.scores[-1])).exp() * self.kept[-1]

    @property
    def selection(self) -> Tensor:
        """Share of SPA blocks that kept each token of stage 3, B x H/16 x W/16 float32; others are scaled to it."""
        height, width = self.tokens[2].shape[1:3]
        counts: list[Tensor] = []
        for stage in sorted(set(self.spa_stages)):
            masks = [k.float() for k, of in zip(self.kept, self.spa_stages, strict=True) if of == stage]
            counts.append(_to_stage_3(torch.stack(masks).sum(0), stage)[:, :height, :width])
        return torch.stack(counts).sum(0) / len(self.kept)


def _to_stage_3(count: Tensor, stage: int) -> Tensor:
    """A B x h x w map of one stage at the scale of stage 3: repeated, the same, or averaged."""
    if stage == 4:  # token (i, j) of stage 3 lies under token (i // 2, j // 2) of stage 4
        batch, height, width = count.shape
        return count[:, :, None, :, None].expand(-1, -1, 2, -1, 2).reshape(batch, 2 * height, 2 * width)
    for _ in range(3 - stage):
        count = F.avg_pool2d(count[:, None], 2, ceil_mode=True)[:, 0]
    return count


class PatchEmbed(nn.Module):
    """4 x 4 convolution with stride 4, LayerNorm; an image of any size is padded with zeros to whole patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """``images`` B x 3 x H x W; B x H/4 x W/4 x C out."""
        height, width = images.shape[2:]
        if height % PATCH or width % PATCH:
            images = F.pad(images, (0, -width % PATCH, 0, -height % PATCH))
        patches = self.proj(images)
        out: Tensor = self.norm(patches.flatten(2).transpose(1, 2))  # three dimensions, as in SwinBlock
        return out.view(images.shape[0], *patches.shape[2:], -1)


class PatchMerging(nn.Module):
    """2 x 2 neighbours concatenated, LayerNorm, Linear(4C to 2C); odd sides are padded with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` B x H x W x C; B x H/2 x W/2 x 2C out."""
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Channel order (row, column) = (0,0), (1,0), (0,1), (1,1): column-major over the 2 x 2 neighbours.
        x = x.view(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        out: Tensor = self.reduction(self.norm(x.reshape(batch, -1, 4 * channels)))
        return out.view(*x.shape[:3], -1)


class Stage(nn.Module):
    """Patch merging (but for the first stage) and blocks, all Swin or all SPA."""

    def __init__(self, config: BackboneConfig, stage: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.is_spa = stage in config.spa_stages
        self.downsample = PatchMerging(config.stage_width(stage - 1)) if stage > 1 else None
        block = SpaBlock if self.is_spa else SwinBlock
        self.blocks = nn.ModuleList(block(config, stage, i, rate) for i, rate in enumerate(drop_path))


class Backbone(nn.Module):
    """Swin with SPA blocks in ``config.spa_stages``."""

    threshold: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.embed_dim)
        total = sum(config.depths)
        rates = [config.drop_path * i / max(1, total - 1) for i in range(total)]
        starts = [sum(config.depths[:i]) for i in range(4)]
        self.stages = nn.ModuleList(
            Stage(config, i + 1, rates[start : start + depth])
            for i, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
        )
        first = min(config.spa_stages, default=1)
        self.gate = gate_layer(config.stage_width(first - 1), config.gate_bias) if first > 1 else None
        self.register_buffer("threshold", torch.logit(torch.tensor(config.threshold)), persistent=False)

    def forward(
        self, images: Tensor, forced: Sequence[Tensor] | None = None, threshold: Tensor | None = None
    ) -> BackboneOutput:
        """Run the backbone.

        Args:
            images: B x 3 x H x W, RGB, normalised; H and W from 32 pixels.
            forced: for each SPA block in order, a B x h x w bool mask that takes the place of its selection.
            threshold: scalar float32, in logits, for all SPA blocks; None takes the configuration's.

        Raises:
            UsageError: when a side is below 32 pixels.
        """
        check_image_size((images.shape[2], images.shape[3]))
        threshold = self.threshold if threshold is None else threshold
        x = self.patch_embed(images)
        tokens: list[Tensor] = []
        scores: list[Tensor] = []
        kept: list[Tensor] = []
        wanted: list[Tensor] = []
        gate_scores: Tensor | None = None
        finer: Tensor | None = None  # B x h x w logits of the finer scale
        for number, stage in enumerate(self.stages, start=1):
            assert isinstance(stage, Stage)
            if stage.is_spa and number > 1 and gate_scores is None and self.gate is not None:
                gate_scores = finer = gate_logits(self.gate, x.flatten(1, 2), None).view(x.shape[:3])
            if stage.downsample is not None:
                x = stage.downsample(x)
                if finer is not None:
                    finer = F.max_pool2d(finer[:, None], 2, ceil_mode=True)[:, 0]
            for block in stage.blocks:
                if isinstance(block, SpaBlock):
                    size = x.shape[:3]
                    mask = None if forced is None else forced[len(kept)].flatten(1)
                    x, logits, keep = block(x, None if finer is None else finer.flatten(1), threshold, mask)
                    scores.append(logits.view(size))
                    kept.append(keep.view(size))
                    if self.config.packing == STATIC:
                        wanted.append(self._wanted(logits, threshold, mask, keep).view(size))
                else:
                    x = block(x)
            if stage.is_spa:
                finer = scores[-1]
            tokens.append(x)
        stages = tuple(int(name.split(".")[0]) for name in self.config.spa_blocks)
        return BackboneOutput(tuple(tokens), gate_scores, tuple(scores), tuple(kept), stages, tuple(wanted))

    def _wanted(self, logits: Tensor, threshold: Tensor, forced: Tensor | None, kept: Tensor) -> Tensor:
        """What a block was to keep; a ranking never asks for more than there is room for."""
        if self.config.selector == "topk":
            return kept
        return logits > threshold if forced is None else forced

"""The small heads that turn backbone features into the outputs of a task.

* `LabelHead`: classify and multilabel; LayerNorm, mean over the selected tokens by their gates, Linear.
* `DetectHead`: a feature pyramid and an anchor-free one-stage head, decoded to the K best boxes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_deploy.config import ModelConfig
from spt_deploy.model.shapes import DETECT_STAGES, TOWER_DEPTH

DETECT_STRIDES = (8, 16, 32)
PRIOR_SCORE = 0.01  # initial score of every class, so that background does not swamp the first steps (arXiv 1708.02002)


class LabelHead(nn.Module):
    """One logit a class from the last stage; softmax or sigmoid is the caller's.

    The mean is weighted by the last block's gates, and dropped tokens have no weight: they have seen no other token,
    so they say nothing of the object and dilute what the kept ones say. In a model that begins from Swin weights all
    gates are equal and it is Swin's plain mean, as it is where no token is kept. A token that is kept by a hair hardly
    counts, so the answer does not jump where a score crosses the threshold.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.backbone.stage_width(4)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, len(config.class_names))
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, tokens: tuple[Tensor, ...], weights: Tensor | None = None) -> dict[str, Tensor]:
        """Pool and classify.

        Args:
            tokens: of the four stages, each B x h x w x C.
            weights: of the last stage's tokens, B x h x w float32, see ``BackboneOutput.token_weights``; None weighs
                all the same.

        Returns:
            ``logits`` B x classes.
        """
        x = self.norm(tokens[3].flatten(1, 2))
        if weights is None:
            return {"logits": self.fc(x.mean(1))}
        weights = weights.flatten(1)
        total = weights.sum(1, keepdim=True)
        heard = total > 0
        share = torch.where(heard, weights, 1.0) / torch.where(heard, total, float(weights.shape[1]))
        return {"logits": self.fc((x * share.to(x.dtype)[..., None]).sum(1))}


class DetectMaps(NamedTuple):
    """What the detection head predicts before decoding, P points over all levels, finest level first.

    Attributes:
        logits: B x P x classes, before the sigmoid.
        distances: B x P x 4, left, top, right, bottom of the point in pixels of the input, positive.
        points: P x 2, x and y of each point in pixels of the input.
        strides: P, pixels between points of the point's level.
    """

    logits: Tensor
    distances: Tensor
    points: Tensor
    strides: Tensor

    @property
    def corners(self) -> Tensor:
        """The boxes, B x P x 4 float32, xyxy in pixels of the input, not clipped to it."""
        return torch.cat([self.points - self.distances[..., :2], self.points + self.distances[..., 2:]], dim=-1)


class _Tower(nn.Sequential):
    """3 x 3 convolutions with GroupNorm and SiLU; GroupNorm does not mind batches of two."""

    def __init__(self, width: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(TOWER_DEPTH):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.SiLU()]
        super().__init__(*layers)


class DetectHead(nn.Module):
    """FPN and towers shared by all levels; class scores and distances to the box sides (FCOS, arXiv 1904.01355)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.head_width
        self.top_k = config.top_k
        self.classes = len(config.class_names)
        stages = [config.backbone.stage_width(s) for s in DETECT_STAGES]
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in stages)
        self.lateral = nn.ModuleList(nn.Linear(c, width) for c in stages)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in stages)
        self.class_tower = _Tower(width)
        self.box_tower = _Tower(width)
        self.class_conv = nn.Conv2d(width, self.classes, 3, padding=1)
        self.box_conv = nn.Conv2d(width, 4, 3, padding=1)
        self.box_scale = nn.Parameter(torch.ones(len(DETECT_STAGES)))
        for conv, bias in ((self.class_conv, math.log(PRIOR_SCORE / (1 - PRIOR_SCORE))), (self.box_conv, 1.0)):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.constant_(conv.bias, bias)

    def maps(self, tokens: tuple[Tensor, ...]) -> DetectMaps:
        """Raw predictions of every point, for the loss; ``tokens`` of the four stages, each B x h x w x C."""
        levels = self._pyramid(tokens)
        logits, distances, points, strides = [], [], [], []
        for i, (level, stride) in enumerate(zip(levels, DETECT_STRIDES, strict=True)):
            height, width = level.shape[2:]
            logits.append(self.class_conv(self.class_tower(level)).flatten(2).transpose(1, 2))
            raw = self.box_conv(self.box_tower(level)).flatten(2).transpose(1, 2).float()
            distances.append(F.softplus(raw * self.box_scale[i]) * stride)
            points.append(_grid(height, width, stride, level.device))
            strides.append(torch.full((height * width,), float(stride), device=level.device))
        return DetectMaps(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(points), torch.cat(strides))

    def forward(self, tokens: tuple[Tensor, ...], image_size: tuple[int, int]) -> dict[str, Tensor]:
        """``decode`` of ``maps``; ``tokens`` of the four stages, each B x h x w x C."""
        return self.decode(self.maps(tokens), image_size)

    def decode(self, maps: DetectMaps, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The K best pairs of point and class, best first; no suppression of overlaps.

        Args:
            maps: of B images.
            image_size: height and width of the input in pixels; boxes are clipped to it.

        Returns:
            ``boxes`` B x K x 4 float32 xyxy in pixels of the input, ``scores`` B x K float32, ``labels`` B x K int64;
            K = min(top_k, points x classes).
        """
        scores = maps.logits.float().sigmoid().flatten(1)
        best, index = scores.topk(min(self.top_k, scores.shape[1]), dim=1)
        point = index // self.classes
        boxes = maps.corners.gather(1, point[..., None].expand(-1, -1, 4))
        height, width = image_size
        x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
        return {"boxes": torch.stack([x, y], -1).flatten(2), "scores": best, "labels": index - point * self.classes}

    def _pyramid(self, tokens: tuple[Tensor, ...]) -> list[Tensor]:
        """Levels at strides 8, 16 and 32, each B x width x h x w."""
        inner: list[Tensor] = []
        for norm, lateral, stage in zip(self.norms, self.lateral, DETECT_STAGES, strict=True):
            level = tokens[stage - 1]
            wide = lateral(norm(level.flatten(1, 2)))
            inner.append(wide.view(*level.shape[:3], -1).permute(0, 3, 1, 2))
        for i in range(len(inner) - 2, -1, -1):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[2:], mode="nearest")
        return [conv(level) for conv, level in zip(self.smooth, inner, strict=True)]


def _grid(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Centres of a level's cells, height * width x 2, x and y in pixels of the input."""
    y = (torch.arange(height, device=device) + 0.5) * stride
    x = (torch.arange(width, device=device) + 0.5) * stride
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).view(-1, 2)

"""Our backbone as torchvision's detectors want one, and the select loss beside theirs. Needs no torchvision itself.

A detector of torchvision calls ``backbone(images)``, takes an ordered dict of feature maps, finest first, and reads
``backbone.out_channels``. Its ``transform`` normalises, resizes and pads before that, so the select label has to be
made from what the transform returns, not from what the data set gave.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_deploy.model.backbone import Backbone, BackboneOutput
from spt_deploy.training.select_labels import select_loss


class FeaturesWithPyramid(nn.Module):
    """A backbone, a LayerNorm on each of its maps as in Swin's own detectors, and a feature pyramid over them.

    Attributes:
        out_channels: of every map of the pyramid; torchvision's detectors read it.
        found: what the backbone found in the last batch; None before the first.
    """

    def __init__(self, backbone: Backbone, pyramid: nn.Module, out_channels: int) -> None:
        """See `FeaturesWithPyramid`.

        Args:
            backbone: with any ``spa_stages``.
            pyramid: takes an ordered dict of maps and gives one, as ``torchvision.ops.FeaturePyramidNetwork`` does.
            out_channels: of the pyramid.
        """
        super().__init__()
        self.backbone, self.pyramid, self.out_channels = backbone, pyramid, out_channels
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels_of(backbone))
        self.found: BackboneOutput | None = None

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """``images`` B x 3 x H x W, normalised; maps ``"0"`` to ``"3"``, strides 4 to 32, and what the pyramid adds."""
        self.found = self.backbone(images)
        maps = OrderedDict(
            (str(i), norm(tokens).permute(0, 3, 1, 2))
            for i, (norm, tokens) in enumerate(zip(self.norms, self.found.tokens, strict=True))
        )
        out: OrderedDict[str, Tensor] = self.pyramid(maps)
        return out


class SelectLoss:
    """The select loss of the batch that a detector has just seen; not yet multiplied by alpha."""

    def __init__(self, transform: nn.Module, features: FeaturesWithPyramid) -> None:
        """Listen to a detector.

        Args:
            transform: the detector's own, ``GeneralizedRCNNTransform``.
            features: the detector's backbone.
        """
        self._features = features
        self._masks: Tensor | None = None
        transform.register_forward_hook(self._keep_masks)

    def __call__(self) -> Tensor:
        """Scalar float32, after a forward pass in training mode.

        Raises:
            RuntimeError: when there was none.
        """
        if self._masks is None or self._features.found is None:
            raise RuntimeError(
                "the detector has seen no targets; call it with images and targets before the select loss"
            )
        known = torch.ones(len(self._masks), dtype=torch.bool, device=self._masks.device)
        return select_loss(self._features.found, self._masks, known)

    def _keep_masks(self, transform: nn.Module, given: tuple[Any, ...], result: tuple[Any, Any]) -> None:
        images, targets = result
        self._masks = None if targets is None else union_of_masks(targets, tuple(images.tensors.shape[-2:]))


def channels_of(backbone: Backbone) -> list[int]:
    """Channels of the four maps."""
    return [backbone.config.stage_width(stage) for stage in (1, 2, 3, 4)]


def union_of_masks(targets: Sequence[Mapping[str, Tensor]], size: tuple[int, int]) -> Tensor:
    """Where any object of each image is, in pixels of the padded batch.

    Args:
        targets: of each image ``masks``, n x h x w, non-zero in the object; n may be 0.
        size: (height, width) of the batch; images lie in the upper left corner.

    Returns:
        B x height x width uint8.
    """
    unions = []
    for target in targets:
        union = (target["masks"] != 0).any(0).to(torch.uint8)
        unions.append(F.pad(union, (0, size[1] - union.shape[1], 0, size[0] - union.shape[0])))
    return torch.stack(unions)

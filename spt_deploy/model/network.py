"""A whole model: backbone and the head of its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from spt_deploy.config import ModelConfig
from spt_deploy.model.backbone import Backbone, BackboneOutput
from spt_deploy.model.heads import DetectHead, LabelHead


@dataclass(frozen=True)
class ModelOutput:
    """Outputs of the task by name (see the heads), and what the backbone found on the way."""

    task: dict[str, Tensor]
    features: BackboneOutput

    def named(self) -> dict[str, Tensor]:
        """The outputs of a deployed model in their fixed order: the task's, then ``select_ratio`` and ``selection``.

        Under static packing ``overflow`` follows, B x SPA blocks int64: tokens for which there was no room.
        """
        if not self.features.kept:
            return self.task
        named = self.task | {"select_ratio": self.features.select_ratio, "selection": self.features.selection}
        return named | {"overflow": self.features.overflow} if self.features.wanted else named


class SptModel(nn.Module):
    """Backbone and head; ``model.config`` says which."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.head: LabelHead | DetectHead = DetectHead(config) if config.task == "detect" else LabelHead(config)

    def forward(
        self, images: Tensor, forced: Sequence[Tensor] | None = None, threshold: Tensor | None = None
    ) -> ModelOutput:
        """Run the model.

        Args:
            images: B x 3 x H x W float32, RGB, normalised; H and W from 32 pixels.
            forced: see ``Backbone.forward``; so ``threshold``.
            threshold: scalar float32, in logits.
        """
        features = self.backbone(images, forced, threshold)
        if isinstance(self.head, DetectHead):
            return ModelOutput(self.head(features.tokens, (images.shape[2], images.shape[3])), features)
        return ModelOutput(self.head(features.tokens, features.token_weights), features)

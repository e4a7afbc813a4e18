"""The select label in place of the selection: what the paper's figure 4 trains with.

Source: "Context-Aware Token Selection and Packing", arXiv 2410.23608, figure 4.
"""

from __future__ import annotations

from torch import Tensor

from spt_deploy.config import BackboneConfig
from spt_deploy.model.shapes import PATCH
from spt_deploy.training.select_labels import token_labels


def label_masks(config: BackboneConfig, masks: Tensor, has_mask: Tensor) -> list[Tensor]:
    """What each SPA block keeps when the label decides, for ``Backbone.forward(forced=...)``.

    Args:
        config: of the backbone.
        masks: B x H x W, non-zero where an object is.
        has_mask: B bool; an image where nothing is known of objects keeps every token, as a Swin would.

    Returns:
        For each SPA block in order B x h x w bool.
    """
    strides = [PATCH * 2 ** (int(name.split(".")[0]) - 1) for name in config.spa_blocks]
    kept = {stride: (token_labels(masks, stride) > 0) | ~has_mask[:, None, None] for stride in set(strides)}
    return [kept[stride] for stride in strides]


__all__ = ["label_masks"]

"""Select labels, the select loss, and how well a selection follows its label.

A token's label is 1 if any pixel of it lies in an object: the pixel mask, max-pooled to the token's scale.

Source: "Context-Aware Token Selection and Packing", arXiv 2410.23608, multi-scale supervised selection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_deploy.model.backbone import BackboneOutput
from spt_deploy.model.shapes import PATCH


def token_labels(masks: Tensor, stride: int) -> Tensor:
    """Pixel masks at the scale of tokens.

    Args:
        masks: B x H x W, any dtype, non-zero where an object is.
        stride: pixels of a side of one token.

    Returns:
        B x h x w float32 of 0 and 1, h = H/stride and w = W/stride rounded up.
    """
    objects = (masks != 0).float()[:, None]
    return F.max_pool2d(objects, stride, ceil_mode=True)[:, 0]


def supervised_strides(features: BackboneOutput) -> tuple[int, ...]:
    """Pixels a token of each supervised score map: the gate's, a scale finer than the first SPA stage; the blocks'."""
    strides = tuple(PATCH * 2 ** (stage - 1) for stage in features.spa_stages)
    return strides if features.gate_scores is None else (strides[0] // 2, *strides)


def select_loss(features: BackboneOutput, masks: Tensor, has_mask: Tensor) -> Tensor:
    """Binary cross-entropy of each score map against its label: mean over tokens, sum over maps.

    Args:
        features: what the backbone found in B images.
        masks: B x H x W, non-zero where an object is.
        has_mask: B bool; images where nothing is known of objects count for nothing.

    Returns:
        Scalar float32, not yet multiplied by alpha; 0 where no image has a mask or the model has no score map.
    """
    total = torch.zeros((), device=masks.device)
    if not features.scores or not bool(has_mask.any()):
        return total
    labels = {stride: token_labels(masks[has_mask], stride) for stride in set(supervised_strides(features))}
    for scores, stride in zip(features.supervised_scores, supervised_strides(features), strict=True):
        total = total + F.binary_cross_entropy_with_logits(scores[has_mask].float(), labels[stride])
    return total


class SelectionMeter:
    """Counts over many images: what each SPA block kept, and what it should have kept."""

    def __init__(self, blocks: tuple[str, ...]) -> None:
        """``blocks`` are the names of the SPA blocks in order, ``("3.1", ...)``."""
        self.blocks = blocks
        # Per block: tokens, kept; and in images with a mask: tokens, kept, in an object, both.
        self._counts = torch.zeros(len(blocks), 6, dtype=torch.float64)

    def update(self, features: BackboneOutput, masks: Tensor, has_mask: Tensor) -> None:
        """Add a batch; arguments as for ``select_loss``."""
        if not self.blocks:
            return
        strides = [PATCH * 2 ** (stage - 1) for stage in features.spa_stages]
        labels = {stride: token_labels(masks, stride) > 0 for stride in set(strides)}
        rows = []
        for kept, stride in zip(features.kept, strides, strict=True):
            known, objects = kept[has_mask], labels[stride][has_mask]
            size, known_size = torch.tensor(kept.numel()), torch.tensor(known.numel())
            counts = (size, kept.sum(), known_size, known.sum(), objects.sum(), (known & objects).sum())
            rows.append(torch.stack([c.to(kept.device) for c in counts]))
        self._counts += torch.stack(rows).double().cpu()

    def state(self) -> Tensor:
        """What was counted so far, fit to be sent to another process."""
        return self._counts

    def merge(self, state: Tensor) -> None:
        """Add what another meter of the same blocks has counted."""
        self._counts += state

    def select_ratio(self) -> dict[str, float]:
        """Share of tokens that each block kept."""
        return self._ratio(1, 0)

    def object_ratio(self) -> dict[str, float]:
        """Share of tokens in an object at each SPA stage's scale, ``stride 16`` and the like; empty without masks."""
        by_block = self._ratio(4, 2)
        return {f"stride {PATCH * 2 ** (int(name[0]) - 1)}": ratio for name, ratio in by_block.items()}

    def precision(self) -> dict[str, float]:
        """Of the tokens that each block kept, the share that lies in an object; a block that kept none is left out."""
        return self._ratio(5, 3)

    def recall(self) -> dict[str, float]:
        """Of the tokens that lie in an object, the share that each block kept."""
        return self._ratio(5, 4)

    def mean_select_ratio(self) -> float | None:
        """Mean of the blocks' ratios; None without SPA blocks or images."""
        ratios = list(self.select_ratio().values())
        return sum(ratios) / len(ratios) if ratios else None

    def _ratio(self, part: int, whole: int) -> dict[str, float]:
        counts = zip(self.blocks, self._counts.tolist(), strict=True)
        return {name: row[part] / row[whole] for name, row in counts if row[whole]}

"""Overlap of boxes, as the assignment and the loss of the detector need it; boxes are xyxy in pixels throughout."""

from __future__ import annotations

import torch
from torch import Tensor

# Square pixels, in the place of an area of 0: a box without area then overlaps nothing and has a finite gradient.
LEAST_AREA = 1e-7


def areas(boxes: Tensor) -> Tensor:
    """Square pixels of boxes ... x 4; 0 where a box ends before it begins."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def iou_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair.

    Args:
        first: n x 4 float32.
        second: m x 4 float32.

    Returns:
        n x m float32 in [0, 1].
    """
    top_left = torch.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    common = areas(torch.cat([top_left, bottom_right], dim=-1))
    union = areas(first)[:, None] + areas(second)[None] - common
    return common / union.clamp(min=LEAST_AREA)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU of boxes in pairs: IoU less the share of the smallest box around both that neither covers.

    Args:
        first: n x 4 float32.
        second: n x 4 float32.

    Returns:
        n float32 in [-1, 1]. Two equal boxes without area have 0, and so a gradient that is finite.

    Source: "Generalized Intersection over Union", arXiv 1902.09630, algorithm 1.
    """
    common = areas(
        torch.cat([torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])], dim=1)
    )
    around = areas(
        torch.cat([torch.minimum(first[:, :2], second[:, :2]), torch.maximum(first[:, 2:], second[:, 2:])], dim=1)
    )
    union = areas(first) + areas(second) - common
    return common / union.clamp(min=LEAST_AREA) - (around - union) / around.clamp(min=LEAST_AREA)

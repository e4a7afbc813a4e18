"""Which points of the detection head learn which object: the assignment follows what the head already does well.

A point's alignment with an object is t = s^alpha * u^beta, where s is its score for the object's class and u the IoU of
its box with the object's. The best points inside each object learn it. Nothing says which level of the pyramid an
object belongs to: beta is high, so the level whose boxes fit best gets it, from random weights as in a fine-tune.

Source: "TOOD: Task-aligned One-stage Object Detection", arXiv 2108.07755, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spt_deploy.training.box_geometry import iou_matrix

ALPHA = 1.0  # the paper's
# The paper has 6, for models that begin with ImageNet weights. From random weights 4 learns faster, for more points of
# an object then have a quality that counts: AP 0.47 to 0.52 against 0.30 to 0.45 after 200 steps on examples/02_detect.
BETA = 4.0
POINTS_PER_OBJECT = 13  # the paper's m


class Assignment(NamedTuple):
    """What each of P points learns.

    Attributes:
        objects: P int64, the object a point learns; -1 where it is background.
        quality: P float32 in [0, 1], the score that the object's class should have there; 0 for background.
    """

    objects: Tensor
    quality: Tensor


@torch.no_grad()
def assign(
    scores: Tensor, predicted: Tensor, points: Tensor, stride: float, boxes: Tensor, labels: Tensor
) -> Assignment:
    """Assign the objects of one image.

    Args:
        scores: P x classes float32 in [0, 1].
        predicted: P x 4 float32, the boxes of the points, xyxy in pixels.
        points: P x 2 float32, x and y in pixels.
        stride: pixels between points of the finest level. An object smaller than that may lie between points: it is
            taken to be so large that at least one point of the finest level lies inside.
        boxes: n x 4 float32 of the objects, each with an area; n may be 0.
        labels: n int64, their classes.

    Returns:
        At most `POINTS_PER_OBJECT` points an object, all of them inside it. A point that is among the best of several
        objects learns the one that its box overlaps most. ``quality`` is the alignment, scaled so that the best point
        of an object has the highest IoU among the object's points (the paper's normalised t).
    """
    count = len(points)
    if not len(boxes):
        return Assignment(
            torch.full((count,), -1, dtype=torch.int64, device=points.device),
            torch.zeros(count, device=points.device),
        )
    overlap = iou_matrix(boxes, predicted)  # n x P
    alignment = scores.t()[labels].pow(ALPHA) * overlap.pow(BETA)
    inside = points_inside(points, boxes, stride)
    # Below every alignment, so that a point outside is chosen only where no other is left, and taken back below.
    best = alignment.masked_fill(~inside, -1.0).topk(min(POINTS_PER_OBJECT, count), dim=1).indices
    chosen = torch.zeros_like(inside).scatter_(1, best, True) & inside
    winner = overlap.masked_fill(~chosen, -1.0).argmax(0)  # P; any object where no object chose the point
    taken = chosen.any(0)
    chosen &= torch.arange(len(boxes), device=points.device)[:, None] == winner
    alignment, overlap = alignment * chosen, overlap * chosen
    highest = alignment.amax(1, keepdim=True)
    scale = overlap.amax(1, keepdim=True) / highest.clamp(min=torch.finfo(torch.float32).tiny)
    quality = (alignment * scale).sum(0).clamp(max=1.0)
    return Assignment(torch.where(taken, winner, -1), quality)


def points_inside(points: Tensor, boxes: Tensor, least_side: float) -> Tensor:
    """Which points lie in which boxes: n x P bool.

    Args:
        points: P x 2, x and y in pixels.
        boxes: n x 4, xyxy in pixels.
        least_side: pixels; a shorter side of a box is taken to be this long, about the same centre.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(min=least_side / 2)
    return ((points[None] - centres[:, None]).abs() <= reach[:, None]).all(-1)

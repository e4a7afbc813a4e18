"""The loss of the detection head: quality focal loss on the class scores, GIoU loss on the boxes.

Everything is float32, whatever the network computes in: an IoU in half precision has three digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_deploy.model.heads import DETECT_STRIDES, DetectMaps
from spt_deploy.training.assignment import assign, points_inside
from spt_deploy.training.box_geometry import areas, generalised_iou

FOCUS = 2.0  # beta of the quality focal loss, the paper's
BOX_WEIGHT = 2.0  # of the GIoU loss beside the class loss, as TOOD weighs them


def detection_loss(
    maps: DetectMaps, boxes: Sequence[Tensor], labels: Sequence[Tensor], crowd: Sequence[Tensor]
) -> Tensor:
    """Loss of B images.

    Args:
        maps: what the head said.
        boxes: of each image, n x 4 float32, xyxy in pixels of the input; one without area is left out.
        labels: of each image, n int64.
        crowd: of each image, n bool. Such a box marks a region where objects of its class may lie uncounted: it is not
            learnt, and background inside it has no loss for that class.

    Returns:
        Scalar float32: the sums over points, divided by the sum of the batch's quality (`assignment`), or by 1 where
        that is less, so that a batch with hardly an object does not count the more for it.
    """
    logits, predicted = maps.logits.float(), maps.corners.float()
    scores = logits.detach().sigmoid()
    targets, counted = torch.zeros_like(logits), torch.ones_like(logits)
    chosen, wanted, weights = [], [], []
    for image, (image_boxes, image_labels, image_crowd) in enumerate(zip(boxes, labels, crowd, strict=True)):
        real = ~image_crowd & (areas(image_boxes) > 0)
        mine, classes = image_boxes[real], image_labels[real]
        found = assign(scores[image], predicted[image].detach(), maps.points, DETECT_STRIDES[0], mine, classes)
        positive = (found.objects >= 0).nonzero()[:, 0]
        objects, quality = found.objects[positive], found.quality[positive]
        for region, label in zip(image_boxes[image_crowd], image_labels[image_crowd], strict=True):
            counted[image, points_inside(maps.points, region[None], 0.0)[0], label] = 0.0
        targets[image, positive, classes[objects]] = quality
        counted[image, positive, classes[objects]] = 1.0
        chosen.append(predicted[image, positive])
        wanted.append(mine[objects])
        weights.append(quality)
    weight = torch.cat(weights)
    class_loss = (quality_focal_loss(logits, targets) * counted).sum()
    # Over no point at all this is a 0 that still reaches the box branch: every parameter has a gradient in every step.
    box_loss = (weight * (1 - generalised_iou(torch.cat(chosen), torch.cat(wanted)))).sum()
    total: Tensor = (class_loss + BOX_WEIGHT * box_loss) / weight.sum().clamp(min=1.0)
    return total


def quality_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """|target - sigmoid(logit)|^beta times binary cross-entropy, element by element.

    Args:
        logits: any shape, float32.
        targets: of the same shape, in [0, 1].

    Source: "Generalized Focal Loss", arXiv 2006.04388, eq. 4.
    """
    distance = (targets - logits.sigmoid()).abs()
    return distance.pow(FOCUS) * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

"""Do two artefacts give a user the same answers? Counted on final answers, after thresholds and suppression.

This is for artefacts that are not held to each other element by element, such as an int8 file and its float32 origin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spt_deploy.config import Task
from spt_deploy.postprocess import Postprocessing, detections_kept, sigmoid
from spt_deploy.runtimes.base import Arrays

SAME_BOX = 0.5  # intersection over union, as AP50 and PASCAL VOC take two boxes for the same object
WHAT_AGREES = {"classify": "images with the same top class", "multilabel": "classes found", "detect": "objects found"}


class Agreement(NamedTuple):
    """How many answers are the same.

    Attributes:
        agreed: answers that both give, each counted once of ``classify`` and for both sides of the other tasks.
        counted: all answers: images of ``classify``; classes or objects of both sides together of the other tasks.
    """

    agreed: int = 0
    counted: int = 0

    @property
    def share(self) -> float:
        """Agreed of counted, in [0, 1]: accuracy, or the F1 score of one side against the other; 0 of no answers."""
        return self.agreed / self.counted if self.counted else 0.0

    def plus(self, other: Agreement) -> Agreement:
        """Of both batches."""
        return Agreement(self.agreed + other.agreed, self.counted + other.counted)


def agreement(task: Task, reference: Arrays, candidate: Arrays) -> Agreement:
    """Compare the answers for one batch.

    Args:
        task: of both.
        reference: the outputs of ``Runner.infer``; a detection has a score of ``Postprocessing.conf`` or more and
            outlives suppression, and so has a class of ``multilabel``.
        candidate: likewise.

    Returns:
        Of ``classify`` images with the same best class, of ``multilabel`` classes that both find, of ``detect`` objects
        of one class whose boxes overlap by ``SAME_BOX`` or more, each matched once.
    """
    if task == "classify":
        same = reference["logits"].argmax(1) == candidate["logits"].argmax(1)
        return Agreement(int(same.sum()), same.size)
    conf = Postprocessing().conf
    if task == "multilabel":
        ours, theirs = (sigmoid(np.asarray(side["logits"])) >= conf for side in (reference, candidate))
        return Agreement(2 * int((ours & theirs).sum()), int(ours.sum() + theirs.sum()))
    total = Agreement()
    for row in range(len(reference["boxes"])):
        (our_boxes, our_labels), (their_boxes, their_labels) = (_objects(side, row) for side in (reference, candidate))
        overlap = _overlaps(our_boxes, their_boxes)
        overlap[our_labels[:, None] != their_labels[None]] = 0
        matched = 0
        for _ in range(min(overlap.shape)):
            best = np.unravel_index(int(overlap.argmax()), overlap.shape)
            if overlap[best] < SAME_BOX:
                break
            overlap[best[0]], overlap[:, best[1]] = 0, 0
            matched += 1
        total = total.plus(Agreement(2 * matched, len(our_boxes) + len(their_boxes)))
    return total


def _objects(outputs: Arrays, row: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Boxes n x 4 and labels n of what was found in an image."""
    boxes, scores, labels = (np.asarray(outputs[name][row]) for name in ("boxes", "scores", "labels"))
    answer = Postprocessing()
    kept = detections_kept(boxes, scores, labels, answer.conf, answer.iou)
    return boxes[kept].astype(np.float64), labels[kept].astype(np.int64)


def _overlaps(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of every pair, n x m; the boxes have areas."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clip(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return np.asarray(common / (areas[0][:, None] + areas[1][None] - common), dtype=np.float64)

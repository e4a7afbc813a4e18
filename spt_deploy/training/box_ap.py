"""COCO's average precision of boxes, for any data set: the ground truth is built in memory.

The arithmetic is faster-coco-eval's, which equals pycocotools': IoU 0.50 to 0.95, at most 100 boxes a class and image,
objects small below 32 x 32 pixels and large above 96 x 96 of the source image, crowds neither found nor missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.datasets.objects import Objects
from spt_deploy.errors import InputError, RuntimeMissingError

_UNDEFINED = -1.0  # COCO's way of saying that there is no ground truth of a kind


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """What a detector says of one image, in any order.

    Attributes:
        boxes: n x 4, xyxy in pixels of the source image.
        scores: n, in [0, 1].
        labels: n, integers.
    """

    boxes: npt.NDArray[np.floating[Any]]
    scores: npt.NDArray[np.floating[Any]]
    labels: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """One image of an evaluation.

    Attributes:
        truth: the objects in it, boxes in pixels of the source image.
        found: what the detector said.
    """

    truth: Objects
    found: FoundObjects


@dataclass(frozen=True)
class BoxAp:
    """Average precisions of boxes.

    Attributes:
        metrics: ``AP``, ``AP50``, ``AP75``, and ``APS``, ``APM``, ``APL`` of small, medium and large objects, each in
            [0, 1]; a size of which there is no object is left out.
        per_class: AP by label; a class of which there is no object is left out.
    """

    metrics: dict[str, float]
    per_class: dict[int, float]


def require_faster_coco_eval() -> None:
    """Nothing, where `box_average_precision` can compute.

    Raises:
        RuntimeMissingError: when faster-coco-eval is not installed.
    """
    try:
        import faster_coco_eval  # noqa: F401  only whether it is there
    except ImportError as error:
        raise RuntimeMissingError(
            "average precision of boxes needs faster-coco-eval; install it with: pip install 'spt-deploy[train]'"
        ) from error


def box_average_precision(images: Sequence[ScoredImage]) -> BoxAp:
    """Evaluate a detector.

    Args:
        images: at least one of them with an object that is no crowd. Their order decides between boxes of equal score.

    Raises:
        InputError: when there is no such object, for then there is no AP.
        RuntimeMissingError: when faster-coco-eval is not installed.
    """
    require_faster_coco_eval()
    from faster_coco_eval import COCO, COCOeval_faster

    if not any((~image.truth.crowd).any() for image in images):
        raise InputError(
            f"none of the {len(images)} validation images has an object, so there is no AP; give some that have"
        )
    truth = COCO(_ground_truth(images))
    evaluation = COCOeval_faster(truth, truth.loadRes(_results(images)), "bbox", print_function=lambda text: None)
    evaluation.run()
    values = evaluation.stats_as_dict
    names = {"AP": "all", "AP50": "50", "AP75": "75", "APS": "small", "APM": "medium", "APL": "large"}
    metrics = {name: float(values[f"AP_{key}"]) for name, key in names.items()}
    # IoU x recall x class x size x most boxes: all sizes, 100 boxes.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    per_class = {}
    for place, label in enumerate(evaluation.params.catIds):
        known = precision[:, :, place]
        if (known > _UNDEFINED).any():
            per_class[int(label)] = float(known[known > _UNDEFINED].mean())
    return BoxAp({name: value for name, value in metrics.items() if value != _UNDEFINED}, per_class)


def _ground_truth(images: Sequence[ScoredImage]) -> dict[str, Any]:
    """A COCO document of the objects; images and annotations are numbered from 1, for a 0 would mean no match."""
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        truth = image.truth
        columns = zip(
            _xywh(truth.boxes), truth.labels.tolist(), truth.crowd.tolist(), truth.areas.tolist(), strict=True
        )
        for box, label, crowd, area in columns:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in _labels(images)],
    }


def _results(images: Sequence[ScoredImage]) -> list[dict[str, Any]]:
    """Boxes of classes that have an object somewhere; those of other classes count for nothing in COCO's AP."""
    known = set(_labels(images))
    return [
        {"image_id": number, "category_id": label, "bbox": box, "score": score}
        for number, image in enumerate(images, start=1)
        for box, score, label in zip(
            _xywh(image.found.boxes), image.found.scores.tolist(), image.found.labels.tolist(), strict=True
        )
        if label in known
    ]


def _labels(images: Sequence[ScoredImage]) -> list[int]:
    return sorted({label for image in images for label in image.truth.labels.tolist()})


def _xywh(boxes: npt.NDArray[np.floating[Any]]) -> list[list[float]]:
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    values: list[list[float]] = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    return values

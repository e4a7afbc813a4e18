"""From a runner's named arrays to answers a person or a program can use: the one implementation that
inference, validation and training share.

The graph ends in static shapes (DESIGN section 3); what depends on the data follows here: softmax and the
best five, sigmoid and a threshold, class-wise NMS on the K boxes, and the way back to source pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.config import ModelConfig, mask_output
from spt_deploy.errors import InputError, RuntimeMissingError, UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.preprocess import Preprocessing

Floats = npt.NDArray[np.floating[Any]]

_MANY_CLASSES = 100
TOP_CLASSES = 5  # answers of a classifier; top-5 is what its accuracy is quoted at
OUTPUTS_OF_TASK = {"classify": ("logits",), "multilabel": ("logits",), "detect": ("boxes", "scores", "labels")}


@dataclass(frozen=True)
class Classification:
    """A class the whole image was given; ``score`` in [0, 1]."""

    label: int
    name: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a score that is no number is ``None``."""
        return {"label": self.label, "name": self.name, "score": _rounded(self.score, 5)}


@dataclass(frozen=True)
class Detection:
    """An object; ``box`` is x0, y0, x1, y1 in pixels of the source image, ``score`` in [0, 1]."""

    box: tuple[float, float, float, float]
    label: int
    name: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a hundredth of a pixel is finer than any detector."""
        box = [_rounded(side, 2) for side in self.box]
        return {"label": self.label, "name": self.name, "score": _rounded(self.score, 5), "box": box}


@dataclass(frozen=True, eq=False)  # arrays are not equal or unequal as a whole
class Prediction:
    """What a model says of one image.

    Attributes:
        classes: best first; ``None`` when the task is ``detect``.
        detections: best first; ``None`` when the task is not ``detect``.
        select_ratio: share of tokens that each SPA block kept, in [0, 1], in block order; empty without SPA blocks.
        overflow: tokens of each SPA block that static packing had no room for; empty of other packings.
        selection: h x w float32 in [0, 1], covering the model's input: the share of SPA blocks that kept each
            token; None when the artefact does not say.
        masks: h x w bool, covering the model's input, of the SPA blocks that were asked for: the tokens that each kept.
        is_finite: whether the model's logits, or its scores and the boxes of its answer, are all numbers; else NaN or
            an infinity is among them, and the answer means nothing.
    """

    classes: tuple[Classification, ...] | None = None
    detections: tuple[Detection, ...] | None = None
    select_ratio: tuple[float, ...] = ()
    overflow: tuple[int, ...] = ()
    selection: npt.NDArray[np.float32] | None = None
    masks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    is_finite: bool = True

    @property
    def mean_select_ratio(self) -> float | None:
        """Over the SPA blocks; None when there are none or one is no number."""
        if not self.select_ratio:
            return None
        mean = sum(self.select_ratio) / len(self.select_ratio)
        return mean if math.isfinite(mean) else None

    def to_supervision(self) -> Any:
        """The detections as ``supervision.Detections``, for that library's trackers, zones and drawing.

        Raises:
            UsageError: when the task is not ``detect``.
            RuntimeMissingError: when supervision is not installed.
        """
        if self.detections is None:
            raise UsageError("only detections become those of supervision; this model's task is another")
        try:
            import supervision
        except ImportError as error:
            raise RuntimeMissingError("supervision is not installed; pip install supervision") from error
        found = self.detections
        return supervision.Detections(
            xyxy=np.array([each.box for each in found], dtype=np.float32).reshape(-1, 4),
            confidence=np.array([each.score for each in found], dtype=np.float32),
            class_id=np.array([each.label for each in found], dtype=int),
            data={"class_name": np.array([each.name for each in found], dtype=str)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the selection map and masks; a value that is no number is ``None``."""
        values: dict[str, Any] = {}
        if self.detections is not None:
            values["detections"] = [detection.to_dict() for detection in self.detections]
        if self.classes is not None:
            values["classes"] = [entry.to_dict() for entry in self.classes]
        values["select_ratio"] = [_rounded(ratio, 4) for ratio in self.select_ratio]
        if self.overflow:
            values["overflow"] = list(self.overflow)
        return values


@dataclass(frozen=True)
class Postprocessing:
    """The thresholds of an answer.

    Attributes:
        conf: least score of a detection or of a multilabel class, in [0, 1]; a classifier's best five ignore it.
        iou: boxes of one class that overlap more than this are one object, in [0, 1].
        masks: SPA blocks whose masks a prediction carries, ``3.5`` and the like; see ``Runner.with_masks``.

    Raises:
        UsageError: when a threshold is outside [0, 1].
    """

    conf: float = 0.25
    iou: float = 0.5
    masks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} is {value}; expected a number from 0 to 1")

    def apply(
        self, arrays: Mapping[str, npt.NDArray[Any]], facts: ModelFacts, source_sizes: Sequence[tuple[int, int]]
    ) -> list[Prediction]:
        """One prediction an image.

        Args:
            arrays: the outputs of ``Runner.infer`` for a batch of B images.
            facts: of the model that was run.
            source_sizes: height and width in pixels of the B images before preprocessing.

        Raises:
            InputError: when an output of the model's task is missing or its batch is not ``len(source_sizes)``.
        """
        wanted = OUTPUTS_OF_TASK[facts.model.task]
        masks = {block: mask_output(block) for block in self.masks}
        _check(arrays, (*wanted, *masks.values()), len(source_sizes))
        ratios, maps, overflow = (arrays.get(name) for name in ("select_ratio", "selection", "overflow"))
        predictions = []
        for row, size in enumerate(source_sizes):
            classes = detections = None
            if facts.model.task == "classify":
                classes = best_classes(arrays["logits"][row], facts.model)
                is_finite = np.isfinite(arrays["logits"][row]).all()
            elif facts.model.task == "multilabel":
                classes = present_classes(arrays["logits"][row], facts.model, self.conf)
                is_finite = np.isfinite(arrays["logits"][row]).all()
            else:
                boxes, scores, labels = (arrays[name][row] for name in wanted)
                detections = self._objects(boxes, scores, labels, facts.model, facts.preprocessing, size)
                is_finite = np.isfinite(scores).all() and np.isfinite(boxes[scores >= self.conf]).all()
            predictions.append(
                Prediction(
                    classes=classes,
                    detections=detections,
                    select_ratio=() if ratios is None else tuple(float(ratio) for ratio in ratios[row]),
                    overflow=() if overflow is None else tuple(int(count) for count in overflow[row]),
                    # A copy, so that one kept map does not keep the whole batch alive.
                    selection=None if maps is None else np.array(maps[row], dtype=np.float32),
                    masks={block: np.array(arrays[name][row], dtype=np.bool_) for block, name in masks.items()},
                    is_finite=bool(is_finite),
                )
            )
        return predictions

    def _objects(
        self,
        boxes: Floats,
        scores: Floats,
        labels: npt.NDArray[Any],
        model: ModelConfig,
        preprocessing: Preprocessing,
        size: tuple[int, int],
    ) -> tuple[Detection, ...]:
        kept = detections_kept(boxes, scores, labels, self.conf, self.iou)
        source = preprocessing.boxes_to_source(boxes[kept], size)
        # What lay wholly in the letterbox's border has no area once clipped to the source.
        visible = (source[:, 2] > source[:, 0]) & (source[:, 3] > source[:, 1])
        return tuple(
            Detection(
                box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                label=int(labels[index]),
                name=model.class_names[int(labels[index])],
                score=float(scores[index]),
            )
            for index, box in zip(kept[visible], source[visible], strict=True)
        )


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Along the last axis, in float64; equal logits of any size give equal shares, not NaN."""
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # an infinite logit gives NaN, which is the honest answer
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    """In float64, without overflow on either side."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1.0, powers) / (1.0 + powers), dtype=np.float64)


def best_classes(logits: Floats, model: ModelConfig, count: int = TOP_CLASSES) -> tuple[Classification, ...]:
    """The ``count`` classes with the highest softmax score, or all where there are fewer; ties by label.

    Args:
        logits: one value a class.
        model: gives the class names.
        count: how many.
    """
    scores = softmax(logits)
    if len(scores) > _MANY_CLASSES and np.isfinite(scores).all():
        # All that reach the last of the best ones' score: sorting only these is faster, and ties fall as ever.
        least = np.partition(scores, -count)[-count]
        few = np.flatnonzero(scores >= least)
        order = few[np.argsort(-scores[few], kind="stable")[:count]]
        return tuple(Classification(int(i), model.class_names[int(i)], float(scores[i])) for i in order)
    return _ranked(scores, model, count)


def present_classes(logits: Floats, model: ModelConfig, conf: float) -> tuple[Classification, ...]:
    """The classes with a sigmoid score of at least ``conf``, best first.

    Args:
        logits: one value a class.
        model: gives the class names.
        conf: in [0, 1].
    """
    scores = sigmoid(logits)
    return _ranked(scores, model, int((scores >= conf).sum()))


def detections_kept(
    boxes: Floats, scores: Floats, labels: npt.NDArray[Any], conf: float, iou: float
) -> npt.NDArray[np.int64]:
    """Which of a graph's K boxes are objects: class-wise greedy non-maximum suppression.

    Args:
        boxes: K x 4, xyxy.
        scores: K, in [0, 1]; boxes below ``conf`` are out.
        labels: K, integers; only boxes of one label suppress each other.
        conf: in [0, 1].
        iou: a box goes when a better one of its class overlaps it by more than this.

    Returns:
        Indices into the K boxes, best score first, ties in the order of the boxes. Boxes without area, or with a
        value that is no number, are never among them.
    """
    import cv2

    sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    candidates = np.flatnonzero(sound & (scores >= conf))  # a score that is NaN compares false
    if not len(candidates):
        return candidates.astype(np.int64)
    corners = np.asarray(boxes[candidates], dtype=np.float64)
    top_left_and_size = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    # OpenCV's own threshold excludes equality and ours does not: the scores are already chosen, so it gets none.
    kept = cv2.dnn.NMSBoxesBatched(
        top_left_and_size,  # type: ignore[arg-type]  # the stub asks for a list of tuples; arrays are converted faster
        scores[candidates].astype(np.float32),  # type: ignore[arg-type]
        labels[candidates].astype(np.int32),  # type: ignore[arg-type]
        -1.0,
        float(iou),
    )
    return candidates[np.asarray(kept, dtype=np.int64).reshape(-1)].astype(np.int64)


def _ranked(scores: npt.NDArray[np.float64], model: ModelConfig, count: int) -> tuple[Classification, ...]:
    order = np.argsort(-scores, kind="stable")[:count]  # NaN sorts last
    return tuple(Classification(int(i), model.class_names[int(i)], float(scores[i])) for i in order)


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _check(arrays: Mapping[str, npt.NDArray[Any]], wanted: Sequence[str], batch: int) -> None:
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise InputError(
            f"the model gave no output {missing[0]!r} but {', '.join(arrays) or 'none at all'}; "
            f"{', '.join(wanted)} are needed: export it again"
        )
    for name in (*wanted, "select_ratio", "selection", "overflow"):
        if name in arrays and arrays[name].shape[0] != batch:
            raise InputError(
                f"output {name!r} has shape {arrays[name].shape} for {batch} images; expected {batch} rows"
            )

"""Metrics of the tasks over many batches, on one process or several.

Where a run has several, each fills a meter of its own, and a new one that takes the ``state`` of all gives what one
process would have given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spt_deploy.datasets.dataset import Record
from spt_deploy.errors import InputError
from spt_deploy.model.network import ModelOutput
from spt_deploy.postprocess import OUTPUTS_OF_TASK, detections_kept
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.box_ap import BoxAp, FoundObjects, ScoredImage, box_average_precision, require_faster_coco_eval
from spt_deploy.training.label_ap import class_average_precision
from spt_deploy.training.loader import Batch

# Of detections that are evaluated. AP ranks all of them, so nearly all are kept; the NMS threshold is TOOD's.
AP_CONF, AP_IOU = 0.001, 0.6


class Meter(ABC):
    """A task's metrics over many batches."""

    outputs: ClassVar[tuple[str, ...]] = ()  # of the model, that the meter looks at

    def update(self, output: ModelOutput, batch: Batch) -> None:
        """Add a batch and what the model said of it."""
        self.add({name: _array(output.task[name]) for name in self.outputs}, batch)

    @abstractmethod
    def add(self, arrays: Mapping[str, npt.NDArray[Any]], batch: Batch) -> None:
        """Add a batch and what a model in any runtime said of it.

        Args:
            arrays: the outputs by name, as an exported model gives them.
            batch: of images as they are in their files, not augmented, if boxes are measured.
        """

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Metrics by name; empty before the first image.

        Raises:
            InputError: when the images hold nothing that could be measured.
        """

    def per_class(self) -> dict[int, float]:
        """The task's chief metric by label, where one class has a value; classes without an image are left out."""
        return {}

    @abstractmethod
    def state(self) -> Any:
        """What was counted so far, in plain values and arrays, fit to be sent to another process."""

    @abstractmethod
    def merge(self, state: Any) -> None:
        """Add what another meter of the same kind has counted."""


class NoMeter(Meter):
    """Measures nothing: for training steps whose metric would cost as much as the step."""

    def add(self, arrays: Mapping[str, npt.NDArray[Any]], batch: Batch) -> None:
        pass

    def result(self) -> dict[str, float]:
        return {}

    def state(self) -> None:
        return None

    def merge(self, state: None) -> None:
        pass


class TopAccuracy(Meter):
    """``top1`` and ``top5``: shares of images whose class is the best, or among the five best."""

    outputs = OUTPUTS_OF_TASK["classify"]

    def __init__(self) -> None:
        # By class: images, right at first, right among five. One row until the number of classes is known.
        self._counts = np.zeros((1, 3), dtype=np.int64)

    def add(self, arrays: Mapping[str, npt.NDArray[Any]], batch: Batch) -> None:
        logits = torch.from_numpy(np.asarray(arrays["logits"]))
        labels = batch.labels.cpu().numpy()
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices.numpy() == labels[:, None]
        counted = (labels, labels[right[:, 0]], labels[right.any(1)])
        counts = np.stack([np.bincount(each, minlength=logits.shape[1]) for each in counted], axis=1)
        self._counts = self._counts + counts

    def result(self) -> dict[str, float]:
        images, top1, top5 = self._counts.sum(0).tolist()
        return {"top1": top1 / images, "top5": top5 / images} if images else {}

    def per_class(self) -> dict[int, float]:
        return {label: right / images for label, (images, right, _) in enumerate(self._counts.tolist()) if images}

    def state(self) -> npt.NDArray[np.int64]:
        return self._counts

    def merge(self, state: npt.NDArray[np.int64]) -> None:
        self._counts = self._counts + state


class LabelPrecision(Meter):
    """``mAP``: average precision of each class over all images, mean over the classes that some image has."""

    outputs = OUTPUTS_OF_TASK["multilabel"]

    def __init__(self) -> None:
        self._scores: list[npt.NDArray[np.float32]] = []  # logits, B x classes a batch
        self._present: list[npt.NDArray[np.bool_]] = []

    def add(self, arrays: Mapping[str, npt.NDArray[Any]], batch: Batch) -> None:
        self._scores.append(np.asarray(arrays["logits"], dtype=np.float32))
        self._present.append((batch.targets > 0).cpu().numpy())

    def result(self) -> dict[str, float]:
        if not self._scores:
            return {}
        values = self.per_class()
        if not values:
            images = sum(len(scores) for scores in self._scores)
            raise InputError(f"none of the {images} validation images has a class, so there is no mAP; label them")
        return {"mAP": sum(values.values()) / len(values)}

    def per_class(self) -> dict[int, float]:
        if not self._scores:
            return {}
        return class_average_precision(np.concatenate(self._scores), np.concatenate(self._present))

    def state(self) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.bool_]]]:
        return self._scores, self._present

    def merge(self, state: tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.bool_]]]) -> None:
        self._scores += state[0]
        self._present += state[1]


class BoxPrecision(Meter):
    """COCO's ``AP``, ``AP50``, ``AP75``, ``APS``, ``APM`` and ``APL`` of boxes in source pixels (`box_ap`)."""

    outputs = OUTPUTS_OF_TASK["detect"]

    def __init__(self, preprocessing: Preprocessing, records: Sequence[Record]) -> None:
        """See `BoxPrecision`.

        Args:
            preprocessing: what the model's input comes from.
            records: of the split that is measured; the truth is what they say, and each has an ``image_id`` of its own.

        Raises:
            RuntimeMissingError: when what computes AP is not installed; better said before the images than after.
        """
        require_faster_coco_eval()
        self._preprocessing = preprocessing
        # Where nothing is known of objects, nothing a detector says can be wrong.
        self._truth = {record.image_id: record.objects for record in records if record.objects is not None}
        self._found: dict[int, FoundObjects] = {}
        self._ap: BoxAp | None = None  # of these, once it was asked for

    def add(self, arrays: Mapping[str, npt.NDArray[Any]], batch: Batch) -> None:
        self._ap = None
        for row, (image_id, size) in enumerate(zip(batch.image_ids, batch.source_sizes, strict=True)):
            if image_id not in self._truth:
                continue
            boxes, scores, labels = (arrays[name][row] for name in OUTPUTS_OF_TASK["detect"])
            kept = detections_kept(boxes, scores, labels, AP_CONF, AP_IOU)
            source = self._preprocessing.boxes_to_source(boxes[kept], size)
            visible = (source[:, 2] > source[:, 0]) & (source[:, 3] > source[:, 1])
            kept = kept[visible]
            self._found[image_id] = FoundObjects(source[visible], scores[kept], labels[kept])

    def result(self) -> dict[str, float]:
        return self._evaluated().metrics if self._found else {}

    def per_class(self) -> dict[int, float]:
        return self._evaluated().per_class if self._found else {}

    def state(self) -> dict[int, FoundObjects]:
        return self._found

    def merge(self, state: dict[int, FoundObjects]) -> None:
        self._found |= state
        self._ap = None

    def _evaluated(self) -> BoxAp:
        self._ap = self._ap or box_average_precision(self._scored())
        return self._ap

    def _scored(self) -> list[ScoredImage]:
        """By number, so that it does not matter which process saw which image, and when."""
        return [ScoredImage(self._truth[number], self._found[number]) for number in sorted(self._found)]


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """In NumPy, which has no bfloat16."""
    tensor = tensor.detach()
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy())

"""What is learnt: loss and metric of each task. The loop knows nothing else of a task.

A new task is a subclass here and a line in `TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from spt_deploy.config import Task as TaskName
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.errors import InputError, UsageError
from spt_deploy.model.heads import DetectHead, DetectMaps
from spt_deploy.model.network import ModelOutput, SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.detection_loss import detection_loss
from spt_deploy.training.loader import Batch
from spt_deploy.training.meters import BoxPrecision, LabelPrecision, Meter, NoMeter, TopAccuracy


class Task(ABC):
    """Loss, targets and metric of one task.

    Attributes:
        metric: name of the metric that chooses best.pt; in [0, 1], larger is better.
    """

    metric: ClassVar[str]

    def __init__(self, config: TrainConfig, data: DataSet) -> None:
        self._config, self._data = config, data

    def run(self, model: SptModel, batch: Batch, forced: Sequence[Tensor] | None = None) -> ModelOutput:
        """The forward pass; tasks whose loss needs more than the deployed outputs override it.

        Args:
            model: training, or evaluating.
            batch: on the model's device.
            forced: see ``Backbone.forward``.
        """
        output: ModelOutput = model(batch.images, forced)
        return output

    @abstractmethod
    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Scalar float32, the task's part of the loss; ``output`` is what ``run`` gave."""

    @abstractmethod
    def meter(self) -> Meter:
        """A new meter for validation."""

    def training_meter(self) -> Meter:
        """A new meter for training, cheap enough to be read after every step."""
        return NoMeter()


class Classify(Task):
    """One class an image: softmax cross-entropy, top-1 and top-5 accuracy."""

    metric = "top1"

    def __init__(self, config: TrainConfig, data: DataSet) -> None:
        super().__init__(config, data)
        if len(data.class_names) == 1:  # as train/images/ of other formats is taken for
            raise InputError(
                f"the only class is {data.class_names[0]}, and a classifier tells classes apart; expected the folders "
                "train/CLASS/ and val/CLASS/ of two or more"
            )

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        logits = output.task["logits"].float()
        return F.cross_entropy(logits, batch.labels, label_smoothing=self._config.label_smoothing)

    def meter(self) -> Meter:
        return TopAccuracy()

    def training_meter(self) -> Meter:
        return TopAccuracy()


class Multilabel(Task):
    """Any number of classes an image: binary cross-entropy, mean over images and classes; mean average precision."""

    metric = "mAP"

    def __init__(self, config: TrainConfig, data: DataSet) -> None:
        super().__init__(config, data)
        _require_any("classes", (bool(r.labels) for r in data.train), (bool(r.labels) for r in data.val))

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.task["logits"].float(), batch.targets)

    def meter(self) -> Meter:
        return LabelPrecision()


class Detect(Task):
    """Objects in boxes: see `detection_loss`; COCO's average precision."""

    metric = "AP"

    def __init__(self, config: TrainConfig, data: DataSet) -> None:
        super().__init__(config, data)
        _require_any("objects", map(_has_object, data.train), map(_has_object, data.val))

    def run(self, model: SptModel, batch: Batch, forced: Sequence[Tensor] | None = None) -> ModelOutput:
        """The maps of the head for the loss, and while evaluating also its K best boxes: the pass itself runs once."""
        features = model.backbone(batch.images, forced)
        head = model.head
        if not isinstance(head, DetectHead):
            raise UsageError(f"a model for {model.config.task} has no boxes to learn; make one for detect")
        maps = head.maps(features.tokens)
        outputs = dict(maps._asdict())
        if not model.training:
            outputs |= head.decode(maps, (batch.images.shape[2], batch.images.shape[3]))
        return ModelOutput(outputs, features)

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        maps = DetectMaps(*(output.task[name] for name in DetectMaps._fields))
        return detection_loss(maps, batch.boxes, batch.box_labels, batch.crowd)

    def meter(self) -> Meter:
        return BoxPrecision(Preprocessing.for_task("detect", self._config.imgsz), self._data.val)


TASKS: dict[TaskName, type[Task]] = {"classify": Classify, "multilabel": Multilabel, "detect": Detect}


def make_task(config: TrainConfig, data: DataSet) -> Task:
    """The task of a run on ``data``.

    Raises:
        InputError: when there is nothing to learn or to measure; better said before the first epoch than after.
    """
    return TASKS[config.task](config, data)


def _has_object(record: Record) -> bool:
    return record.objects is not None and bool((~record.objects.crowd).any())


def _require_any(what: str, train: Iterable[bool], val: Iterable[bool]) -> None:
    for split, those in (("training", train), ("validation", val)):
        if not any(those):
            raise InputError(f"none of the {split} images has {what}; give data whose annotations name some")


__all__ = ["TASKS", "Classify", "Detect", "Meter", "Multilabel", "Task", "make_task"]

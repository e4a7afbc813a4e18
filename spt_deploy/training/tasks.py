"""What is learnt: loss and metric of each task. The loop knows nothing else of a task.

A new task is a subclass here and a line in `TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_deploy.config import Task as TaskName
from spt_deploy.errors import UsageError
from spt_deploy.model.network import ModelOutput, SptModel
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.loader import Batch


class Meter(ABC):
    """A task's metrics over many batches."""

    @abstractmethod
    def update(self, output: ModelOutput, batch: Batch) -> None:
        """Add a batch and what the model said of it."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Metrics by name; empty before the first image."""


class Task(ABC):
    """Loss, targets and metric of one task.

    Attributes:
        metric: name of the metric that chooses best.pt; larger is better.
    """

    metric: ClassVar[str]

    def run(self, model: SptModel, batch: Batch) -> ModelOutput:
        """The forward pass of a training step; tasks whose loss needs more than the deployed outputs override it."""
        output: ModelOutput = model(batch.images)
        return output

    @abstractmethod
    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Scalar float32, the task's part of the loss."""

    @abstractmethod
    def meter(self) -> Meter:
        """A new meter."""


class Classify(Task):
    """One class an image: softmax cross-entropy, top-1 and top-5 accuracy."""

    metric = "top1"

    def __init__(self, config: TrainConfig) -> None:
        self._smoothing = config.label_smoothing

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        return F.cross_entropy(output.task["logits"].float(), batch.labels, label_smoothing=self._smoothing)

    def meter(self) -> Meter:
        return TopAccuracy()


class TopAccuracy(Meter):
    """Shares of images whose class is the best, or among the five best."""

    def __init__(self) -> None:
        self._images = 0
        self._hits = torch.zeros(2, dtype=torch.int64)

    def update(self, output: ModelOutput, batch: Batch) -> None:
        logits = output.task["logits"]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        self._hits += torch.stack([best[:, 0].sum(), best.any(1).sum()]).cpu()
        self._images += len(logits)

    def result(self) -> dict[str, float]:
        if not self._images:
            return {}
        top1, top5 = (self._hits.double() / self._images).tolist()
        return {"top1": top1, "top5": top5}


TASKS: dict[TaskName, type[Classify]] = {"classify": Classify}


def make_task(config: TrainConfig) -> Task:
    """The task of a run.

    Raises:
        UsageError: when the trainer cannot learn it yet.
    """
    if config.task not in TASKS:
        raise UsageError(f"task {config.task} cannot be trained yet; the trainer knows {', '.join(TASKS)}")
    return TASKS[config.task](config)

"""One epoch of training, one of validation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spt_deploy.errors import InputError, ResultError
from spt_deploy.interrupt import StopRequest
from spt_deploy.model.network import ModelOutput, SptModel
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.loader import Batch, Loader
from spt_deploy.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate
from spt_deploy.training.precision import MixedPrecision
from spt_deploy.training.report import Reports
from spt_deploy.training.select_labels import SelectionMeter, select_loss
from spt_deploy.training.tasks import Task

_FILES_IN_ERROR = 8  # enough to look at; a batch may be 1024


class Interrupted(Exception):  # noqa: N818 - no error: the user asked for it, and the run ends well
    """The run stopped after a step because a signal asked it to."""


@dataclass
class _Means:
    """Means over images of what each step measured."""

    images: int = 0
    loss: float = 0.0
    task_loss: float = 0.0
    select_loss: float = 0.0
    select_ratio: float = 0.0

    def add(self, images: int, loss: float, task_loss: float, select_loss: float, select_ratio: float) -> None:
        self.images += images
        for name, value in (("loss", loss), ("task_loss", task_loss), ("select_loss", select_loss)):
            setattr(self, name, getattr(self, name) + (value - getattr(self, name)) * images / self.images)
        self.select_ratio += (select_ratio - self.select_ratio) * images / self.images


class Trainer:
    """A model, its optimiser and its data: everything between two checkpoints.

    Attributes:
        step: optimiser steps done, over all epochs.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: SptModel,
        task: Task,
        train: Loader,
        val: Loader,
        device: torch.device,
        *,
        alpha: float,
        reports: Reports,
        stop: StopRequest,
    ) -> None:
        self.config, self.model, self.task = config, model, task
        self.train_loader, self.val_loader = train, val
        self.device, self.alpha = device, alpha
        self.optimizer = make_optimizer(model, config)
        self.precision = MixedPrecision(device)
        self.step = 0
        self._reports, self._stop = reports, stop

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Go once over the training images; ``epoch`` counts from 1.

        Returns:
            Means over the epoch: ``loss`` and its parts ``task_loss`` and ``select_loss`` (not yet multiplied by
            alpha), ``select_ratio`` as drawn with noise, the task's metrics, ``lr`` at the end and
            ``images_per_second``.

        Raises:
            ResultError: when the loss is no finite number.
            Interrupted: after the step in which a signal came.
        """
        self.model.train()
        meter, means, lr = self.task.meter(), _Means(), 0.0
        steps = self.config.epochs * len(self.train_loader)
        start = time.perf_counter()
        with self._reports.progress(f"epoch {epoch}/{self.config.epochs}", self.train_loader.images) as progress:
            for batch in self.train_loader.epoch(epoch):
                lr = self.config.lr * learning_rate_factor(self.step, steps, self.config.warmup)
                self.step += 1
                if not batch.paths:
                    continue
                batch = batch.to(self.device)
                set_learning_rate(self.optimizer, lr)
                output, losses = self._losses(batch)
                kept = output.features.select_ratio.mean() if output.features.kept else torch.zeros_like(losses[0])
                total, task, select, ratio = torch.stack([*losses, kept]).tolist()
                if not math.isfinite(total):
                    raise ResultError(_not_finite(total, epoch, batch))
                self.precision.step(losses[0], self.model, self.optimizer, self.config.clip)
                meter.update(output, batch)
                means.add(len(batch.paths), total, task, select, ratio)
                progress.update(means.images, _step_text(means, meter.result(), bool(output.features.kept)))
                self._stop_if_asked()
        if not means.images:
            raise InputError(f"none of the {self.train_loader.images} training images can be read")
        record = {"loss": means.loss, "task_loss": means.task_loss, "select_loss": means.select_loss}
        if self.model.config.backbone.spa_stages:
            record["select_ratio"] = means.select_ratio
        seconds = time.perf_counter() - start
        return record | meter.result() | {"lr": lr, "images_per_second": means.images / seconds}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Go once over the validation images, without noise and without augmentation.

        Returns:
            The task's metrics, ``task_loss`` and ``select_loss``; by SPA block ``select_ratio``, ``gate_precision`` and
            ``gate_recall`` against the select label; ``object_ratio`` of tokens by stride.

        Raises:
            InputError: when no image can be read.
            Interrupted: after the batch in which a signal came.
        """
        self.model.eval()
        meter, means = self.task.meter(), _Means()
        selection = SelectionMeter(self.model.config.backbone.spa_blocks)
        for batch in self.val_loader.epoch(0):
            if not batch.paths:
                continue
            batch = batch.to(self.device)
            output, losses = self._losses(batch)
            meter.update(output, batch)
            selection.update(output.features, batch.masks, batch.has_mask)
            total, task, select = torch.stack(losses).tolist()
            means.add(len(batch.paths), total, task, select, 0.0)
            self._stop_if_asked()
        if not means.images:
            raise InputError(f"none of the {self.val_loader.images} validation images can be read")
        record: dict[str, Any] = {"task_loss": means.task_loss, "select_loss": means.select_loss} | meter.result()
        return record | {
            "select_ratio": selection.select_ratio(),
            "object_ratio": selection.object_ratio(),
            "gate_precision": selection.precision(),
            "gate_recall": selection.recall(),
        }

    def _stop_if_asked(self) -> None:
        if self._stop.made:
            raise Interrupted

    def _losses(self, batch: Batch) -> tuple[ModelOutput, tuple[Tensor, Tensor, Tensor]]:
        """The model's output; the whole loss, the task's part, and the select loss before alpha."""
        with self.precision.autocast():
            output = self.task.run(self.model, batch)
            task = self.task.loss(output, batch)
            select = select_loss(output.features, batch.masks, batch.has_mask)
        return output, (task + self.alpha * select if self.alpha else task, task, select)


def _not_finite(loss: float, epoch: int, batch: Batch) -> str:
    names = [str(p) for p in batch.paths]
    more = f" and {len(names) - _FILES_IN_ERROR} more" if len(names) > _FILES_IN_ERROR else ""
    return (
        f"the loss became {loss} in epoch {epoch} on the batch {', '.join(names[:_FILES_IN_ERROR])}{more}; "
        "look at these images, or train with a smaller --lr"
    )


def _step_text(means: _Means, metrics: dict[str, float], has_selection: bool) -> str:
    parts = [f"loss {means.loss:.3f}"]
    parts += [f"{name} {100 * value:.1f} %" for name, value in metrics.items() if name == "top1"]
    if has_selection:
        parts.append(f"kept {100 * means.select_ratio:.0f} %")
    return ", ".join(parts)

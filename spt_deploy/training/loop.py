"""One epoch of training, one of validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from spt_deploy.atomic import write_text
from spt_deploy.errors import InputError, ResultError
from spt_deploy.interrupt import StopRequest
from spt_deploy.model.network import ModelOutput, SptModel
from spt_deploy.training.average import WeightAverage
from spt_deploy.training.compiled import compile_dense_parts, compile_errors
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.gradient import (
    LossModule,
    StepWeights,
    distribute,
    parts_of_step,
    without_reduction,
)
from spt_deploy.training.loader import Batch, Loader
from spt_deploy.training.means import BatchLosses, Means
from spt_deploy.training.meters import Meter
from spt_deploy.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate
from spt_deploy.training.precision import MixedPrecision
from spt_deploy.training.ranks import Ranks
from spt_deploy.training.report import Reports
from spt_deploy.training.select_labels import SelectionMeter
from spt_deploy.training.stages import freeze_stages, learning, train_mode
from spt_deploy.training.tasks import Task

_FILES_IN_ERROR = 8  # enough to look at; a batch may be 1024
NOT_FINITE_LIST = "not_finite.txt"  # in the run's folder: every file of the batch that spoilt the loss


class Interrupted(Exception):  # noqa: N818 - no error: the user asked for it, and the run ends well
    """The run stopped between two steps because a signal asked it to."""


class Trainer:
    """A model, its optimiser and its data: everything between two checkpoints.

    Attributes:
        step: optimiser steps done, over all epochs.
        average: of the weights; None where the run keeps none.
        ranks: this process among the others that train with it.
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
        ranks: Ranks | None = None,
    ) -> None:
        """Take the parts of a run; ``model`` is on ``device``, with the weights to start from."""
        self.config, self.model, self.task = config, model, task
        self.train_loader, self.val_loader = train, val
        self.device, self.alpha, self.ranks = device, alpha, ranks or Ranks()
        freeze_stages(model, config.freeze)
        self.optimizer = make_optimizer(model, config)
        self.precision = MixedPrecision(device)
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.step = 0
        self._reports, self._stop = reports, stop
        if config.compile:
            compile_dense_parts(model)
        self._losses = distribute(self._loss_module(model), self.ranks)
        self._val_losses = self._loss_module(self.evaluated)

    @property
    def evaluated(self) -> SptModel:
        """The model that validation measures and best.pt holds: with averaged weights where the run averages."""
        return self.model if self.average is None else self.average.model

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Go once over the training images; ``epoch`` counts from 1.

        Returns:
            Means over the epoch: ``loss`` and its parts ``task_loss`` and ``select_loss`` (not yet multiplied by
            alpha), ``select_ratio`` as drawn with noise, the task's training metrics, ``lr`` at the end and
            ``images_per_second``, of all processes together.

        Raises:
            InputError: when no image can be read.
            ResultError: when the loss or its gradient is no finite number.
            RuntimeMissingError: when the model cannot be compiled.
            Interrupted: before a step, once a signal has come.
        """
        self._losses.train()
        train_mode(self.model, self.config.freeze)
        meter, means, lr = self.task.training_meter(), Means(self.alpha), 0.0
        steps = self.config.epochs * self._steps
        start = time.perf_counter()
        total = self.train_loader.images
        with self._reports.progress(f"epoch {epoch}/{self.config.epochs}", total) as progress, self._compile_errors():
            batches = enumerate(self.train_loader.epoch(epoch))
            for _ in range(self._steps):
                # Loaded together: a batch's share of the gradient depends on what the others hold.
                numbers, group = zip(*islice(batches, self.config.accumulate), strict=True)
                lr = self.config.lr * learning_rate_factor(self.step, steps, self.config.warmup)
                self.step += 1
                images, labelled = sum(len(b.paths) for b in group), sum(int(b.has_mask.sum()) for b in group)
                images_of_all, labelled_of_all = self._agreed(images, labelled)
                if not images_of_all:
                    continue
                set_learning_rate(self.optimizer, lr)
                weights = StepWeights(images_of_all, labelled_of_all, self.ranks.world)
                self._step(epoch, numbers, group, weights, meter, means)
                shown = min(means.images * self.ranks.world, total)
                progress.update(shown, _step_text(means, meter.result(), bool(self.model.config.backbone.spa_stages)))
        self._share_broken(self.train_loader)
        means = Means.of([batch for part in self.ranks.gather(means.batches) for batch in part], self.alpha)
        if not means.images:
            raise InputError(f"none of the {total} training images can be read")
        record: dict[str, Any] = dict(means.losses)
        if self.model.config.backbone.spa_stages:
            record["select_ratio"] = means.select_ratio
        seconds = time.perf_counter() - start
        record |= self._merged(meter, self.task.training_meter).result()
        return record | {"lr": lr, "images_per_second": means.images / seconds}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Go once over the validation images, without noise and without augmentation, with averaged weights if any.

        Returns:
            The task's metrics, ``task_loss`` and ``select_loss``; by SPA block ``select_ratio``, ``gate_precision`` and
            ``gate_recall`` against the select label; ``object_ratio`` of tokens by stride; ``per_class`` the chief
            metric by class name, where one class has a value.

        Raises:
            InputError: when no image can be read.
            ResultError: when the loss is no finite number.
            Interrupted: before a batch, once a signal has come.
        """
        self._val_losses.eval()
        meter, means = self.task.meter(), Means(self.alpha)
        selection = SelectionMeter(self.model.config.backbone.spa_blocks)
        for number, batch in enumerate(self.val_loader.epoch(0)):
            self._agreed()
            if not batch.paths:
                continue
            batch = batch.to(self.device)
            output, task, select = self._val_losses(batch)
            meter.update(output, batch)
            selection.update(output.features, batch.masks, batch.has_mask)
            means.add(self._measured(number, batch, output, task, select))
        self._share_broken(self.val_loader)
        means = Means.of([batch for part in self.ranks.gather(means.batches) for batch in part], self.alpha)
        if not means.images:
            raise InputError(f"none of the {self.val_loader.images} validation images can be read")
        if not math.isfinite(means.losses["loss"]):
            raise ResultError(
                f"the loss on the validation images is {means.losses['loss']}: the weights have grown beyond "
                "all bounds; train with a smaller --lr, or a smaller --clip"
            )
        selection = self._merged(selection, lambda: SelectionMeter(selection.blocks))
        record: dict[str, Any] = {name: means.losses[name] for name in ("task_loss", "select_loss")}
        meter = self._merged(meter, self.task.meter)
        names = self.model.config.class_names
        return record | {
            **meter.result(),
            "per_class": {names[label]: value for label, value in meter.per_class().items()},
            "select_ratio": selection.select_ratio(),
            "object_ratio": selection.object_ratio(),
            "gate_precision": selection.precision(),
            "gate_recall": selection.recall(),
        }

    @property
    def _steps(self) -> int:
        """Of an epoch."""
        return -(-len(self.train_loader) // self.config.accumulate)

    def _step(
        self,
        epoch: int,
        numbers: Sequence[int],
        group: Sequence[Batch],
        weights: StepWeights,
        meter: Meter,
        means: Means,
    ) -> None:
        """Forward and backward for each batch of the group, then one update."""
        parts = parts_of_step(numbers, group, self.ranks)
        for place, (number, part) in enumerate(parts, start=1):
            with without_reduction(self._losses, last=place == len(parts)):
                if part is None:
                    _, zero, _ = self._losses(None)
                    self.precision.backward(zero)
                    continue
                batch = part.to(self.device)
                output, task, select = self._losses(batch)
                measured = self._measured(number, batch, output, task, select)
                if not math.isfinite(measured.loss):
                    raise ResultError(self._not_finite(f"the loss became {measured.loss}", epoch, [batch]))
                self.precision.backward(weights.loss(batch, task, select, self.alpha))
            meter.update(output, batch)
            means.add(measured)
        if not self.precision.step(learning(self.model), self.optimizer, self.config.clip):
            raise ResultError(self._not_finite("the gradient is no finite number", epoch, group))
        if self.average is not None:
            self.average.update(self.model, self.step)

    def _loss_module(self, model: SptModel) -> LossModule:
        return LossModule(
            model,
            self.task,
            self.precision,
            select_from_labels=self.config.select_from_labels,
            touch=not self.ranks.is_alone,
        )

    def _measured(self, number: int, batch: Batch, output: ModelOutput, task: Tensor, select: Tensor) -> BatchLosses:
        kept = output.features.select_ratio.mean() if output.features.kept else torch.zeros_like(task)
        # One copy from the device, not four.
        values = torch.stack([task.detach(), select.detach(), kept, batch.has_mask.sum().to(kept)])
        task_loss, of_select, ratio, labelled = values.tolist()
        loss = task_loss + self.alpha * of_select if self.alpha else task_loss
        place = number * self.ranks.world + self.ranks.rank
        return BatchLosses(place, len(batch.paths), int(labelled), loss, task_loss, of_select, ratio)

    def _agreed(self, *counts: float) -> list[float]:
        """Sums of ``counts`` over all processes; they also agree here whether to stop, so that none waits for others.

        Raises:
            Interrupted: once a signal has come to any of them.
        """
        *sums, stops = self.ranks.sum([*counts, float(self._stop.made)])
        if stops:
            raise Interrupted
        return sums

    def _share_broken(self, loader: Loader) -> None:
        """Have the images that any process could not read named by the main one, and counted by all."""
        for of_rank in self.ranks.gather(list(loader.broken.values())):
            for broken in of_rank:
                loader.count(broken)

    def _merged(self, meter: Any, fresh: Callable[[], Any]) -> Any:
        """A meter that has counted what those of all processes have."""
        if self.ranks.is_alone:
            return meter
        merged = fresh()
        for state in self.ranks.gather(meter.state()):
            merged.merge(state)
        return merged

    def _compile_errors(self) -> AbstractContextManager[None]:
        return compile_errors() if self.config.compile else nullcontext()

    def _not_finite(self, what: str, epoch: int, batches: Sequence[Batch]) -> str:
        """Write the files of these batches down, and say so."""
        names = [str(p) for batch in batches for p in batch.paths]
        write_text(self.config.out / NOT_FINITE_LIST, "".join(f"{name}\n" for name in names))
        more = f" and {len(names) - _FILES_IN_ERROR} more" if len(names) > _FILES_IN_ERROR else ""
        return (
            f"{what} in epoch {epoch} on the batch {', '.join(names[:_FILES_IN_ERROR])}{more} "
            f"(all in {self.config.out / NOT_FINITE_LIST}); look at these images, or train with a smaller --lr"
        )


def _step_text(means: Means, metrics: dict[str, float], has_selection: bool) -> str:
    parts = [f"loss {means.losses['loss']:.3f}"]
    parts += [f"{name} {100 * value:.1f} %" for name, value in metrics.items() if name == "top1"]
    if has_selection:
        parts.append(f"kept {100 * means.select_ratio:.0f} %")
    return ", ".join(parts)

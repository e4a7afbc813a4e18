"""The gradient of one optimiser step: of the mean over all images of a group of batches, on all processes.

A step's loss is task loss / images of the step + alpha * select loss / labelled images of the step. Batches differ in
both counts, so each batch's means are weighted before they are added up: what a step computes depends neither on how
many batches it was cut into, nor on how many processes shared them (up to rounding, and to where containers begin).

The loss of ``detect`` is the exception. Each batch divides it by the quality of its own matches (`detection_loss.py`)
and is then weighted by its images: a step that is cut otherwise has a somewhat other gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spt_deploy.model.network import ModelOutput, SptModel
from spt_deploy.training.label_selection import label_masks
from spt_deploy.training.loader import Batch
from spt_deploy.training.precision import MixedPrecision
from spt_deploy.training.ranks import Ranks
from spt_deploy.training.select_labels import select_loss
from spt_deploy.training.stages import learning
from spt_deploy.training.tasks import Task


class LossModule(nn.Module):
    """A model with its losses, as one module: DistributedDataParallel sees a step only if it goes through one call."""

    def __init__(
        self, model: SptModel, task: Task, precision: MixedPrecision, *, select_from_labels: bool, touch: bool
    ) -> None:
        """See `LossModule`.

        Args:
            model: whose losses these are.
            task: its task.
            precision: of the forward pass.
            select_from_labels: whether the select label takes the place of the selection.
            touch: whether every parameter that learns gets a gradient in every pass, be it zeros.
        """
        super().__init__()
        self.model = model
        self._task, self._precision = task, precision
        self._from_labels, self._touches = select_from_labels, touch

    def forward(self, batch: Batch | None) -> tuple[ModelOutput | None, Tensor, Tensor]:
        """Run the model on a batch.

        Args:
            batch: on the model's device; None takes no part but in the gradient, with zeros.

        Returns:
            The model's output; the task's loss and the select loss, scalars, means over the batch.
        """
        if batch is None:
            return None, self._touch(), torch.zeros(())
        with self._precision.autocast():
            forced = None
            if self._from_labels:
                forced = label_masks(self.model.config.backbone, batch.masks, batch.has_mask)
            output = self._task.run(self.model, batch, forced)
            select = select_loss(output.features, batch.masks, batch.has_mask)
            task = self._task.loss(output, batch)
        return output, task + self._touch() if self._touches and self.training else task, select

    def _touch(self) -> Tensor:
        """Zero, with a gradient of zeros for every parameter that learns.

        DistributedDataParallel waits for a gradient of each, and a batch may leave some without: a process whose share
        of the last step is empty, a part of a loss that nothing in the batch calls for. This sum costs nothing next to
        a step; find_unused_parameters would walk the graph of every one.
        """
        return torch.stack([p.sum() for p in learning(self.model)]).sum() * 0


class StepWeights:
    """What a batch's losses count in a step that several batches and processes make up."""

    def __init__(self, images: float, labelled: float, world: int) -> None:
        """See `StepWeights`.

        Args:
            images: in the whole step, on all processes.
            labelled: those where something is known of objects.
            world: processes; DistributedDataParallel divides by it, so it is multiplied here.
        """
        self._images, self._labelled, self._world = images, labelled, world

    def loss(self, batch: Batch, task: Tensor, select: Tensor, alpha: float) -> Tensor:
        """The share of the step's loss that a batch has, to be differentiated."""
        loss = task * (self._world * len(batch.paths) / self._images)
        labelled = int(batch.has_mask.sum())
        if alpha and labelled:
            loss = loss + select * (alpha * self._world * labelled / self._labelled)
        return loss


def distribute(module: LossModule, ranks: Ranks) -> nn.Module:
    """``module``, or under torchrun the same in DistributedDataParallel.

    Weights are the main process's from then on, and gradients the mean over processes.
    """
    if ranks.is_alone:
        return module
    # About relative position tables of one head, whose strides differ in name only.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(module, forward_sync_buffers=False)  # buffers are constants


def without_reduction(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """For the backward pass of a batch: gradients travel once a step, with its last batch."""
    if last or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def parts_of_step(numbers: Sequence[int], batches: Sequence[Batch], ranks: Ranks) -> list[tuple[int, Batch | None]]:
    """The batches of a step that hold images, each with its number; where there are none, None for the others' sake."""
    parts: list[tuple[int, Batch | None]] = [(n, b) for n, b in zip(numbers, batches, strict=True) if b.paths]
    return parts or ([] if ranks.is_alone else [(numbers[0], None)])

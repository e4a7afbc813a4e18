"""Means over the images of an epoch, from the losses of its batches."""

from __future__ import annotations

from typing import NamedTuple

LOSSES = ("loss", "task_loss", "select_loss")


class BatchLosses(NamedTuple):
    """What one batch measured.

    Attributes:
        number: of the batch in its epoch, over all processes.
        images: in it.
        loss: with the select loss in it.
        task_loss: the task's part.
        select_loss: not yet multiplied by alpha.
        select_ratio: mean over images and SPA blocks.
    """

    number: int
    images: int
    loss: float
    task_loss: float
    select_loss: float
    select_ratio: float


class Means:
    """Running means, each image counting alike."""

    def __init__(self) -> None:
        self.batches: list[BatchLosses] = []
        self.images = 0
        self._values = [0.0] * (len(LOSSES) + 1)

    @classmethod
    def of(cls, batches: list[BatchLosses]) -> Means:
        """The means over batches that several processes measured: in the order of their numbers, as one would have."""
        means = cls()
        for batch in sorted(batches):
            means.add(batch)
        return means

    def add(self, batch: BatchLosses) -> None:
        """Take a batch in; one without images changes nothing."""
        self.batches.append(batch)
        if not batch.images:
            return
        self.images += batch.images
        share = batch.images / self.images
        for place, value in enumerate(batch[2:]):
            self._values[place] += (value - self._values[place]) * share

    @property
    def losses(self) -> dict[str, float]:
        """``loss``, ``task_loss`` and ``select_loss``."""
        return dict(zip(LOSSES, self._values, strict=False))

    @property
    def select_ratio(self) -> float:
        """Share of tokens that were kept, over all SPA blocks."""
        return self._values[-1]

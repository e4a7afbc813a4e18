"""Means over the images of an epoch, from the losses of its batches."""

from __future__ import annotations

from typing import NamedTuple


class BatchLosses(NamedTuple):
    """What one batch measured.

    Attributes:
        number: of the batch in its epoch, over all processes.
        images: in it.
        labelled: those of them where something is known of objects.
        loss: with the select loss in it.
        task_loss: the task's part, mean over the images.
        select_loss: mean over the labelled ones, not yet multiplied by alpha.
        select_ratio: mean over images and SPA blocks.
    """

    number: int
    images: int
    labelled: int
    loss: float
    task_loss: float
    select_loss: float
    select_ratio: float


class Means:
    """Running means, each image counting alike; of the select loss, each where something is known of objects.

    Attributes:
        batches: taken in so far.
        images: in them.
        select_ratio: share of tokens that were kept, over all SPA blocks.
    """

    def __init__(self, alpha: float) -> None:
        """``alpha`` is the weight of the select loss."""
        self.batches: list[BatchLosses] = []
        self.images = 0
        self.select_ratio = 0.0
        self._alpha, self._labelled = alpha, 0
        self._task_loss = self._select_loss = 0.0

    @classmethod
    def of(cls, batches: list[BatchLosses], alpha: float) -> Means:
        """The means over batches that several processes measured: in the order of their numbers, as one would have."""
        means = cls(alpha)
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
        self._task_loss += (batch.task_loss - self._task_loss) * share
        self.select_ratio += (batch.select_ratio - self.select_ratio) * share
        if batch.labelled:
            self._labelled += batch.labelled
            self._select_loss += (batch.select_loss - self._select_loss) * batch.labelled / self._labelled

    @property
    def losses(self) -> dict[str, float]:
        """``loss``, ``task_loss`` and ``select_loss``."""
        loss = self._task_loss + self._alpha * self._select_loss if self._alpha else self._task_loss
        return {"loss": loss, "task_loss": self._task_loss, "select_loss": self._select_loss}

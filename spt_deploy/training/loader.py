"""Samples in batches: the order of an epoch, worker processes, unreadable images counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from spt_deploy.errors import InputError
from spt_deploy.training.dataset import Broken, Key, Sample, Samples


@dataclass(frozen=True)
class Batch:
    """B samples and the images that could not be read.

    Attributes:
        paths: of the B images.
        images: B x 3 x H x W float32, RGB, normalised.
        labels: B int64.
        masks: B x H x W uint8, 1 where an object is; all 0 where nothing is known of objects.
        has_mask: B bool, whether something is known.
        broken: images left out.
    """

    paths: tuple[Path, ...]
    images: Tensor
    labels: Tensor
    masks: Tensor
    has_mask: Tensor
    broken: tuple[Broken, ...] = ()

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory; the DataLoader calls this."""
        return self._each(lambda t: t.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=change(self.images),
            labels=change(self.labels),
            masks=change(self.masks),
            has_mask=change(self.has_mask),
        )


def collate(samples: Sequence[Sample | Broken]) -> Batch:
    """Put samples of one size together; B may be 0 where every image is broken."""
    good = [s for s in samples if isinstance(s, Sample)]
    size = good[0].image.shape[1:] if good else (0, 0)
    nothing = torch.zeros(size, dtype=torch.uint8)
    masks = [nothing if s.mask is None else s.mask for s in good]
    return Batch(
        paths=tuple(s.path for s in good),
        images=torch.stack([s.image for s in good]) if good else torch.empty(0, 3, *size),
        labels=torch.tensor([s.label for s in good], dtype=torch.int64),
        masks=torch.stack(masks) if good else torch.empty(0, *size, dtype=torch.uint8),
        has_mask=torch.tensor([s.mask is not None for s in good], dtype=torch.bool),
        broken=tuple(s for s in samples if isinstance(s, Broken)),
    )


class EpochBatches:
    """Keys of an epoch's samples, batch after batch; ``epoch`` is set before each pass."""

    def __init__(self, count: int, batch: int, shuffle_seed: int | None) -> None:
        self.epoch = 0
        self._count, self._batch, self._seed = count, batch, shuffle_seed

    def __len__(self) -> int:
        return -(-self._count // self._batch)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self._count)
        if self._seed is not None:  # from seed and epoch alone: a resumed run sees the order it would have seen
            order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count)
        for start in range(0, self._count, self._batch):
            yield [Key(self.epoch, int(i)) for i in order[start : start + self._batch]]


class Loader:
    """Batches of one split, pass after pass, each image that cannot be read named once.

    Attributes:
        broken: images that could not be read so far, with the reason.
    """

    def __init__(
        self,
        samples: Samples,
        batch: int,
        *,
        shuffle_seed: int | None = None,
        workers: int = 0,
        pin_memory: bool = False,
        max_broken: float = 0.0,
        on_broken: Callable[[Broken], None] = lambda broken: None,
    ) -> None:
        """See `Loader`.

        Args:
            samples: of the split.
            batch: images a batch; the last one may be smaller.
            shuffle_seed: seed of the order; None keeps the order of the records.
            workers: processes that read; 0 reads in this one.
            pin_memory: for copies to a GPU.
            max_broken: share of the split's images that may be unreadable.
            on_broken: told of each unreadable image, once.
        """
        self.broken: dict[Path, Broken] = {}
        self._samples = samples
        self._batches = EpochBatches(len(samples), batch, shuffle_seed)
        self._max_broken, self._on_broken = max_broken, on_broken
        self._loader: DataLoader[Sample | Broken] = DataLoader(
            samples,
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            # Its own: without one, every pass would draw from the generator that the model's noise comes from.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        """Batches a pass."""
        return len(self._batches)

    @property
    def images(self) -> int:
        """Images of the split, broken ones among them."""
        return len(self._samples)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one pass; a batch may be empty.

        Raises:
            InputError: when more images than ``max_broken`` allows are unreadable.
        """
        self._batches.epoch = epoch
        for batch in self._loader:
            for broken in batch.broken:
                self._count(broken)
            yield batch

    def _count(self, broken: Broken) -> None:
        if broken.path in self.broken:
            return
        self.broken[broken.path] = broken
        self._on_broken(broken)
        if len(self.broken) > math.ceil(self._max_broken * self.images):  # a small set may lack one too
            raise InputError(
                f"{len(self.broken)} of {self.images} images cannot be read, more than the {self._max_broken:.0%} that "
                f"may be left out; the last one: {broken.reason}"
            )


def _start_worker(worker: int) -> None:
    """One thread a worker: the workers are the parallelism, and OpenCV's own threads do not survive a fork."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)

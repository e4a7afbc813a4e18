"""Samples in batches: the order of an epoch, worker processes, unreadable images counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spt_deploy.datasets.dataset import Broken
from spt_deploy.images import check_unreadable
from spt_deploy.training.reading import batches_of, reader
from spt_deploy.training.samples import Key, Sample, Samples

_PER_IMAGE = ("boxes", "box_labels", "crowd")  # tensors of another length in every image


@dataclass(frozen=True)
class Batch:
    """B samples and the images that could not be read.

    Attributes:
        paths: of the B images.
        image_ids: of their records.
        source_sizes: (height, width) of each image as decoded, before augmentation.
        images: B x 3 x H x W float32, RGB, normalised.
        labels: B int64, index of the class, -1 where there is none.
        targets: B x classes float32, 1 for each class in the image; all 0 where they are not known.
        boxes: of each image n x 4 float32, xyxy in pixels of the input.
        box_labels: of each image n int64, index of the class.
        crowd: of each image n bool, objects that are not to be learnt or found.
        masks: B x H x W uint8, 1 where an object is; all 0 where nothing is known of objects.
        has_mask: B bool, whether something is known.
        broken: images left out.
    """

    paths: tuple[Path, ...]
    image_ids: tuple[int, ...]
    source_sizes: tuple[tuple[int, int], ...]
    images: Tensor
    labels: Tensor
    targets: Tensor
    boxes: tuple[Tensor, ...]
    box_labels: tuple[Tensor, ...]
    crowd: tuple[Tensor, ...]
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
            targets=change(self.targets),
            boxes=_change(change, self.boxes),
            box_labels=_change(change, self.box_labels),
            crowd=_change(change, self.crowd),
            masks=change(self.masks),
            has_mask=change(self.has_mask),
        )

    def __getstate__(self) -> dict[str, Any]:
        # On its way out of a worker each tensor costs a file descriptor, and a process has but a thousand: one for all.
        return self.__dict__ | {name: _join(getattr(self, name)) for name in _PER_IMAGE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {name: _split(*state[name]) for name in _PER_IMAGE})


def _join(parts: tuple[Tensor, ...]) -> tuple[Tensor, list[int]]:
    """Tensors of different lengths as one, and their lengths."""
    return torch.cat(parts) if parts else torch.empty(0), [len(t) for t in parts]


def _split(joined: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """The inverse of ``_join``."""
    return torch.split(joined, lengths) if lengths else ()


def _change(change: Callable[[Tensor], Tensor], parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    joined, lengths = _join(parts)  # one copy instead of one an image
    return _split(change(joined), lengths)


def collate(samples: Sequence[Sample | Broken]) -> Batch:
    """Put samples of one size together; B may be 0 where every image is broken."""
    good = [s for s in samples if isinstance(s, Sample)]
    size = good[0].image.shape[1:] if good else (0, 0)
    nothing = torch.zeros(size, dtype=torch.uint8)
    masks = [nothing if s.mask is None else s.mask for s in good]
    return Batch(
        paths=tuple(s.path for s in good),
        image_ids=tuple(s.image_id for s in good),
        source_sizes=tuple(s.source_size for s in good),
        images=torch.stack([s.image for s in good]) if good else torch.empty(0, 3, *size),
        labels=torch.tensor([s.label for s in good], dtype=torch.int64),
        targets=torch.stack([s.targets for s in good]) if good else torch.empty(0, 0),
        boxes=tuple(s.boxes for s in good),
        box_labels=tuple(s.box_labels for s in good),
        crowd=tuple(s.crowd for s in good),
        masks=torch.stack(masks) if good else torch.empty(0, *size, dtype=torch.uint8),
        has_mask=torch.tensor([s.mask is not None for s in good], dtype=torch.bool),
        broken=tuple(s for s in samples if isinstance(s, Broken)),
    )


class EpochBatches:
    """Keys of an epoch's samples, batch after batch; ``epoch`` is set before each pass.

    Of several processes, number ``rank`` of ``world`` gets every ``world``-th batch: each is dealt once, the batches
    are those of a single process, and all processes make as many rounds, the last of which may be empty.
    """

    def __init__(self, count: int, batch: int, shuffle_seed: int | None, rank: int = 0, world: int = 1) -> None:
        self.epoch = 0
        self._count, self._batch, self._seed = count, batch, shuffle_seed
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return -(-self._count // (self._batch * self._world))

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self._count)
        if self._seed is not None:  # from seed and epoch alone: a resumed run sees the order it would have seen
            order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count)
        for index in range(len(self)):
            start = (index * self._world + self._rank) * self._batch
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
        rank: int = 0,
        world: int = 1,
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
            rank: number of this process, from 0.
            world: processes that share the split.
            workers: processes that read; 0 reads in this one.
            pin_memory: for copies to a GPU.
            max_broken: share of the split's images that may be unreadable.
            on_broken: told of each unreadable image, once.
        """
        self.broken: dict[Path, Broken] = {}
        self._samples = samples
        self._batches = EpochBatches(len(samples), batch, shuffle_seed, rank, world)
        self._max_broken, self._on_broken = max_broken, on_broken
        self._loader = reader(
            samples,
            workers,
            collate,
            batch_sampler=self._batches,
            pin_memory=pin_memory,
            # Its own: without one, every pass would draw from the generator that the model's noise comes from.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        """Batches a pass, of each process."""
        return len(self._batches)

    @property
    def images(self) -> int:
        """Images of the split, broken ones among them."""
        return len(self._samples)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one pass; a batch may be empty.

        Raises:
            InputError: when more images than ``max_broken`` allows are unreadable.
            ResultError: when a process that reads them has ended, or cannot hand them over.
        """
        self._batches.epoch = epoch
        for batch in batches_of(self._loader):
            for broken in batch.broken:
                self.count(broken)
            yield batch

    def count(self, broken: Broken) -> None:
        """Note an image that could not be read, here or in another process; one that is known changes nothing.

        Raises:
            InputError: when that makes more than ``max_broken`` allows.
        """
        if broken.path in self.broken:
            return
        self.broken[broken.path] = broken
        self._on_broken(broken)
        check_unreadable(len(self.broken), self.images, broken.reason, self._max_broken)

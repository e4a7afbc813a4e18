"""What is known of a training image, and how it becomes a sample: decoded, augmented, preprocessed.

A reader of a data set format (`image_folder.py`) makes a `DataSet` of `Record`s; everything after that is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data
from torch import Tensor

from spt_deploy.errors import SourceError
from spt_deploy.images import read_image
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import augment

CACHE_BYTES = 512 << 20  # of decoded images kept in memory by one run, all its processes together
_ROUNDING = 1e-3  # pixels; a box scaled to 7.9999 ends at 8


@dataclass(frozen=True)
class Record:
    """One image of a data set, before it is opened.

    Attributes:
        path: of the image file.
        label: index of its class.
        boxes: n x 4 float32, xyxy in pixels of the image, of all objects in it; None where nothing is known of them.
    """

    path: Path
    label: int
    boxes: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class DataSet:
    """Class names in the order of the labels, and the records of both splits."""

    class_names: tuple[str, ...]
    train: tuple[Record, ...]
    val: tuple[Record, ...]

    @property
    def has_objects(self) -> bool:
        """Whether any training image says where its objects lie."""
        return any(r.boxes is not None for r in self.train)


@dataclass(frozen=True)
class Sample:
    """One image as the model takes it.

    Attributes:
        path: of the image file.
        image: 3 x H x W float32, RGB, normalised.
        label: index of its class.
        mask: H x W uint8, 1 where an object is; None where nothing is known of objects.
    """

    path: Path
    image: Tensor
    label: int
    mask: Tensor | None


@dataclass(frozen=True)
class Broken:
    """An image that cannot be read, and the sentence that says why."""

    path: Path
    reason: str


class Key(NamedTuple):
    """Which sample: the record's place in its split, and the epoch that its augmentation is drawn for."""

    epoch: int
    place: int


class Samples(torch.utils.data.Dataset[Sample | Broken]):
    """The samples of one split.

    The same seed, epoch and place give the same sample in any process and any order, so that neither workers nor a
    resumption change a run.
    """

    def __init__(
        self,
        records: tuple[Record, ...],
        preprocessing: Preprocessing,
        *,
        augment_seed: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """See `Samples`.

        Args:
            records: of the split.
            preprocessing: of the model.
            augment_seed: seed of the augmentation; None leaves the images as they are.
            cache_bytes: how much memory decoded images may take in this process.
        """
        self.records = records
        self.preprocessing = preprocessing
        self._seed = augment_seed
        self._cache: dict[int, npt.NDArray[np.uint8]] = {}
        self._cache_left = cache_bytes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample | Broken:
        """The sample ``key`` names, or what is wrong with its image file."""
        record = self.records[key.place]
        try:
            image = self._decoded(key.place)
        except SourceError as error:
            return Broken(record.path, str(error))
        boxes = record.boxes
        if self._seed is not None:
            image, boxes = augment(image, boxes, np.random.default_rng((self._seed, key.epoch, key.place)))
        mask = None
        if boxes is not None:
            placed = self.preprocessing.boxes_to_input(boxes, (image.shape[0], image.shape[1]))
            mask = torch.from_numpy(box_mask(placed, self.preprocessing.size))
        return Sample(record.path, torch.from_numpy(self.preprocessing.apply(image)), record.label, mask)

    def _decoded(self, place: int) -> npt.NDArray[np.uint8]:
        image = self._cache.get(place)
        if image is None:
            image = read_image(self.records[place].path)
            if image.nbytes <= self._cache_left:
                self._cache_left -= image.nbytes
                self._cache[place] = image
        return image


def box_mask(boxes: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """H x W uint8, 1 in every pixel that a box touches; ``boxes`` n x 4 xyxy in pixels, ``size`` (height, width)."""
    mask = np.zeros(size, dtype=np.uint8)
    starts = np.floor(boxes[:, :2] + _ROUNDING).clip(min=0).astype(int)
    ends = np.ceil(boxes[:, 2:] - _ROUNDING).clip(min=0).astype(int)
    for (x0, y0), (x1, y1) in zip(starts, ends, strict=True):
        mask[y0:y1, x0:x1] = 1
    return mask

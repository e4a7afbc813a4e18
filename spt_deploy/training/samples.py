"""How an image of a data set becomes a sample: decoded, augmented, preprocessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data
from torch import Tensor

from spt_deploy.datasets.dataset import Broken, Record
from spt_deploy.datasets.scene import Scene, mask_in_input, scene_of
from spt_deploy.errors import SourceError
from spt_deploy.images import read_image
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import Augmentation, augment
from spt_deploy.training.mosaic import IMAGES, mosaic

CACHE_BYTES = 512 << 20  # of decoded images kept in memory by one run, all its processes together


@dataclass(frozen=True)
class Sample:
    """One image as the model takes it.

    Attributes:
        path: of the image file.
        image_id: of its record.
        image: 3 x H x W float32, RGB, normalised.
        source_size: (height, width) of the image as decoded, before augmentation.
        label: index of its class, -1 where it has none.
        targets: classes float32, 1 for each class in its record; all 0 where they are not known.
        boxes: n x 4 float32, xyxy in pixels of the input.
        box_labels: n int64, index of the class.
        crowd: n bool, objects that are not to be learnt or found.
        mask: H x W uint8, 1 where an object is; None where nothing is known of objects.
    """

    path: Path
    image_id: int
    image: Tensor
    source_size: tuple[int, int]
    label: int
    targets: Tensor
    boxes: Tensor
    box_labels: Tensor
    crowd: Tensor
    mask: Tensor | None


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
        classes: int = 0,
        augment_seed: int | None = None,
        augmentation: Augmentation | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """See `Samples`.

        Args:
            records: of the split.
            preprocessing: of the model.
            classes: length of ``targets``.
            augment_seed: seed of the augmentation; None leaves the images as they are.
            augmentation: how much the images change; None takes the default for whole-image labels.
            cache_bytes: how much memory decoded images may take in this process.
        """
        self.records = records
        self.preprocessing = preprocessing
        self._classes = classes
        self._seed, self._augmentation = augment_seed, augmentation or Augmentation()
        self._cache: dict[int, npt.NDArray[np.uint8]] = {}
        self._cache_left = cache_bytes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample | Broken:
        """The sample ``key`` names, or what is wrong with its image file."""
        record = self.records[key.place]
        try:
            scene = self._scene(key.place)
        except SourceError as error:
            return Broken(record.path, str(error))
        source_size = scene.size
        if self._seed is not None:
            random = np.random.default_rng((self._seed, key.epoch, key.place))
            if self._augmentation.mosaic and random.random() < self._augmentation.mosaic:
                scene = self._mosaic(scene, random)
            scene = augment(scene, self._augmentation, random)
        targets = torch.zeros(self._classes)
        targets[list(record.labels or ())] = 1.0
        return Sample(
            path=record.path,
            image_id=record.image_id,
            image=torch.from_numpy(self.preprocessing.apply(scene.image)),
            source_size=source_size,
            label=-1 if record.label is None else record.label,
            targets=targets,
            boxes=torch.from_numpy(self.preprocessing.boxes_to_input(scene.boxes, scene.size)),
            box_labels=torch.tensor(scene.labels),
            crowd=torch.tensor(scene.crowd),
            mask=torch.from_numpy(mask_in_input(scene, self.preprocessing)) if scene.known else None,
        )

    def _mosaic(self, scene: Scene, random: np.random.Generator) -> Scene:
        """``scene`` and three others in one; as it is where one of those is broken."""
        others = random.integers(len(self), size=IMAGES - 1)
        try:
            scenes = [scene, *(self._scene(int(place)) for place in others)]
        except SourceError:
            return scene  # the broken one is counted when its own turn comes
        return mosaic([scenes[i] for i in random.permutation(IMAGES)], self.preprocessing.size, random)

    def _scene(self, place: int) -> Scene:
        """See `scene_of`; raises SourceError, too, when the image cannot be read."""
        return scene_of(self.records[place], self._decoded(place))

    def _decoded(self, place: int) -> npt.NDArray[np.uint8]:
        image = self._cache.get(place)
        if image is None:
            image = read_image(self.records[place].path)
            if image.nbytes <= self._cache_left:
                self._cache_left -= image.nbytes
                self._cache[place] = image
        return image

"""What is known of a training image, and how it becomes a sample: decoded, augmented, preprocessed.

A reader of a data set format (`formats.py` lists them) makes a `DataSet` of `Record`s; everything after that is here.
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
from spt_deploy.training.augment import Augmentation, augment
from spt_deploy.training.mosaic import IMAGES, mosaic
from spt_deploy.training.objects import Objects, cut_box
from spt_deploy.training.scene import Scene, mask_in_input

CACHE_BYTES = 512 << 20  # of decoded images kept in memory by one run, all its processes together


@dataclass(frozen=True)
class Record:
    """One image of a data set, before it is opened.

    Attributes:
        path: of the image file.
        label: index of its one class; None in data that has none.
        labels: indices of all classes in it, ascending; None where they are not known.
        objects: everything in it; None where nothing is known of them.
        image_id: a number of its own in its split, the file's own where it has one (COCO).
        size: (height, width) that the annotations are written for; None where they do not say.
    """

    path: Path
    label: int | None = None
    labels: tuple[int, ...] | None = None
    objects: Objects | None = None
    image_id: int = 0
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Broken:
    """An image or annotation that cannot be used, and the sentence that says why.

    Attributes:
        path: of the image, or of the annotation file that should speak of one.
        reason: a sentence that names the file.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class DataSet:
    """Both splits of a data set.

    Attributes:
        class_names: in the order of the labels.
        train: records to learn from.
        val: records to measure on.
        format: name of the format it was read from (see `formats.py`).
        category_ids: the format's own number of each class, in the order of the labels.
        broken: what the reader left out.
        found: a sentence that says what the format was told by.
    """

    class_names: tuple[str, ...]
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    format: str = "folder"
    category_ids: tuple[int, ...] = ()
    broken: tuple[Broken, ...] = ()
    found: str = ""

    @property
    def splits(self) -> dict[str, tuple[Record, ...]]:
        """Both by name."""
        return {"train": self.train, "val": self.val}

    @property
    def has_objects(self) -> bool:
        """Whether any training image says where its objects lie."""
        return any(r.objects is not None for r in self.train)


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


def scene_of(record: Record, image: npt.NDArray[np.uint8]) -> Scene:
    """The image of a record (H x W x 3, BGR, as decoded) and its objects as they are.

    Raises:
        SourceError: when an outline cannot be read, or the annotations are for an image of another size.
    """
    size = (image.shape[0], image.shape[1])
    if record.size is not None and record.size != size:
        raise SourceError(
            f"{record.path} is {size[1]} x {size[0]} pixels and its annotations are for "
            f"{record.size[1]} x {record.size[0]}; annotate the image as it is, with its EXIF orientation obeyed"
        )
    objects = record.objects
    if record.size is None and objects is not None:  # nobody could look before
        for number, box in enumerate(objects.boxes.tolist()):
            if cut_box(tuple(box), size) is None:
                raise SourceError(
                    f"{record.path} is {size[1]} x {size[0]} pixels and the box {', '.join(f'{v:g}' for v in box)} "
                    f"(x0, y0, x1, y1) of its object {number} lies outside; correct its annotations"
                )
    return Scene.of(image, objects)

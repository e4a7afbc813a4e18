"""The objects of a detector cut out of their frames: a JPEG each, in a folder a class."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from spt_deploy.atomic import atomic_path
from spt_deploy.config import ModelConfig
from spt_deploy.errors import UsageError
from spt_deploy.postprocess import Prediction
from spt_deploy.streaming.annotations import encoded_image
from spt_deploy.streaming.frames import Frame, Image, Source
from spt_deploy.streaming.source_names import SourceNames, safe_name

CROPS = "crops"  # a folder
_OURS = re.compile(r".+-\d{6,}-\d+\.(jpg|png)")  # what a crop is called


class Crops:
    """``crops/CLASSNAME/STEM-FRAME-NUMBER.jpg``: each box, from the frame as it was decoded.

    STEM is that of the source, as `source_names` tells sources of equal names apart. NUMBER counts the objects of a
    class in a frame from 1, and goes on where a name is taken. With the first frame of a new run the crops of an
    earlier one go; a run that is resumed keeps them. One that was killed and is resumed may have the objects of the
    frame it was at twice.

    Args:
        folder: of the results.
        model: gives the classes.
        sources: all that will come, which decides the names.
        resumes: keep what is there.

    Raises:
        UsageError: when the model is no detector.
    """

    def __init__(self, folder: Path, model: ModelConfig, sources: Sequence[Source], resumes: bool = False) -> None:
        check_crops(model)
        self._replaces = not resumes
        self._folder = folder / CROPS
        self._class_folders = class_folders(model.class_names)
        self._names = SourceNames(sources)
        self._written = 0

    def prepare(self, source: Source, frame: Frame, prediction: Prediction) -> list[tuple[int, bytes, str]]:
        """Cut out each object of a frame: its label, a file and its suffix; what has no pixel in it is left out."""
        crops = [(found.label, _inside(frame.image, found.box)) for found in prediction.detections or ()]
        return [(label, *encoded_image(crop, ".jpg")) for label, crop in crops if crop.size]

    def write(
        self, source: Source, frame: Frame, prediction: Prediction, prepared: list[tuple[int, bytes, str]]
    ) -> None:
        """Write each object of a frame.

        Raises:
            OutputError: when one cannot be written.
        """
        if self._replaces:
            remove_crops(self._folder.parent)
            self._replaces = False
        name = self._names.of(source, frame)
        numbers: Counter[int] = Counter()
        for label, data, suffix in prepared:
            path = None
            while path is None or path.exists():
                numbers[label] += 1
                last = f"{name.name}-{frame.index:06}-{numbers[label]}{suffix}"
                path = self._folder / self._class_folders[label] / name.parent / last
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
            self._written += 1

    def end(self, source: Source) -> None:
        """Nothing is open."""

    def keep(self) -> list[Path]:
        """The folder, if there is anything in it."""
        return [self._folder] if self._written else []

    def drop(self) -> None:
        """Each file is whole, and stays."""


def is_crop_name(name: str) -> bool:
    """Whether a file's name is one that crops have."""
    return bool(_OURS.fullmatch(name))


def remove_crops(folder: Path) -> None:
    """Remove the crops of an earlier run, of whatever classes, from a folder of results; other files are not ours."""
    for path in sorted((folder / CROPS).rglob("*"), reverse=True):
        with suppress(OSError):
            if path.is_dir():
                path.rmdir()  # where nothing else is in it
            elif is_crop_name(path.name):
                path.unlink()
    with suppress(OSError):
        (folder / CROPS).rmdir()


def check_crops(model: ModelConfig) -> None:
    """Whether there are boxes to cut out.

    Raises:
        UsageError: when the model is no detector.
    """
    if model.task != "detect":
        raise UsageError(f"crops are the boxes of a detector, and this model's task is {model.task}; leave them away")


def class_folders(class_names: Sequence[str]) -> tuple[str, ...]:
    """A folder's name for each class, no two equal where upper and lower case are one; the label tells them apart."""
    names: list[str] = []
    taken: set[str] = set()
    for label, class_name in enumerate(class_names):
        name = safe_name(class_name)
        if name.casefold() in taken:
            name = f"{name}-{label}"
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        names.append(name)
    return tuple(names)


def _inside(image: Image, box: tuple[float, float, float, float]) -> Image:
    """The pixels that ``box`` (xyxy) touches."""
    height, width = image.shape[:2]
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    return image[top : max(top, bottom), left : max(left, right)]

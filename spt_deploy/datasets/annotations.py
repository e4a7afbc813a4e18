"""What readers of annotation files share: boxes are checked, what is wrong is named and counted, files are found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spt_deploy.datasets.dataset import Broken, DataSet
from spt_deploy.datasets.objects import Objects, Outline, cut_box
from spt_deploy.errors import InputError
from spt_deploy.wording import counted


class AnnotationError(Exception):
    """What is wrong with one annotation; becomes a `Broken`."""


@dataclass(frozen=True)
class SplitFile:
    """The file of a split, and the folders its images may lie in."""

    path: Path
    image_folders: tuple[Path, ...]


@dataclass
class LeftOut:
    """What a reader leaves out of one split.

    Attributes:
        file: that the annotations are in; names them in errors.
        max_broken: share of the split's images that something may be wrong with.
        broken: in the order found.
    """

    file: Path
    max_broken: float
    broken: list[Broken] = field(default_factory=list)
    _images: set[str] = field(default_factory=set)

    def add(self, image: str, path: Path, reason: str) -> None:
        """Note that something of ``image`` is left out; ``path`` is the file to look at, ``reason`` a sentence."""
        self._images.add(image)
        self.broken.append(Broken(path, reason))

    def check(self, images: int, usable: int | None = None) -> None:
        """See whether the split of so many ``images`` can be used.

        Args:
            images: of the split.
            usable: how many are left; None where that is not known.

        Raises:
            InputError: when something is wrong with more than ``max_broken`` of them, or with every one.
        """
        if len(self._images) > math.ceil(self.max_broken * images):  # a small set may have one too
            raise InputError(
                f"{len(self._images)} of {images} images of {self.file} have broken annotations or no file, more than "
                f"the {self.max_broken:.0%} that may be left out; the last one: {self.broken[-1].reason}"
            )
        if self.broken and usable == 0:
            raise InputError(f"{self.file} has no image that can be used; the last one: {self.broken[-1].reason}")


class ObjectList:
    """The objects of one image, gathered one by one."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        """``size`` is (height, width) of the image, None where the file does not say."""
        self._size = size
        self._boxes: list[tuple[float, ...]] = []
        self._labels: list[int] = []
        self._present: set[int] = set()
        self._crowd: list[bool] = []
        self._areas: list[float] = []
        self._outlines: list[Outline | None] = []

    def add(
        self,
        box: tuple[float, float, float, float],
        label: int,
        *,
        crowd: bool = False,
        present: bool = True,
        area: float | None = None,
        outline: Outline | None = None,
    ) -> None:
        """Add an object.

        Args:
            box: xyxy in pixels.
            label: index of its class.
            crowd: see `Objects`.
            present: whether it says that its class is in the image; not one that is too difficult to see.
            area: in pixels; that of the box unless the file says otherwise.
            outline: where the file has one.

        Raises:
            AnnotationError: when the box is none, or lies outside the image.
        """
        x0, y0, x1, y1 = box
        if not all(map(math.isfinite, box)) or x1 <= x0 or y1 <= y0:
            raise AnnotationError(f"the box {_text(box)} (x0, y0, x1, y1); expected x0 < x1 and y0 < y1")
        if self._size is not None:
            cut = cut_box(box, self._size)
            if cut is None:
                height, width = self._size
                raise AnnotationError(
                    f"the box {_text(box)} (x0, y0, x1, y1) outside its image of {width} x {height} pixels"
                )
            x0, y0, x1, y1 = cut
        self._boxes.append((x0, y0, x1, y1))
        self._labels.append(label)
        self._present |= {label} if present else set()
        self._crowd.append(crowd)
        self._areas.append((x1 - x0) * (y1 - y0) if area is None else area)
        self._outlines.append(outline)

    def classes(self) -> tuple[int, ...]:
        """Indices of the classes that are there, ascending."""
        return tuple(sorted(self._present))

    def objects(self) -> Objects:
        """All of them."""
        return Objects(
            boxes=np.array(self._boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(self._labels, dtype=np.int64),
            crowd=np.array(self._crowd, dtype=np.bool_),
            areas=np.array(self._areas, dtype=np.float64),
            outlines=tuple(self._outlines) if any(o is not None for o in self._outlines) else None,
        )


def load_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: when it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # also a text that is no UTF-8
        raise InputError(f"{path} is no JSON: {error}; write it again") from error


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped.

    Raises:
        InputError: when it cannot be read.
    """
    return [line.strip() for line in text_of(path).splitlines() if line.strip()]


def text_of(path: Path) -> str:
    """What a text file holds.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as text: {error}; save it as UTF-8") from error


def class_file(folder: Path) -> tuple[str, ...]:
    """The class names in ``classes.txt`` of a data set whose own files do not list them; none where it is not there.

    Raises:
        InputError: when it cannot be read.
    """
    path = folder / "classes.txt"
    return tuple(text_lines(path)) if path.is_file() else ()


def numbers(values: Any, count: int, what: str) -> tuple[float, ...]:
    """``values`` as ``count`` finite numbers.

    Raises:
        AnnotationError: when they are something else.
    """
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count:
        try:
            found = tuple(float(v) for v in values)
            if all(map(math.isfinite, found)):
                return found
        except (TypeError, ValueError, OverflowError):
            pass
    raise AnnotationError(f"the {what} {values!r}; expected {counted(count, 'number')}")


def first_file(folders: Sequence[Path], name: str) -> Path | None:
    """``name`` in the first of the folders that has it."""
    return next((path for path in (folder / name for folder in folders) if path.is_file()), None)


def half_of(found: Mapping[str, SplitFile], folder: Path) -> str | None:
    """``has FILE and no such file for val``, where one split was found and the other not."""
    if len(found) != 1:
        return None
    ((split, file),) = found.items()
    return f"has {file.path.relative_to(folder)} and no such file for {'val' if split == 'train' else 'train'}"


def checked(data: DataSet, folder: Path) -> DataSet:
    """``data`` as it is, when both splits have an image and there is a class.

    Raises:
        InputError: when not.
    """
    for name, records in (("training", data.train), ("validation", data.val)):
        if not records:
            raise InputError(f"{folder} has no {name} image that can be used; put one there, or name another folder")
    if not data.class_names:
        raise InputError(f"{folder} has no class: none of its annotations names one")
    return data


def _text(box: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in box)

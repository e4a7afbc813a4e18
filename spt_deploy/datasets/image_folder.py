"""The image folder format: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``, with boxes beside them or without.

Boxes lie in a class folder's ``boxes.txt`` (or ``CLASS_boxes.txt``, as in Tiny ImageNet), a line a box:

    filename <tab> x0 <tab> y0 <tab> x1 <tab> y1        in pixels of the image, x1 and y1 past the last pixel

The file name may have the folders below the class's before it (``camera1/0001.jpg``), where several have that name.
Where a class folder has such a file it speaks for all its images: one without a line holds no object. Images of a
class folder without the file have no select label. A split may also lie in one folder, as Tiny ImageNet's val does:

    val/images/*.JPEG and val/val_annotations.txt       filename <tab> class <tab> x0 <tab> y0 <tab> x1 <tab> y1
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spt_deploy.datasets.annotations import LeftOut, first_file, text_of
from spt_deploy.datasets.dataset import Broken, DataSet, Record
from spt_deploy.datasets.objects import Objects
from spt_deploy.errors import InputError, SourceError, no_folder
from spt_deploy.images import find_images, is_image_name

NAME = "folder"
TITLE = "an image folder"
LOOKS_FOR = "train/CLASS/ and val/CLASS/ with images"

SPLITS = ("train", "val")
_FOR_VAL = ("valid", "validation", "test")  # what others call it

_Boxes = dict[str, list[list[float]]]


def found_text(folder: Path) -> str | None:
    """What of the format is in ``folder``; None where it is not this format."""
    for split in SPLITS:
        place = folder / split
        if not flat_file(place).is_file() and not (place.is_dir() and any(map(_has_images, class_folders(place)))):
            return None
    return "the class folders of train/ and val/"


def _has_images(folder: Path) -> bool:
    return any(is_image_name(path) for place in (folder, folder / "images") for path in place.glob("*"))


def read_image_folder(folder: Path, max_broken: float = 0.0) -> DataSet:
    """Find the images, classes and boxes of an image folder; no image is opened.

    Args:
        folder: that holds both splits.
        max_broken: share of a class's images that lines of its box file may be wrong for.

    Raises:
        InputError: when the folder, a split or a class's images are missing, the splits have different classes, or a
            box file has too many lines that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{no_folder(folder)}; name one that holds train/CLASS/ and val/CLASS/ with images")
    missing = [f"{split}/" for split in SPLITS if not (folder / split).is_dir()]
    if missing:
        other = next((f"; rename {name}/ to val/" for name in _FOR_VAL if (folder / name).is_dir()), "")
        raise InputError(
            f"{folder} has no {' and no '.join(missing)}; expected train/CLASS/ and val/CLASS/ with images"
            f"{other if 'val/' in missing else ''}"
        )
    classes = {split: _classes(folder / split) for split in SPLITS}
    names = tuple(sorted(set(classes["train"]) | set(classes["val"])))
    for split in SPLITS:
        lacking = [name for name in names if name not in classes[split]]
        if lacking:
            raise InputError(
                f"{folder / split} lacks the class {', '.join(lacking)} that the other split has; "
                f"both need the same class folders"
            )
    broken: list[Broken] = []
    records = {split: _read_split(folder / split, names, max_broken, broken) for split in SPLITS}
    return DataSet(names, records["train"], records["val"], NAME, tuple(range(len(names))), tuple(broken))


def flat_file(split: Path) -> Path:
    """Where a split that lies in one folder names its classes."""
    return split / f"{split.name}_annotations.txt"


def box_file(folder: Path) -> Path | None:
    """The file with the boxes of a class folder; None without."""
    return first_file((folder,), "boxes.txt") or first_file((folder,), f"{folder.name}_boxes.txt")


def names_of(image: Path, folder: Path) -> tuple[str, str]:
    """What a class folder's box file may call an image, the one that counts first: its path there, or its name."""
    return image.relative_to(folder).as_posix(), image.name


def class_folders(split: Path) -> list[Path]:
    """The folders of the classes, sorted by name."""
    return sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(split: Path) -> list[str]:
    if flat_file(split).is_file():
        return sorted({line[1] for _, line in _lines(flat_file(split)) if len(line) > 1})
    names = [p.name for p in class_folders(split)]
    if not names:
        raise InputError(f"{split} has no class folders; expected {split.name}/CLASS/ with the images of each class")
    return names


def _read_split(split: Path, names: tuple[str, ...], max_broken: float, broken: list[Broken]) -> tuple[Record, ...]:
    if flat_file(split).is_file():
        return _read_flat(split, names, max_broken, broken)
    records: list[Record] = []
    for label, name in enumerate(names):
        try:
            paths = find_images(split / name)
        except SourceError as error:
            raise InputError(f"class {name} is empty: {error}") from error
        path = box_file(split / name)
        boxes: _Boxes | None = None
        if path is not None:
            left_out = LeftOut(path, max_broken)
            boxes = _read_boxes(path, left_out)
            for missing in sorted(set(boxes) - {each for image in paths for each in names_of(image, split / name)}):
                left_out.add(missing, path, f"{path} has a box of {missing}, which is no image of {split / name}")
            left_out.check(len(paths))
            broken += left_out.broken
        for path in paths:
            objects = None
            if boxes is not None:
                lines = (boxes[each] for each in names_of(path, split / name) if each in boxes)
                objects = Objects.from_boxes(next(lines, []), label)
            records.append(Record(path, label, objects=objects, image_id=len(records)))
    return tuple(records)


def _read_flat(split: Path, names: tuple[str, ...], max_broken: float, broken: list[Broken]) -> tuple[Record, ...]:
    """A split in one folder; an image without a line is no part of it."""
    file = flat_file(split)
    left_out = LeftOut(file, max_broken)
    boxes: _Boxes = {}
    labels: dict[str, int] = {}
    for number, (name, *values) in _lines(file):
        box = _box(values[1:])
        path = first_file((split / "images", split), name)
        if box is None or path is None:
            reason = "has no file" if path is None else "is not filename, class, x0, y0, x1, y1 with tabs between them"
            left_out.add(name, file, f"{file} line {number}: {name} {reason}")
        else:
            labels[name] = names.index(values[0])
            boxes.setdefault(name, []).append(box)
    left_out.check(len(labels) + len(left_out.broken))
    broken += left_out.broken
    return tuple(
        Record(
            first_file((split / "images", split), name) or split / name,
            labels[name],
            objects=Objects.from_boxes(boxes[name], labels[name]),
            image_id=number,
        )
        for number, name in enumerate(sorted(labels))
    )


def _read_boxes(path: Path, left_out: LeftOut) -> _Boxes:
    """Boxes by file name."""
    boxes: _Boxes = {}
    for number, (name, *values) in _lines(path):
        box = _box(values)
        if box is None:
            line = "\t".join([name, *values])
            reason = (
                f"{path} line {number} is {line!r}; expected filename, x0, y0, x1, y1 with tabs between them, "
                f"x0 < x1 and y0 < y1"
            )
            left_out.add(name, path, reason)
        else:
            boxes.setdefault(name, []).append(box)
    return boxes


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of each line."""
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if line.strip():
            yield number, line.rstrip().split("\t")


def _box(values: list[str]) -> list[float] | None:
    """x0, y0, x1, y1; None where the values are none."""
    try:
        box = [float(v) for v in values]
    except ValueError:
        return None
    return box if len(box) == 4 and np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3] else None

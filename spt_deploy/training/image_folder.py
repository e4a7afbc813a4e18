"""The image folder format: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``, with boxes beside them or without.

Boxes lie in a class folder's ``boxes.txt`` (or ``CLASS_boxes.txt``, as in Tiny ImageNet), a line a box:

    filename <tab> x0 <tab> y0 <tab> x1 <tab> y1        in pixels of the image, x1 and y1 past the last pixel

Where a class folder has such a file it speaks for all its images: one without a line holds no object. Images of a
class folder without the file have no select label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import find_images
from spt_deploy.training.dataset import DataSet, Record
from spt_deploy.training.objects import Objects

SPLITS = ("train", "val")


def read_image_folder(folder: Path) -> DataSet:
    """Find the images, classes and boxes of an image folder; no image is opened.

    Raises:
        InputError: when the folder, a split or a class's images are missing, the splits have different classes, or a
            box file has a line that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name one that holds train/CLASS/ and val/CLASS/ with images")
    missing = [f"{split}/" for split in SPLITS if not (folder / split).is_dir()]
    if missing:
        raise InputError(
            f"{folder} has no {' and no '.join(missing)}; expected train/CLASS/ and val/CLASS/ with images"
        )
    classes = {split: _class_folders(folder / split) for split in SPLITS}
    names = tuple(sorted(set(classes["train"]) | set(classes["val"])))
    for split in SPLITS:
        lacking = [name for name in names if name not in classes[split]]
        if lacking:
            raise InputError(
                f"{folder / split} lacks the class {', '.join(lacking)} that the other split has; "
                f"both need the same class folders"
            )
    records = {split: _read_split(folder / split, names) for split in SPLITS}
    return DataSet(names, records["train"], records["val"])


def _class_folders(split: Path) -> list[str]:
    names = sorted(p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise InputError(f"{split} has no class folders; expected {split.name}/CLASS/ with the images of each class")
    return names


def _read_split(split: Path, names: tuple[str, ...]) -> tuple[Record, ...]:
    records: list[Record] = []
    for label, name in enumerate(names):
        try:
            paths = find_images(split / name)
        except SourceError as error:
            raise InputError(f"class {name} is empty: {error}") from error
        boxes = _read_boxes(split / name)
        for path in paths:
            objects = None if boxes is None else Objects.from_boxes(boxes.get(path.name, []), label)
            records.append(Record(path, label, objects=objects, image_id=len(records)))
    return tuple(records)


def _read_boxes(folder: Path) -> dict[str, list[list[float]]] | None:
    """Boxes by file name; None where the class folder has no box file."""
    path = next((p for p in (folder / "boxes.txt", folder / f"{folder.name}_boxes.txt") if p.is_file()), None)
    if path is None:
        return None
    boxes: dict[str, list[list[float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *values = line.rstrip().split("\t")
        try:
            box = [float(v) for v in values]
        except ValueError:
            box = []
        if len(box) != 4 or not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise InputError(
                f"{path} line {number} is {line.strip()!r}; expected filename, x0, y0, x1, y1 with tabs between them, "
                f"x0 <= x1 and y0 <= y1"
            )
        boxes.setdefault(name, []).append(box)
    return boxes

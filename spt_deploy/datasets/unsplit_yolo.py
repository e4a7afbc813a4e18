"""YOLO labels as annotation tools export them, without splits: of which images they are, and how classes are called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spt_deploy.datasets import yolo
from spt_deploy.datasets.annotations import LeftOut, text_lines
from spt_deploy.datasets.heap import Item, Unsplit, images_below, new_names, split_folders
from spt_deploy.datasets.yolo_layout import LOST_OUTLINES, class_names_of, layout_file, listed_names, load_yaml
from spt_deploy.errors import InputError
from spt_deploy.wording import counted

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
_OF_CVAT = "obj.names"
_NAMES_KEY = re.compile(r"^names\s*:", re.MULTILINE)
_KEYPOINTS = ("kpt_shape", "flip_idx")
_NUMBERS = 5  # of a line, at least


def find(source: Path, max_broken: float) -> Unsplit | None:
    """What a folder, or that of a file that lies in it, holds; None where it has no YOLO labels.

    Raises:
        InputError: when it is split already, labels have no images or no names of classes, or too much is broken.
    """
    folder = source if source.is_dir() else source.parent
    if source.is_file() and layout_file(source) is None:
        return None
    every = images_below(folder)
    label_of = {image: path for image in every if (path := yolo.label_file(image)).is_file()}
    first = next(filter(_is_yolo, label_of.values()), None)
    alone = _alone(folder, label_of.values())
    if first is None and len(alone) <= len(every) // 2:  # numbers of another kind
        if label_of and (folder / _OF_CVAT).is_file():
            raise InputError(
                f"{folder} has {counted(len(label_of), 'label file')} and no object in any; {LOST_OUTLINES}"
            )
        return None
    if first is None:
        raise InputError(
            f"{alone[0]} has no image of its name; put each label file beside its image, or the label files into "
            "labels/ and the images into images/ beside it"
        )
    # Where images/ has a folder, what lies elsewhere are masks, or images with drawn boxes.
    has_folder = any("images" in image.relative_to(folder).parts for image in label_of)
    images = [image for image in every if not has_folder or "images" in image.relative_to(folder).parts]
    splits = split_folders(image.relative_to(folder) for image in images)
    if splits is not None:
        raise InputError(
            f"{folder} is split already, into {splits[0]}/ and {splits[1]}/; write data.yaml there, with train: "
            f"{splits[0]}, val: {splits[1]} and names: (those of the classes), and train reads it"
        )
    left_out = LeftOut(folder, max_broken)
    for path in alone:
        left_out.add(path.stem, path, f"{path} has no image of its name")
    left_out.check(len(label_of) + len(alone))
    file, names, keypoints = _class_names(folder, [*images, *label_of.values()])
    notes = []
    if missing := sum(image not in label_of for image in images):
        notes.append(f"{counted(missing, 'image')} of {len(images)} without a label file: taken to hold no object")
    if lost := len(every) - len(images):
        notes.append(f"{counted(lost, 'image')} not in images/: left out")
    pairs = zip(images, new_names(images, without="images"), strict=True)
    items = tuple(Item(image, name, label_of.get(image)) for image, name in pairs)
    found, broken = f"{first.relative_to(folder)} and {file.name}", tuple(left_out.broken)
    return Unsplit(yolo.NAME, found, folder, items, names=names, keypoints=keypoints, notes=tuple(notes), broken=broken)


def _alone(folder: Path, labels: Iterable[Path]) -> list[Path]:
    """The label files of no image."""
    files = sorted(set(folder.rglob("*.txt")) - set(labels))
    shown = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return [path for path in shown if _is_yolo(path)]


def _class_names(folder: Path, paths: Iterable[Path]) -> tuple[Path, dict[int, str], dict[str, Any]]:
    """The file that names the classes of YOLO labels, their names by number, and the keys about keypoints.

    Args:
        folder: of the data set.
        paths: images and label files, in whose folders such a file may lie, too.

    Raises:
        InputError: when there is none, or two differ.
    """
    parents = {path.parent for path in paths}
    above = {place for path in parents for place in (path, *path.parents) if place.is_relative_to(folder)}
    places = sorted(above | {folder}, key=lambda place: (len(place.parts), place))
    for place in places:
        for file in sorted(path for path in place.iterdir() if path.suffix in (".yaml", ".yml")):
            if not file.name.startswith(".") and _NAMES_KEY.search(file.read_text(encoding="utf-8", errors="replace")):
                content = load_yaml(file)
                keypoints: dict[str, Any] = {key: content[key] for key in _KEYPOINTS if key in content}
                return file, class_names_of(file, content), keypoints
    files = [path for place in places for name in _NAME_FILES if (path := place / name).is_file()]
    found = {path: listed_names(path) for path in files}
    first = next((path for path, lines in found.items() if lines), None)
    if first is None:
        raise InputError(f"{folder} has YOLO labels and no names of classes; write them to classes.txt, one a line")
    for path, lines in found.items():
        if lines and lines != found[first]:
            raise InputError(f"{first} and {path} name other classes; split each of their folders by itself")
    return first, class_names_of(first, {"names": found[first]}), {}


def _is_yolo(label: Path) -> bool:
    """Whether a text file has a line of numbers, as many as a box has at least."""
    try:
        lines = text_lines(label)
        return bool(lines) and len([float(value) for value in lines[0].split()]) >= _NUMBERS
    except (InputError, ValueError):
        return False

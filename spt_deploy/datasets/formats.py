"""Formats of data sets: which one a folder is, and its reader.

Each format is a module with its description on top and its names and functions in ``FORMATS``; a new format is such a
module and a line there.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spt_deploy.config import Task
from spt_deploy.datasets import bdd_json, coco_json, image_folder, voc_layout, voc_xml, yolo
from spt_deploy.datasets.dataset import DataSet
from spt_deploy.datasets.heap import Unsplit
from spt_deploy.datasets.unsplit import find_unsplit
from spt_deploy.datasets.yolo_layout import layout_file
from spt_deploy.errors import InputError, SptError, UsageError, add_note, no_folder
from spt_deploy.images import MAX_BROKEN

_SAY_THEIR_SPLITS = frozenset({coco_json.NAME, yolo.NAME, bdd_json.NAME})  # in a file
_LEVELS = 3  # of folders between a data set and the images of a split: images/100k/train
_MOST_BELOW = 8  # folders that are looked into: one that a ZIP file made, and not a thousand classes


class _NoFormatError(InputError):
    """A folder has nothing of any format."""


@dataclass(frozen=True)
class Format:
    """A way to lie in a folder.

    Attributes:
        title: as people write it.
        looks_for: what makes a folder one.
        found_text: what of it is in a folder; None where the folder is another.
        read: makes a `DataSet` of a folder, with the share of its images that may be broken.
        half_text: what a folder has of it and what it lacks; None where it has nothing or all, or its reader says it.
        has_objects: whether it says what lies where; without, an image has one class.
    """

    title: str
    looks_for: str
    found_text: Callable[[Path], str | None]
    read: Callable[[Path, float], DataSet]
    half_text: Callable[[Path], str | None] = lambda folder: None
    has_objects: bool = True


def _of(reader: Any, place: Any) -> Format:
    """A format by the modules that read it, and that know where it lies."""
    return Format(reader.TITLE, place.LOOKS_FOR, place.found_text, reader.read, place.half_text)


FORMATS: dict[str, Format] = {
    coco_json.NAME: _of(coco_json, coco_json),
    yolo.NAME: _of(yolo, yolo),
    voc_xml.NAME: _of(voc_xml, voc_layout),
    bdd_json.NAME: _of(bdd_json, bdd_json),
    image_folder.NAME: Format(
        image_folder.TITLE,
        image_folder.LOOKS_FOR,
        image_folder.found_text,
        image_folder.read_image_folder,
        has_objects=False,
    ),
}


def read_data(
    folder: Path, task: Task | None = None, format: str | None = None, *, max_broken: float = MAX_BROKEN
) -> DataSet:
    """Read a data set of any known format; of images at most the headers are read.

    Args:
        folder: of the data set.
        task: that it is to be learnt for; None asks for nothing.
        format: name of the format; None looks at the folder.
        max_broken: share of a split's images whose annotations may be broken, or that may have no file.

    Returns:
        The data set, with a sentence in ``found`` that says what it is and how that was told.

    Raises:
        InputError: when the folder is of no known format, or cannot be read.
        UsageError: when the format is unknown, the folder could be of several, or does not suit the task.
    """
    try:
        return _read(folder, task, format, max_broken)
    except InputError as error:
        try:
            whole = _unsplit(folder)
        except InputError as nearer:
            raise (nearer if isinstance(error, _NoFormatError) else error) from None
        if whole is None:
            raise
        if isinstance(error, _NoFormatError):
            title = whole.title or FORMATS[whole.format].title
            error = InputError(f"{folder} is {title} without train and val ({whole.found})")
        given, made = (shlex.quote(f"{folder}{end}") for end in ("", "-split"))
        add_note(error, f"to make train and val of it: spt-deploy data split {given} {made}")
        raise error


def _read(folder: Path, task: Task | None, format: str | None, max_broken: float) -> DataSet:
    name, found = find_format(folder, format, task)
    chosen = FORMATS[name]
    if task is not None and chosen.has_objects != (task != "classify"):
        fitting = ", ".join(f.title for f in FORMATS.values() if f.has_objects == (task != "classify"))
        fitting = " or ".join(fitting.rsplit(", ", 1))
        has = "objects and not one class an image" if chosen.has_objects else "one class an image"
        suits = "multilabel or detect" if chosen.has_objects else "classify"
        raise UsageError(
            f"task is {task} and {folder} is {chosen.title}, which names {has}; train with --task {suits}, "
            f"or give {fitting}"
        )
    return replace(chosen.read(folder, max_broken), found=f"{folder} is {chosen.title} ({found})")


def find_format(folder: Path, format: str | None = None, task: Task | None = None) -> tuple[str, str]:
    """Name of a folder's format, and what told it; ``format`` names it without a look, ``task`` chooses of several.

    Raises:
        InputError: when the folder is of no known format.
        UsageError: when ``format`` is unknown, or the folder could be of several.
    """
    if format is not None:
        if format not in FORMATS:
            raise UsageError(f"format is {format!r}; known are {', '.join(FORMATS)}")
        return format, "as --format says"
    if not folder.is_dir():
        if layout_file(folder) is not None:
            return yolo.NAME, "a file with train and names"
        raise InputError(f"{no_folder(folder)}; name the folder of a data set")
    found = _found(folder)
    if len(found) > 1 and task is not None:
        fitting = {name: text for name, text in found.items() if FORMATS[name].has_objects != (task == "classify")}
        found = fitting or found
    if len(found) > 1:
        several = ", ".join(f"{name} ({text})" for name, text in found.items())
        raise UsageError(f"{folder} could be {several}; say which with --format")
    if found:
        return next(iter(found.items()))
    if layout_file(folder) is not None:
        return yolo.NAME, "a file with train and names"  # its reader says what is missing
    near = _near(folder)
    if near is not None:
        raise InputError(f"{folder} is no data set by itself, and {near}; name that folder")
    for f in FORMATS.values():
        half = f.half_text(folder)
        if half is not None:
            raise InputError(f"{folder} {half}, which makes half of {f.title}; looked for {f.looks_for}")
    splits = [folder / split for split in image_folder.SPLITS if (folder / split).is_dir()]
    if any(map(image_folder.class_folders, splits)):  # images alone, beside labelme's files, may be of anything
        return image_folder.NAME, "train/ or val/"  # its reader says what is missing
    looked = "; ".join(f"{f.title}: {f.looks_for}" for f in FORMATS.values())
    raise _NoFormatError(f"{folder} is no data set of a known format; looked for {looked}")


def _unsplit(folder: Path) -> Unsplit | None:
    """What `data split` would find.

    Raises:
        InputError: when it would refuse what it finds.
    """
    with suppress(UsageError, OSError):  # another error is the one to read
        if folder.is_dir() and _near(folder) is None:  # not one split of a data set that has both
            return find_unsplit(folder)
    return None


def _found(folder: Path) -> dict[str, str]:
    """Names of the formats that a folder is of, each with what told it."""
    found = {name: text for name, f in FORMATS.items() if (text := f.found_text(folder)) is not None}
    if voc_xml.NAME in found and voc_layout.home(folder) is None and found.keys() & _SAY_THEIR_SPLITS:
        del found[voc_xml.NAME]  # XML files beside labels that say more
    has_labels = yolo.NAME in found or yolo.label_folder(folder) is not None
    if has_labels or (voc_xml.NAME in found and not voc_layout.may_be_classes(folder)):
        found.pop(image_folder.NAME, None)  # folders called images, labels and annotations are no classes
    return found


def _near(folder: Path) -> str | None:
    """``PLACE, above it, is ...``: the data set that a folder is a part of, or that lies in it; None without."""
    below = sorted(path for path in folder.iterdir() if path.is_dir())[:_MOST_BELOW]
    places = dict.fromkeys(folder.absolute().parents[:_LEVELS], "above") | dict.fromkeys(below, "below")
    for place, where in places.items():
        with suppress(SptError, OSError):  # nobody has named it
            for name, text in _found(place).items():
                return f"{place}, {where} it, is {FORMATS[name].title} ({text})"
    return None

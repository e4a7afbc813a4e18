"""The BDD100K format: one JSON file a split, a list with an entry an image; or a file an image.

    images/100k/train/0000f77c-6257be58.jpg      or images/train/
    labels/det_20/det_train.json                 or labels/bdd100k_labels_images_train.json (of 2018), labels/train.json
        {"name": "0000f77c-6257be58.jpg",
         "labels": [{"category": "car", "box2d": {"x1": 45.2, "y1": 254.5, "x2": 357.8, "y2": 487.9}}, ...]}
    labels/100k/train/0000f77c-6257be58.json     or labels/train/, 100k/train/: of 2018, a file an image
        {"name": "0000f77c-6257be58",
         "frames": [{"objects": [{"category": "car", "box2d": {"x1": 45.2, ...}}, ...]}]}
    classes.txt                                  not BDD's own: names in order, where the labels do not show all

Entries without ``box2d`` (lanes, drivable area) are no objects. Without ``classes.txt``, classes are the ten of the
file's year in BDD's order, or the file's own names in alphabetical order where BDD has none for more than 5 % of the
objects. Of 2020's, "other person", "other vehicle" and "trailer" count as crowd, as in the official evaluation, and so
does what has the attribute ``crowd``: not to be learnt or found. The images' size is not in the file.

Source: doc.bdd100k.com, "Label Format"; of a file an image, format.md of ucbdrive/bdd100k, "2D Bounding Box".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from spt_deploy.datasets.annotations import (
    AnnotationError,
    LeftOut,
    ObjectList,
    SplitFile,
    checked,
    class_file,
    first_file,
    half_of,
    load_json,
    numbers,
)
from spt_deploy.datasets.dataset import Broken, DataSet, Record
from spt_deploy.errors import InputError
from spt_deploy.images import MAX_BROKEN

NAME = "bdd"
TITLE = "BDD100K JSON"
LOOKS_FOR = (
    "labels/det_20/det_train.json, labels/bdd100k_labels_images_train.json, labels/train.json or the folder "
    "labels/100k/train/, likewise for val"
)

CLASSES_2020 = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)
CLASSES_2018 = ("person", "rider", "car", "truck", "bus", "train", "motor", "bike", "traffic light", "traffic sign")
# What 2020's files name besides, and the class whose detections there are not held against a detector.
IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}

_SPLITS = ("train", "val")
_FILES = (
    "labels/det_20/det_{}.json",
    "labels/bdd100k_labels_images_{}.json",
    "labels/det_{}.json",
    "labels/{}.json",
    "labels/100k/{}.json",
)
_FOLDERS = ("labels/100k/{}", "labels/{}", "100k/{}")  # of a file an image
_SAMPLE = 8  # of them that are looked at, some of which may be broken
_CORNERS = ("x1", "y1", "x2", "y2")


def find(folder: Path) -> dict[str, SplitFile]:
    """The files of ``train`` and ``val``; empty where ``folder`` has not both."""
    found = _found(folder)
    return found if len(found) == len(_SPLITS) else {}


def found_text(folder: Path) -> str | None:
    """What of the format is in ``folder``; None where it is not this format."""
    files = find(folder)
    return " and ".join(str(f.path.relative_to(folder)) for f in files.values()) if files else None


def half_text(folder: Path) -> str | None:
    """What ``folder`` has of the format and what it lacks; None where it has nothing or all."""
    return half_of(_found(folder), folder)


def read(folder: Path, max_broken: float) -> DataSet:
    """Read both splits; no image is opened.

    Raises:
        InputError: when a file is missing or is no list of images, or too much is broken.
    """
    files = find(folder)
    if not files:
        raise InputError(f"{folder} {half_text(folder) or 'has no BDD100K labels'}; looked for {LOOKS_FOR}")
    entries = {split: _load(file.path) for split, file in files.items()}
    class_names = class_file(folder) or _class_names(entries)
    indices = {name: index for index, name in enumerate(class_names)}
    broken: list[Broken] = []
    records: dict[str, tuple[Record, ...]] = {}
    for split, file in files.items():
        left_out = LeftOut(file.path, max_broken)
        records[split] = tuple(_records(file, entries[split], indices, left_out))
        left_out.check(len(entries[split]), len(records[split]))
        broken += left_out.broken
    data = DataSet(
        class_names=class_names,
        train=records["train"],
        val=records["val"],
        format=NAME,
        category_ids=tuple(range(1, len(class_names) + 1)),
        broken=tuple(broken),
    )
    return checked(data, folder)


def _found(folder: Path) -> dict[str, SplitFile]:
    found: dict[str, SplitFile] = {}
    images = folder / "images"
    for split in _SPLITS:
        files = (folder / name.format(split) for name in _FILES)
        folders = (folder / name.format(split) for name in _FOLDERS)
        path = next((p for p in files if p.is_file()), None) or next(filter(_has_files, folders), None)
        if path is not None:
            found[split] = SplitFile(path, (images / "100k" / split, images / split, images))
    return found


def _has_files(folder: Path) -> bool:
    """Whether a folder has files of an image each; labelme's, say, are others."""
    return any(isinstance(_entry(path), dict) for path in islice(folder.glob("*.json"), _SAMPLE))


def _entry(path: Path) -> dict[str, Any] | InputError:
    """What the file of one image holds, as an entry of a split's file, or what is wrong with it."""
    try:
        frames = load_json(path)["frames"]
        labels = [label for frame in frames for label in frame.get("objects") or ()]
    except InputError as error:
        return error
    except (KeyError, TypeError, AttributeError):
        return InputError(f"{path} is no label file of an image; expected an object with frames, and objects in these")
    return {"name": f"{path.stem}.jpg", "labels": labels}


def _load(path: Path) -> list[Any]:
    if path.is_dir():
        return [_entry(file) for file in sorted(path.glob("*.json"))]
    content = load_json(path)
    entries = content.get("frames") if isinstance(content, dict) else content  # Scalabel's newer files wrap the list
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} is no list of images; expected objects with name and labels")
    return entries


def _class_names(entries: dict[str, list[Any]]) -> tuple[str, ...]:
    found = Counter(
        str(label.get("category"))
        for of_split in entries.values()
        for entry in of_split
        if isinstance(entry, dict)
        for label in entry.get("labels") or ()
        if isinstance(label, dict) and "box2d" in label
    )
    foreign = {
        names: sum(count for name, count in found.items() if name not in names and IGNORED.get(name) not in names)
        for names in (CLASSES_2020, CLASSES_2018)
    }
    best = min(foreign, key=lambda names: foreign[names])
    few = math.ceil(MAX_BROKEN * found.total())  # slips of the pen, which are named and left out
    return best if found and foreign[best] <= few else tuple(sorted(found))


def _records(file: SplitFile, entries: list[Any], indices: dict[str, int], left_out: LeftOut) -> Iterator[Record]:
    for number, entry in enumerate(entries):
        if isinstance(entry, InputError):
            left_out.add(str(entry), file.path, str(entry))
            continue
        name = entry.get("name") if isinstance(entry, dict) else None
        labels = entry.get("labels") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(labels, list | None):
            reason = f"{file.path}: image {number} cannot be read; expected an object with a name and a list of labels"
            left_out.add(f"image {number}", file.path, reason)
            continue
        path = first_file(file.image_folders, name)
        if path is None:
            folders = ", ".join(map(str, file.image_folders))
            left_out.add(name, file.path, f"{file.path}: image {name} has no file; looked in {folders}")
            continue
        objects = ObjectList(None)
        for place, label in enumerate(labels or ()):
            try:
                _add(objects, label, indices)
            except AnnotationError as error:
                left_out.add(name, file.path, f"{file.path}: label {place} of {name} has {error}")
        yield Record(path, labels=objects.classes(), objects=objects.objects(), image_id=number + 1)


def is_understood(label: Any, class_names: Sequence[str]) -> bool:
    """Whether ``read`` takes a label, or passes it over as that of no object."""
    try:
        _add(ObjectList(None), label, {name: index for index, name in enumerate(class_names)})
    except AnnotationError:
        return False
    return True


def _add(objects: ObjectList, label: Any, indices: dict[str, int]) -> None:
    """Add what one label says, if it is that of an object.

    Raises:
        AnnotationError: when it cannot be used.
    """
    if not isinstance(label, dict):
        raise AnnotationError(f"the value {label!r}; expected an object with category and box2d")
    box = label.get("box2d")
    if box is None:
        return
    category, attributes = str(label.get("category")), label.get("attributes")
    is_ignored = category not in indices and IGNORED.get(category) in indices
    index = indices.get(IGNORED[category] if is_ignored else category)
    if index is None:
        raise AnnotationError(f"the category {category}; known are {', '.join(indices)}")
    corners = [box.get(key) for key in _CORNERS] if isinstance(box, dict) else box
    x0, y0, x1, y1 = numbers(corners, 4, "box2d")
    is_crowd = isinstance(attributes, dict) and attributes.get("crowd") is True
    objects.add((x0, y0, x1, y1), index, crowd=is_crowd or is_ignored, present=not is_ignored)

"""YOLO's labels as Ultralytics lays them out: a text file an image, and one YAML file for the data set.

    data.yaml                    path: .                  optional: what the others are relative to
                                 train: images/train      a folder, a text file that lists images, or a list of these
                                 val: images/val
                                 names: [car, person]     or {0: car, 1: person}
    images/train/0001.jpg
    labels/train/0001.txt        a line an object: class x y width height, (x, y) being the middle
                                 or, with an outline: class x y x y x y ...

The YAML file may have any name. An image's label file lies where its path has ``labels`` in place of the last
``images``, or beside the image; without one, or with an empty one, it holds no object. Numbers are shares of the
image's width and height, upright (EXIF obeyed). Where the YAML file has ``kpt_shape``, what follows a box are
keypoints, which are passed over.

Source: Ultralytics' documentation, "Object Detection Datasets Overview" and "Instance Segmentation Datasets Overview".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spt_deploy.datasets.annotations import AnnotationError, LeftOut, ObjectList, checked, first_file, text_lines
from spt_deploy.datasets.dataset import Broken, DataSet, Record
from spt_deploy.datasets.outlines import Polygons
from spt_deploy.errors import InputError, RuntimeMissingError, SourceError
from spt_deploy.images import find_images, is_image_name, read_size

NAME = "yolo"
TITLE = "YOLO labels"
LOOKS_FOR = "data.yaml with train:, val: and names:"

_YAML = (".yaml", ".yml")
_LINES = (re.compile(r"^train\s*:", re.MULTILINE), re.compile(r"^(names|nc)\s*:", re.MULTILINE))
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}  # the first that is there
_LABELS = ("labels", "labels/*", "*/labels")
_BOX = 4  # numbers
_TRIANGLE = 6


@dataclass(frozen=True)
class Layout:
    """What the YAML file says.

    Attributes:
        file: the YAML file.
        splits: by name, the folders and lists of images of each.
        names: of the classes, by number.
        has_keypoints: whether boxes are followed by keypoints.
    """

    file: Path
    splits: dict[str, tuple[Path, ...]]
    names: dict[int, str]
    has_keypoints: bool

    @cached_property
    def places(self) -> dict[int, int]:
        """Of each class's number, its place among the classes."""
        return {number: place for place, number in enumerate(self.names)}


def yaml_file(given: Path) -> Path | None:
    """The file that names the splits: ``given`` itself, or the one in that folder; None without."""
    files = [file for file in (given.iterdir() if given.is_dir() else [given]) if file.suffix in _YAML]
    files.sort(key=lambda path: (path.stem != "data", path))
    return next(filter(_names_splits, files), None)


def label_folder(folder: Path) -> Path | None:
    """The first folder of label files in ``folder``; None without. One that holds images too is a class."""
    for pattern in _LABELS:
        for place in sorted(folder.glob(pattern)):
            names = list(place.iterdir()) if place.is_dir() else []
            if any(path.suffix == ".txt" for path in names) and not any(map(is_image_name, names)):
                return place
    return None


def found_text(given: Path) -> str | None:
    """What of the format is in a folder; None where it is not this format, or its images are not where it says."""
    try:
        layout = layout_of(given)
    except InputError:
        return None
    return f"{layout.file.name} and {Path(os.path.relpath(layout.splits['train'][0], given)).as_posix()}"


def half_text(given: Path) -> str | None:
    """What a folder has of the format and what it lacks; None where it has nothing or all."""
    what = label_folder(given) or first_file((given,), "obj.data")
    if what is None or yaml_file(given) is not None:
        return None
    return f"has {what.relative_to(given)} and no data.yaml that names its splits and classes"


def layout_of(given: Path) -> Layout:
    """What the YAML file says, which is ``given`` or lies in that folder.

    Raises:
        InputError: when there is none, or it does not say what it must.
        RuntimeMissingError: when PyYAML is not installed.
    """
    file = yaml_file(given)
    if file is None:
        raise InputError(f"{given} {half_text(given) or 'has no data.yaml'}; looked for {LOOKS_FOR}")
    return _layout(file)


def read(given: Path, max_broken: float) -> DataSet:
    """Read both splits; of an image with objects the header is read, for its size.

    Args:
        given: the YAML file, or the folder that it lies in.
        max_broken: share of a split's images that may be broken.

    Raises:
        InputError: when there is no such file, it does not say what it must, a split has no images or no label at all,
            or too much is broken.
        RuntimeMissingError: when PyYAML is not installed.
    """
    layout = layout_of(given)
    file = layout.file
    broken: list[Broken] = []
    records: dict[str, tuple[Record, ...]] = {}
    for split, places in layout.splits.items():
        left_out = LeftOut(file, max_broken)
        images = list(_images(layout, places, left_out))
        if images and not any(label_file(path).is_file() for path in images):
            raise InputError(f"no {split} image of {file} has a label file; looked for {label_file(images[0])}")
        total = len(images) + len(left_out.broken)  # those that are listed and not there
        records[split] = tuple(_records(layout, images, left_out))
        left_out.check(total, len(records[split]))
        broken += left_out.broken
    data = DataSet(
        class_names=tuple(layout.names.values()),
        train=records["train"],
        val=records["val"],
        format=NAME,
        category_ids=tuple(layout.names),
        broken=tuple(broken),
    )
    return checked(data, given)


def label_file(image: Path) -> Path:
    """Where the labels of an image lie, or would: in ``labels`` for the last ``images`` of its path, or beside it."""
    beside = image.with_suffix(".txt")
    folders = list(beside.parent.parts)
    if "images" not in folders:
        return beside
    folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    apart = Path(*folders, beside.name)
    return beside if beside.is_file() and not apart.is_file() else apart


def object_lines(label: Path, layout: Layout, size: tuple[int, int]) -> list[list[str]]:
    """The lines of a label file that ``read`` takes, each as its numbers, keypoints left out.

    Args:
        label: the file.
        layout: of the data set.
        size: (height, width) of the image.
    """
    taken = []
    for line in text_lines(label):
        values = _values(line, layout)
        try:
            _add(ObjectList(size), values, layout.places, size)
        except AnnotationError:
            continue
        taken.append(values)
    return taken


def _names_splits(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return all(line.search(text) for line in _LINES)


def load_yaml(file: Path) -> dict[str, Any]:
    """What the YAML file of a data set holds.

    Raises:
        InputError: when it cannot be read, or holds something else.
        RuntimeMissingError: when PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise RuntimeMissingError(f"{file} needs PyYAML to be read; pip install pyyaml") from error
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no YAML file of a data set; expected train:, val: and names:")
    return content


def _layout(file: Path) -> Layout:
    content = load_yaml(file)
    splits: dict[str, tuple[Path, ...]] = {}
    for split, keys in _SPLITS.items():
        key = next((key for key in keys if content.get(key)), None)
        if key is None:
            raise InputError(f"{file} has no {split}:; add a line that names the folder of the {split} images")
        entries = content[key] if isinstance(content[key], list) else [content[key]]
        splits[split] = tuple(_place(str(entry), file, content.get("path")) for entry in entries)
    return Layout(file, splits, class_names_of(file, content), "kpt_shape" in content)


def class_names_of(file: Path, content: dict[str, Any]) -> dict[int, str]:
    """The names of the classes in the ``content`` of the YAML file, by number.

    Raises:
        InputError: when there are none, or they are not each class's, once.
    """
    names = content.get("names")
    pairs = (
        list(names.items()) if isinstance(names, dict) else list(enumerate(names if isinstance(names, list) else ()))
    )
    try:
        found = {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} has the names {names!r}; expected a list, or numbers with a name each") from error
    if not found or len(set(found.values())) != len(pairs):
        raise InputError(f"{file} has the names {names!r}; expected each class's, once")
    if isinstance(content.get("nc"), int) and content["nc"] != len(found):
        raise InputError(f"{file} says nc: {content['nc']} and has {len(found)} names; make them agree")
    return dict(sorted(found.items()))


def _place(entry: str, file: Path, root: Any) -> Path:
    """What an entry means: from ``root``, if that is there, or from the YAML file."""
    bases = [file.parent / str(root), file.parent] if root else [file.parent]
    entry = entry.replace("\\", "/")
    names = [entry, entry.removeprefix("../")]  # Roboflow's begin a folder too high
    found = next((base / name for base in bases for name in names if (base / name).exists()), None)
    if found is None:
        looked = " or ".join(dict.fromkeys(str(base) for base in bases))
        raise InputError(f"{file} names {entry}, which is not in {looked}; name a folder of images, or a list of them")
    return found


def _images(layout: Layout, places: Sequence[Path], left_out: LeftOut) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            try:
                yield from find_images(place)
            except SourceError as error:
                raise InputError(f"{layout.file}: {error}") from error
            continue
        for line in text_lines(place):
            name = line.replace("\\", "/")
            folders = (place.parent, layout.file.parent)
            image = first_file(folders, name) or first_file(folders, name.removeprefix("data/"))  # CVAT's, as darknet's
            if image is None:
                left_out.add(line, place, f"{place} lists {line}, which has no file")
            else:
                yield image


def _records(layout: Layout, images: Sequence[Path], left_out: LeftOut) -> Iterator[Record]:
    for number, path in enumerate(images):
        label = label_file(path)
        try:
            lines = text_lines(label) if label.is_file() else []
            size = read_size(path) if lines else None
        except (InputError, SourceError) as error:
            left_out.add(str(path), path, str(error))
            continue
        objects = ObjectList(size)
        for place, line in enumerate(lines if size else (), 1):
            assert size is not None
            try:
                _add(objects, _values(line, layout), layout.places, size)
            except AnnotationError as error:
                left_out.add(str(path), label, f"{label}: object {place} has {error}")
        yield Record(path, labels=objects.classes(), objects=objects.objects(), image_id=number + 1, size=size)


def _values(line: str, layout: Layout) -> list[str]:
    """The numbers of a line, without keypoints."""
    return line.split()[: 1 + _BOX if layout.has_keypoints else None]


def _add(objects: ObjectList, values: Sequence[str], places: dict[int, int], size: tuple[int, int]) -> None:
    """Add what one line says.

    Raises:
        AnnotationError: when it cannot be used.
    """
    try:
        category, *shares = (float(value) for value in values)
    except ValueError as error:
        raise AnnotationError(f"the line {' '.join(values)!r}; expected numbers alone") from error
    if category not in places:
        raise AnnotationError(f"the class {category:g}, which has no name")
    is_polygon = len(shares) >= _TRIANGLE and len(shares) % 2 == 0
    if not (is_polygon or len(shares) == _BOX) or not all(map(math.isfinite, shares)):
        raise AnnotationError(
            f"the line {' '.join(values)!r}; expected class x y width height, or a class and three corners or more"
        )
    height, width = size
    if is_polygon:
        ring = np.array(shares).reshape(-1, 2) * (width, height)
        (x0, y0), (x1, y1) = ring.min(0).tolist(), ring.max(0).tolist()
        outline = Polygons((ring.astype(np.float32),))
        objects.add((x0, y0, x1, y1), places[int(category)], outline=outline)
        return
    x, y, w, h = shares
    box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    objects.add(box, places[int(category)])

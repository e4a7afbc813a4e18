"""YOLO's labels as Ultralytics lays them out: a text file an image, and one YAML file for the data set.

    data.yaml                    path: .                  optional: what the others are relative to
                                 train: images/train      a folder, a text file that lists images, or a list of these
                                 val: images/val
                                 names: [car, person]     or {0: car, 1: person}
    images/train/0001.jpg
    labels/train/0001.txt        a line an object: class x y width height, (x, y) being the middle
                                 or, with an outline: class x y x y x y ...

The YAML file may have any name. In its place darknet's file is read, as CVAT's YOLO 1.1 has it:

    obj.data                     train = data/train.txt   lists images, here or below data/
                                 valid = data/valid.txt
                                 names = data/obj.names   a class a line

An image's label file lies where its path has ``labels`` in place of the last ``images``, or beside the image; without
one, or with an empty one, it holds no object. Numbers are shares of the image's width and height, upright (EXIF
obeyed). Where the YAML file has ``kpt_shape``, what follows a box are keypoints, which are passed over.

Source: Ultralytics' documentation, "Object Detection Datasets Overview" and "Instance Segmentation Datasets Overview";
CVAT's documentation, "YOLO".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from spt_deploy.datasets.annotations import AnnotationError, LeftOut, ObjectList, checked, first_file, text_lines
from spt_deploy.datasets.dataset import Broken, DataSet, Record
from spt_deploy.datasets.outlines import Polygons
from spt_deploy.datasets.yolo_layout import LOST_OUTLINES, Layout, layout_file, read_layout
from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import find_images, is_image_name, read_size

NAME = "yolo"
TITLE = "YOLO labels"
LOOKS_FOR = "data.yaml with train:, val: and names:, or obj.data with train, valid and names"

_LABELS = ("labels", "labels/*", "*/labels")
_BOX = 4  # numbers
_TRIANGLE = 6


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
    if what is None or layout_file(given) is not None:
        return None
    return f"has {what.relative_to(given)} and no data.yaml that names its splits and classes"


def layout_of(given: Path) -> Layout:
    """What the file says that names the splits, which is ``given`` or lies in that folder.

    Raises:
        InputError: when there is none, or it does not say what it must.
        RuntimeMissingError: when PyYAML is not installed.
    """
    file = layout_file(given)
    if file is None:
        raise InputError(f"{given} {half_text(given) or 'has no data.yaml'}; looked for {LOOKS_FOR}")
    return read_layout(file)


def read(given: Path, max_broken: float) -> DataSet:
    """Read both splits; of an image with objects the header is read, for its size.

    Args:
        given: the file that names the splits, or the folder that it lies in.
        max_broken: share of a split's images that may be broken.

    Raises:
        InputError: when there is no such file, it does not say what it must, a split has no images or no label at all,
            or no object though outlines may have been lost, or too much is broken.
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
    if layout.is_darknet and not any(record.objects for each in records.values() for record in each):
        raise InputError(f"no label file of {file} has an object; {LOST_OUTLINES}")
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

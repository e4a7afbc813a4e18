"""CVAT's own file ("CVAT for images 1.1"), as COCO JSON, which holds all of it that a detector learns from.

    annotations.xml     <annotations> ...
                          <image name="street/01.jpg" subset="default" width="640" height="480">
                            <box label="person" xtl="10.0" ytl="20.0" xbr="50.5" ybr="90.0" rotation="30.0"/>
                            <polygon label="car" points="1.0,2.0;8.0,2.0;8.0,9.0" group_id="1"/>
                            <ellipse label="wheel" cx="5.0" cy="5.0" rx="3.0" ry="2.0"/>
                            <mask label="sky" rle="3, 5, 7" left="0" top="0" width="5" height="3">
                              <attribute name="is_crowd">true</attribute></mask> ...
    images/street/01.jpg, images/default/01.jpg, or anywhere below by its name

Rotations are clockwise, in degrees, round the middle. A mask's runs of 0 and 1, 0 first, go row by row through its box.
Outlines of one label and ``group_id`` are parts of one object, as in CVAT's own COCO export (which joins boxes, too; a
box here is an object of its own), and one whose attribute ``is_crowd`` or ``difficult`` is set is not to be learnt or
found. Lines, points, skeletons, cuboids and tags are no objects here. Of a video ("CVAT for video 1.1") the file names
no images: it is refused.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spt_deploy.datasets.annotations import AnnotationError, LeftOut, numbers
from spt_deploy.datasets.as_coco import CocoLists, Picture, Ring, annotation, box_ring, ellipse_ring, turned, whole
from spt_deploy.datasets.heap import NothingToLearnError, Unsplit, split_folders
from spt_deploy.datasets.locate import Named, locate
from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import read_size
from spt_deploy.wording import counted

NAME = "cvat"
TITLE = "CVAT's XML"

_START = re.compile(rb"<annotations[\s>]")
_READ_FIRST = 4096  # bytes of a file, in which its root is
_WITH_AREA = ("box", "polygon", "ellipse", "mask")
_TRUE = ("true", "1")
_SHOWN = 40  # characters of a mask in a message
_NOT_LEARNT = ("is_crowd", "difficult")  # attributes, as CVAT's exports to COCO and VOC take them
_OTHERS = ("polyline", "points", "skeleton", "cuboid")

_Element = ElementTree.Element


@dataclass
class _Contents:
    """What the files say."""

    left_out: LeftOut
    files: dict[Path, Named] = field(default_factory=dict)  # of each image
    lists: CocoLists = field(default_factory=CocoLists)
    tags: int = 0
    others: int = 0

    def add(self, named: Named, image: Path | str, element: _Element) -> None:
        """Add an image that a file lists."""
        path, key = named.file, f"{named.file}: {named.folders[0] / named.name}"
        if isinstance(image, str):
            self.left_out.add(key, path, f"{path}: {image}")
            return
        if image in self.files:
            self.left_out.add(key, path, f"{path}: image {named.name!r} is listed twice; the first entry was taken")
            return
        try:
            size = _size_of(image, element)
        except SourceError as error:
            self.left_out.add(key, path, str(error))
            return
        self.files[image] = named
        number = self.lists.add_image(image.name, size)
        self.tags += sum(each.tag == "tag" for each in element)
        self.others += sum(each.tag in _OTHERS for each in element)
        for label, shapes in _objects_of(element):
            try:
                self.lists.add(number, label, _annotation(shapes, size))
            except AnnotationError as error:
                reason = f"{path}: {named.name!r}: a {shapes[0].tag} called {label!r} has {error}"
                self.left_out.add(key, path, reason)

    def notes(self) -> list[str]:
        """What of the files is no object."""
        if self.tags + self.others == 1:
            return ["1 tag, line, point, skeleton or cuboid, which is no box or outline: left out"]
        if self.tags + self.others:
            return [
                f"{self.tags + self.others} tags, lines, points and the like, which are no boxes or outlines: left out"
            ]
        return []


def find(source: Path, max_broken: float) -> Unsplit | None:
    """See `unsplit.find_unsplit`; ``source`` may also be the file."""
    folder = source if source.is_dir() else source.parent
    files = [path for path in (sorted(source.rglob("*.xml")) if source.is_dir() else [source]) if _is_cvat(path)]
    if not files:
        return None
    entries = [_named(path, element) for path in files for element in _images_in(path)]
    if not entries:
        raise NothingToLearnError(f"{files[0]} is {TITLE} and lists no image; export the task that has them")
    located = locate([named for named, _ in entries], folder)
    places = [Path(subset, named.name) if subset else Path(named.file.stem, "_") for named, subset in entries]
    images = [Path(os.path.relpath(image, folder)) for image in located.images if isinstance(image, Path)]
    splits = split_folders([*images, *places, *(Path(named.name) for named, _ in entries)])
    if splits is not None:
        raise InputError(
            f"{source} is split already, into {splits[0]} and {splits[1]}, and {TITLE} is read as a whole; export it "
            "from CVAT as COCO 1.0 or Ultralytics YOLO, which train reads with its splits"
        )
    left_out = LeftOut(files[0] if len(files) == 1 else source, max_broken)
    contents = _Contents(left_out)
    elements = (element for path in files for element in _images_in(path))
    for (named, _), image, element in zip(entries, located.images, elements, strict=True):
        contents.add(named, image, element)
    left_out.check(len(entries), len(contents.files))
    if not contents.lists.has_objects and contents.tags:
        raise NothingToLearnError(
            f"{left_out.file} has tags, lines or points alone, no box or outline; for classes of whole images export "
            "ImageNet 1.0 from CVAT, CLASS/ folders, for `data split`"
        )
    return whole(
        folder,
        list(contents.files),
        contents.lists,
        left_out,
        found=files[0],
        title=TITLE,
        unnamed="that no XML file names",
        notes=[*located.notes, *contents.notes()],
    )


def _named(path: Path, element: _Element) -> tuple[Named, str]:
    """An image as the file ``path`` names it, and its subset."""
    name, subset = _inside(element.get("name", "")), _inside(element.get("subset", ""))
    home = path.parent
    folders = dict.fromkeys((home / "images" / subset, home / "images", home / subset, home))
    return Named(path, name, tuple(folders)), subset


def _inside(path: str) -> str:
    """``path`` without what leads out of the data set."""
    return "/".join(
        part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..") and part[-1] != ":"
    )


def _is_cvat(path: Path) -> bool:
    if path.suffix.lower() != ".xml" or not path.is_file():
        return False
    with path.open("rb") as file:
        return _START.search(file.read(_READ_FIRST)) is not None


def _images_in(path: Path) -> Iterator[_Element]:
    """The images that a file lists, one after another: it may be large.

    Raises:
        NothingToLearnError: when it is damaged, or of a video.
    """
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "track":
                raise NothingToLearnError(
                    f"{path} is CVAT's XML of a video, which names no images; export it as CVAT for images 1.1 or as "
                    "COCO 1.0, with images"
                )
            if element.tag == "image":
                yield element
                element.clear()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two of its encoding
        raise NothingToLearnError(f"{path} is damaged: {error}; export it again") from error


def _size_of(image: Path, element: _Element) -> tuple[int, int]:
    """(height, width)"""
    height, width = element.get("height", ""), element.get("width", "")
    return (int(height), int(width)) if height.isdecimal() and width.isdecimal() else read_size(image)


def _objects_of(image: _Element) -> Iterator[tuple[str, list[_Element]]]:
    """Label and shapes of each object."""
    groups: dict[tuple[str, str], list[_Element]] = {}
    for number, shape in enumerate(each for each in image if each.tag in _WITH_AREA):
        group = shape.get("group_id", "0")
        is_part = shape.tag != "box" and group != "0"
        groups.setdefault((shape.get("label", ""), group if is_part else f"alone {number}"), []).append(shape)
    yield from ((label, shapes) for (label, _), shapes in groups.items())


def _annotation(shapes: list[_Element], size: tuple[int, int]) -> dict[str, object]:
    """Box, outline and area of an object in an image of ``size``, as COCO has them.

    Raises:
        AnnotationError: when a shape cannot be used.
    """
    if not shapes[0].get("label"):
        raise AnnotationError("no label")
    return annotation(
        [_ring(shape) for shape in shapes if shape.tag != "mask"],
        [_picture(shape) for shape in shapes if shape.tag == "mask"],
        size=size,
        is_box=shapes[0].tag == "box" and not _rotation(shapes[0]),
        is_crowd=any(map(_is_crowd, shapes)),
    )


def _is_crowd(shape: _Element) -> bool:
    set_ = {each.get("name") for each in shape if each.tag == "attribute" and (each.text or "").lower() in _TRUE}
    return not set_.isdisjoint(_NOT_LEARNT)


def _ring(shape: _Element) -> Ring:
    """The corners of a shape that is no mask."""
    if shape.tag == "polygon":
        points = [numbers(point.split(","), 2, "point") for point in shape.get("points", "").split(";")]
        if len(points) < 3:
            raise AnnotationError(counted(len(points), "point"))
        return np.array(points)
    if shape.tag == "ellipse":
        ring = ellipse_ring(*_values(shape, "cx", "cy", "rx", "ry"))
    else:
        ring = box_ring(*_values(shape, "xtl", "ytl", "xbr", "ybr"))
    return turned(ring, _rotation(shape))


def _picture(shape: _Element) -> Picture:
    """What a mask covers."""
    left, top, width, height = map(int, _values(shape, "left", "top", "width", "height"))
    text = shape.get("rle", "")
    try:
        runs = np.array([int(run) for run in text.split(",")], np.int64)
    except (ValueError, OverflowError):
        raise AnnotationError(f"the rle {text[:_SHOWN]!r}; expected whole numbers") from None
    pixels = sum(runs.tolist())
    if min(width, height) < 1 or runs.min() < 0 or pixels != width * height:
        raise AnnotationError(f"runs of {pixels} pixels for a box of {width} x {height}")
    return Picture(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width), left, top)


def _rotation(shape: _Element) -> float:
    return numbers([shape.get("rotation") or 0], 1, "rotation")[0]


def _values(shape: _Element, *names: str) -> tuple[float, ...]:
    return numbers([shape.get(name) for name in names], len(names), ", ".join(names))

"""labelme's files, a JSON an image, as COCO JSON, which holds all that they say.

    street.jpg
    street.json     {"imagePath": "street.jpg", "imageHeight": 480, "imageWidth": 640, "imageData": ..., "shapes": [
                      {"label": "person", "shape_type": "polygon", "points": [[x, y], ...], "group_id": null}, ...]}

Points are in pixels from the image's corner: the corners of a ``polygon`` or ``oriented_rectangle``, two of a
``rectangle``, the middle of a ``circle`` and a point on it, the first and the last pixel of the picture in a ``mask``
(PNG in Base64). Shapes of one label and ``group_id`` are parts of one object. Lines and points have no area.
AnyLabeling and X-AnyLabeling write the same, with all four corners of a rectangle, ``rotation`` for one that is turned,
and ``difficult``.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spt_deploy.datasets.annotations import AnnotationError, LeftOut, first_file, load_json, numbers
from spt_deploy.datasets.as_coco import CocoLists, Picture, Ring, annotation, box_ring, ellipse_ring, whole
from spt_deploy.datasets.heap import Unsplit, split_folders
from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import IMAGE_SUFFIXES, read_size
from spt_deploy.wording import counted

NAME = "labelme"
TITLE = "labelme's JSON"

_KEYS = (b'"shapes"', b'"imagePath"')
_LOOKED_AT = 16  # JSON files of a folder, of which one of labelme tells
_POLYGONS = ("polygon", "rotation", "oriented_rectangle")
_WITHOUT_AREA = ("line", "linestrip", "point", "points")

_Shape = dict[str, Any]


@dataclass
class _Contents:
    """What the files of a folder say."""

    left_out: LeftOut
    files: dict[Path, Path] = field(default_factory=dict)  # of each image
    lists: CocoLists = field(default_factory=CocoLists)
    without_area: int = 0

    def add(self, path: Path, content: dict[str, Any]) -> None:
        """Add what the file ``path`` says."""
        image = _image_of(path, content)
        if image is None:
            inside = "; its picture is in the file alone" if content.get("imageData") else ""
            reason = f"{path} is of {content.get('imagePath')!r}, which is not there{inside}"
            self.left_out.add(str(path), path, reason)
            return
        if image in self.files:
            self.left_out.add(str(path), path, f"{path} is of {image}, as {self.files[image]} is, which was taken")
            return
        try:
            size = _size_of(image, content)
        except SourceError as error:
            self.left_out.add(str(path), path, str(error))
            return
        self.files[image] = path
        number = self.lists.add_image(image.name, size)
        for label, shapes in _objects_of(content["shapes"]):
            if all(shape.get("shape_type") in _WITHOUT_AREA for shape in shapes):
                self.without_area += len(shapes)
                continue
            try:
                self.lists.add(number, label, _annotation(shapes, size))
            except (AnnotationError, ValueError, TypeError) as error:
                what = error if isinstance(error, AnnotationError) else f"not the fields of a shape ({error})"
                self.left_out.add(str(path), path, f"{path}: a shape called {label!r} has {what}")


def find(source: Path, max_broken: float) -> Unsplit | None:
    """See `unsplit.find_unsplit`."""
    files = sorted(source.rglob("*.json")) if source.is_dir() else []
    first = next((path for path in islice(files, _LOOKED_AT) if _is_labelme(path)), None)
    if first is None:
        return None
    left_out = LeftOut(source, max_broken)
    contents = _Contents(left_out)
    count = 0
    for path in files:
        try:
            content = load_json(path)
        except InputError as error:
            left_out.add(str(path), path, str(error))
            count += 1
            continue
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):  # not of another tool
            contents.add(path, content)
            count += 1
    images = list(contents.files)
    splits = split_folders(Path(os.path.relpath(image, source)) for image in images)
    if splits is not None:
        raise InputError(
            f"{source} is split already, into {splits[0]}/ and {splits[1]}/, and {TITLE} is read as a whole; put the "
            "images and files of both into one folder, or convert each to COCO JSON"
        )
    left_out.check(count, len(images))
    lines = counted(contents.without_area, "line or point", "lines and points")
    return whole(
        source,
        images,
        contents.lists,
        left_out,
        found=first,
        title=TITLE,
        unnamed="without a JSON file",
        notes=[f"{lines}, which have no area: left out"] if contents.without_area else (),
    )


def _is_labelme(path: Path) -> bool:
    text = path.read_bytes()
    return all(key in text for key in _KEYS)


def _image_of(path: Path, content: dict[str, Any]) -> Path | None:
    """The image that a file is of: the one it names, or one of its own name beside it; None without."""
    named = str(content.get("imagePath") or path.name).replace("\\", "/")
    own = (f"{path.stem}{case}" for suffix in sorted(IMAGE_SUFFIXES) for case in (suffix, suffix.upper()))
    for name in (named, named.rsplit("/", 1)[-1], *own):
        file = first_file([path.parent], name)
        if file is not None and file.suffix.lower() in IMAGE_SUFFIXES:
            return Path(os.path.normpath(file))
    return None


def _size_of(image: Path, content: dict[str, Any]) -> tuple[int, int]:
    """(height, width)"""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else read_size(image)


def _objects_of(shapes: list[Any]) -> Iterator[tuple[str, list[_Shape]]]:
    """Label and shapes of each object."""
    groups: dict[tuple[str, Any], list[_Shape]] = {}
    for number, shape in enumerate(shapes):
        shape = shape if isinstance(shape, dict) else {}
        label, group = str(shape.get("label") or ""), shape.get("group_id")
        groups.setdefault((label, ("alone", number) if group is None else str(group)), []).append(shape)
    yield from ((label, members) for (label, _), members in groups.items())


def _annotation(shapes: list[_Shape], size: tuple[int, int]) -> dict[str, Any]:
    """Box, outline and whether it is difficult, as COCO has them, of an object in an image of ``size``.

    Raises:
        AnnotationError: when a shape cannot be used.
    """
    if not shapes[0].get("label"):
        raise AnnotationError("no label")
    drawn = [shape for shape in shapes if shape.get("shape_type") not in _WITHOUT_AREA]
    return annotation(
        [_ring(shape) for shape in drawn if shape.get("shape_type") != "mask"],
        [_picture(shape) for shape in drawn if shape.get("shape_type") == "mask"],
        size=size,
        is_box=len(drawn) == 1 and drawn[0].get("shape_type") == "rectangle",
        is_crowd=any(bool(shape.get("difficult")) for shape in shapes),
    )


def _ring(shape: _Shape) -> Ring:
    """The corners of a shape that is no mask."""
    kind = shape.get("shape_type") or "polygon"
    points = np.array([numbers(point, 2, "point") for point in shape.get("points") or ()]).reshape(-1, 2)
    if kind == "rectangle" and len(points) >= 2:
        return box_ring(*points.min(0), *points.max(0))
    if kind == "circle" and len(points) == 2:
        radius = math.dist(points[0], points[1])
        return ellipse_ring(points[0, 0], points[0, 1], radius, radius)
    if kind in _POLYGONS and len(points) >= 3:
        return points
    raise AnnotationError(f"the shape_type {kind!r} with {counted(len(points), 'point')}")


def _picture(shape: _Shape) -> Picture:
    """What a mask covers; it may reach over the image's edge."""
    (x, y), _ = np.array([numbers(point, 2, "point") for point in shape.get("points") or ()]).reshape(2, 2).astype(int)
    data = np.frombuffer(base64.b64decode(str(shape.get("mask"))), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if image is None:
        raise AnnotationError("a mask that is no picture")
    return Picture(image > 0, int(x), int(y))

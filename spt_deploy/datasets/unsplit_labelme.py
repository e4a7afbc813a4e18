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
import numpy.typing as npt

from spt_deploy.datasets import coco_json
from spt_deploy.datasets.annotations import AnnotationError, LeftOut, first_file, load_json, numbers
from spt_deploy.datasets.heap import Item, Unsplit, images_below, new_names, split_folders
from spt_deploy.datasets.outlines import counts_of
from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import IMAGE_SUFFIXES, read_size
from spt_deploy.wording import counted

NAME = "labelme"
TITLE = "labelme's JSON"

_KEYS = (b'"shapes"', b'"imagePath"')
_LOOKED_AT = 16  # JSON files of a folder, of which one of labelme tells
_POLYGONS = ("polygon", "rotation", "oriented_rectangle")
_WITHOUT_AREA = ("line", "linestrip", "point", "points")
_CORNERS = 36  # of a circle: its box is exact, its area to half a per cent

_Shape = dict[str, Any]
_Ring = npt.NDArray[np.float64]  # N x 2, x and y of each corner
_Mask = npt.NDArray[np.uint8]


@dataclass
class _Contents:
    """What the files of a folder say, as the lists of a COCO JSON; ids count from 1."""

    left_out: LeftOut
    files: dict[Path, Path] = field(default_factory=dict)  # of each image
    images: list[dict[str, Any]] = field(default_factory=list)
    objects: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)  # id of the image, label, the rest
    without_area: int = 0

    def add(self, path: Path, content: dict[str, Any]) -> None:
        """Add what the file ``path`` says."""
        image = _image_of(path, content)
        if image is None:
            inside = "; its picture is in the file alone" if content.get("imageData") else ""
            reason = f"{path} is of {content.get('imagePath')!r}, which is not there{inside}"
            self.left_out.add(path.stem, path, reason)
            return
        if image in self.files:
            self.left_out.add(path.stem, path, f"{path} is of {image}, as {self.files[image]} is, which was taken")
            return
        try:
            size = _size_of(image, content)
        except SourceError as error:
            self.left_out.add(path.stem, path, str(error))
            return
        self.files[image] = path
        number = len(self.files)
        self.images.append({"id": number, "file_name": image.name, "height": size[0], "width": size[1]})
        for label, shapes in _objects_of(content["shapes"]):
            if all(shape.get("shape_type") in _WITHOUT_AREA for shape in shapes):
                self.without_area += len(shapes)
                continue
            try:
                self.objects.append((number, label, _annotation(shapes, size)))
            except (AnnotationError, ValueError, TypeError) as error:
                what = error if isinstance(error, AnnotationError) else f"not the fields of a shape ({error})"
                self.left_out.add(path.stem, path, f"{path}: a shape called {label!r} has {what}")

    def coco(self) -> dict[str, Any]:
        """All of it."""
        numbers_of = {name: n for n, name in enumerate(sorted({label for _, label, _ in self.objects}), start=1)}
        annotations = [
            {"id": place, "image_id": image, "category_id": numbers_of[label], **rest}
            for place, (image, label, rest) in enumerate(self.objects, start=1)
        ]
        categories = [{"id": number, "name": name} for name, number in numbers_of.items()]
        return {"images": self.images, "annotations": annotations, "categories": categories}


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
            left_out.add(path.stem, path, str(error))
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
    below = [image for image in images_below(source) if Path(os.path.normpath(image)) not in contents.files]
    notes = [f"{counted(len(below), 'image')} without a JSON file: left out"] if below else []
    if contents.without_area:
        lines = counted(contents.without_area, "line or point", "lines and points")
        notes.append(f"{lines}, which have no area: left out")
    return Unsplit(
        coco_json.NAME,
        first.relative_to(source).as_posix(),
        source,
        tuple(Item(image, name) for image, name in zip(images, new_names(images), strict=True)),
        title=TITLE,
        content=contents.coco(),
        ids=tuple(range(1, len(images) + 1)),
        notes=(*notes, "train and val will be COCO JSON"),
        broken=tuple(left_out.broken),
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
    rest = {"iscrowd": int(any(bool(shape.get("difficult")) for shape in shapes))}
    drawn = [shape for shape in shapes if shape.get("shape_type") not in _WITHOUT_AREA]
    if any(shape.get("shape_type") == "mask" for shape in drawn):
        mask = np.zeros(size, np.uint8)
        for shape in drawn:
            if shape.get("shape_type") == "mask":
                _draw_mask(shape, mask)
            else:
                cv2.fillPoly(mask, [np.round(_ring(shape)).astype(np.int32)], 1)
        if not mask.any():
            raise AnnotationError("a mask without a pixel in its image")
        x, y, width, height = cv2.boundingRect(mask)
        return rest | {
            "bbox": [x, y, width, height],
            "area": int(mask.sum()),
            "segmentation": {"size": list(size), "counts": counts_of(mask)},
        }
    rings = [_ring(shape) for shape in drawn]
    low, high = np.min([ring.min(0) for ring in rings], 0), np.max([ring.max(0) for ring in rings], 0)
    box = {"bbox": [*low.tolist(), *(high - low).tolist()]}
    if len(drawn) == 1 and drawn[0].get("shape_type") == "rectangle":
        return rest | box
    return rest | box | {"segmentation": [ring.flatten().tolist() for ring in rings]}


def _ring(shape: _Shape) -> _Ring:
    """The corners of a shape that is no mask."""
    kind = shape.get("shape_type") or "polygon"
    points = np.array([numbers(point, 2, "point") for point in shape.get("points") or ()]).reshape(-1, 2)
    if kind == "rectangle" and len(points) >= 2:
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if kind == "circle" and len(points) == 2:
        angles = np.arange(_CORNERS) * (2 * math.pi / _CORNERS)
        radius = math.dist(points[0], points[1])
        corners: _Ring = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return corners
    if kind in _POLYGONS and len(points) >= 3:
        return points
    raise AnnotationError(f"the shape_type {kind!r} with {counted(len(points), 'point')}")


def _draw_mask(shape: _Shape, onto: _Mask) -> None:
    """Set the pixels of ``onto`` that a mask covers; it may reach over the edge."""
    (x, y), _ = np.array([numbers(point, 2, "point") for point in shape.get("points") or ()]).reshape(2, 2).astype(int)
    data = np.frombuffer(base64.b64decode(str(shape.get("mask"))), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if picture is None:
        raise AnnotationError("a mask that is no picture")
    height, width = onto.shape
    inside = picture[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)] > 0
    top, left = max(0, y), max(0, x)
    onto[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside.astype(np.uint8)

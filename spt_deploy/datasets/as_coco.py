"""What annotation tools say of images, as COCO JSON, which holds boxes, outlines and masks alike.

Points are in pixels from the image's corner, x to the right and y down.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from spt_deploy.datasets import coco_json
from spt_deploy.datasets.annotations import AnnotationError, LeftOut
from spt_deploy.datasets.heap import Item, NothingToLearnError, Unsplit, images_below, new_names
from spt_deploy.datasets.objects import Mask
from spt_deploy.datasets.outlines import Polygons, counts_of
from spt_deploy.wording import counted

Ring = npt.NDArray[np.float64]  # N x 2, x and y of each corner

_CORNERS = 36  # of an ellipse: its area is exact to half a per cent; so is its box, unless it is turned


@dataclass(frozen=True, eq=False)
class Picture:
    """A part of an image.

    Attributes:
        set: h x w, whether the object covers the pixel.
        x: column of its first pixel in the image; it may lie outside.
        y: row of it.
    """

    set: npt.NDArray[np.bool_]
    x: int
    y: int


@dataclass
class CocoLists:
    """The lists of a COCO JSON; ids count from 1, and categories are the labels of the objects, sorted."""

    images: list[dict[str, Any]] = field(default_factory=list)
    _objects: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)  # id of the image, label, the rest

    def add_image(self, name: str, size: tuple[int, int]) -> int:
        """Add an image of ``size`` (height, width); its id."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        return number

    def add(self, image: int, label: str, annotation: dict[str, Any]) -> None:
        """Add an object, of which `annotation` says the rest."""
        self._objects.append((image, label, annotation))

    @property
    def has_objects(self) -> bool:
        """Whether there is one."""
        return bool(self._objects)

    def content(self) -> dict[str, Any]:
        """All of it."""
        numbers_of = {name: n for n, name in enumerate(sorted({label for _, label, _ in self._objects}), start=1)}
        annotations = [
            {"id": place, "image_id": image, "category_id": numbers_of[label], **rest}
            for place, (image, label, rest) in enumerate(self._objects, start=1)
        ]
        categories = [{"id": number, "name": name} for name, number in numbers_of.items()]
        return {"images": self.images, "annotations": annotations, "categories": categories}


def whole(
    folder: Path,
    images: Sequence[Path],
    lists: CocoLists,
    left_out: LeftOut,
    *,
    found: Path,
    title: str,
    unnamed: str,
    notes: Sequence[str] = (),
) -> Unsplit:
    """What was found, as a data set that will be COCO JSON.

    Args:
        folder: where it lies.
        images: their files, in the order of ``lists``.
        lists: what is said of them.
        left_out: what is not.
        found: the file that told it.
        title: of what it is.
        unnamed: what is said of images in ``folder`` that are not in ``images``.
        notes: other sentences that a user should read.

    Raises:
        NothingToLearnError: when no image has an object.
    """
    if not lists.has_objects:
        lost = f"; {left_out.broken[-1].reason}" if left_out.broken else ""
        raise NothingToLearnError(
            f"{left_out.file} is {title} of {counted(len(images), 'image')} without a box or outline{lost}; draw some"
        )
    others = len({Path(os.path.normpath(image)) for image in images_below(folder)} - set(images))
    said = [f"{counted(others, 'image')} {unnamed}: left out"] if others else []
    return Unsplit(
        coco_json.NAME,
        found.relative_to(folder).as_posix(),
        folder,
        tuple(Item(image, name) for image, name in zip(images, new_names(images, by_stem=False), strict=True)),
        title=title,
        content=lists.content(),
        ids=tuple(range(1, len(images) + 1)),
        notes=(*said, *notes, "train and val will be COCO JSON"),
        broken=tuple(left_out.broken),
    )


def annotation(
    rings: Sequence[Ring],
    pictures: Sequence[Picture] = (),
    *,
    size: tuple[int, int],
    is_box: bool = False,
    is_crowd: bool = False,
) -> dict[str, Any]:
    """Box, outline and area of an object, as COCO has them.

    Args:
        rings: what lies in any of them is the object.
        pictures: what is set there is the object, too; with one of these the rings become pixels.
        size: (height, width) of the image.
        is_box: whether the one ring is a box, and no outline.
        is_crowd: whether the object is not to be learnt or found.

    Raises:
        AnnotationError: when no pixel is set.
    """
    rest = {"iscrowd": int(is_crowd)}
    if pictures:
        return rest | _drawn(rings, pictures, size)
    low, high = np.min([ring.min(0) for ring in rings], 0), np.max([ring.max(0) for ring in rings], 0)
    box = {"bbox": [*low.tolist(), *(high - low).tolist()]}
    return rest | box | ({} if is_box else {"segmentation": [ring.flatten().tolist() for ring in rings]})


def _drawn(rings: Sequence[Ring], pictures: Sequence[Picture], size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    lows = [*(picture.x for picture in pictures), *(int(ring[:, 0].min()) for ring in rings)]
    highs = [*(each.x + each.set.shape[1] for each in pictures), *(int(ring[:, 0].max()) + 1 for ring in rings)]
    left, right = min(max(0, min(lows)), width), min(max(0, *highs), width)
    columns: Mask = np.zeros((height, max(0, right - left)), np.uint8)  # those that it lies in: images are large
    for picture in pictures:
        _set_pixels(picture, left, columns)
    Polygons(tuple((ring - (left, 0)).astype(np.float32) for ring in rings)).draw(columns)
    if not columns.any():
        raise AnnotationError("a mask without a pixel in its image")
    x, y, box_width, box_height = cv2.boundingRect(columns)
    counts = counts_of(columns, before=left * height, after=(width - right) * height)
    return {
        "bbox": [left + x, y, box_width, box_height],
        "area": int(columns.sum()),
        "segmentation": {"size": [height, width], "counts": counts},
    }


def _set_pixels(picture: Picture, left: int, onto: Mask) -> None:
    """Set the pixels of ``onto``, whose first column is ``left``; the picture may reach over the edge."""
    height, width = onto.shape
    x, y = picture.x - left, picture.y
    inside = picture.set[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
    top, left = max(0, y), max(0, x)
    onto[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside.astype(np.uint8)


def box_ring(x0: float, y0: float, x1: float, y1: float) -> Ring:
    """The corners of a box."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def ellipse_ring(x: float, y: float, radius_x: float, radius_y: float) -> Ring:
    """Corners of an ellipse round x, y."""
    angles = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
    corners: Ring = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)
    return corners


def turned(ring: Ring, degrees: float) -> Ring:
    """``ring``, turned clockwise round the middle of its box."""
    middle = (ring.min(0) + ring.max(0)) / 2
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    corners: Ring = (ring - middle) @ np.array([(cos, sin), (-sin, cos)]) + middle
    return corners

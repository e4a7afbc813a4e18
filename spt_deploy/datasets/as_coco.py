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
from spt_deploy.datasets.heap import Item, Unsplit, images_below, new_names
from spt_deploy.datasets.outlines import counts_of
from spt_deploy.wording import counted

Ring = npt.NDArray[np.float64]  # N x 2, x and y of each corner
Mask = npt.NDArray[np.uint8]  # H x W of the image, 1 where the object is

_CORNERS = 36  # of an ellipse: its box is exact, its area to half a per cent


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
    """
    others = len({Path(os.path.normpath(image)) for image in images_below(folder)} - set(images))
    said = [f"{counted(others, 'image')} {unnamed}: left out"] if others else []
    return Unsplit(
        coco_json.NAME,
        found.relative_to(folder).as_posix(),
        folder,
        tuple(Item(image, name) for image, name in zip(images, new_names(images), strict=True)),
        title=title,
        content=lists.content(),
        ids=tuple(range(1, len(images) + 1)),
        notes=(*said, *notes, "train and val will be COCO JSON"),
        broken=tuple(left_out.broken),
    )


def annotation(
    rings: Sequence[Ring], mask: Mask | None = None, *, is_box: bool = False, is_crowd: bool = False
) -> dict[str, Any]:
    """Box, outline and area of an object, as COCO has them.

    Args:
        rings: what lies in any of them is the object.
        mask: what is set there is the object, too; the rings are drawn onto it.
        is_box: whether the one ring is a box, and no outline.
        is_crowd: whether the object is not to be learnt or found.

    Raises:
        AnnotationError: when no pixel is set.
    """
    rest = {"iscrowd": int(is_crowd)}
    if mask is not None:
        for ring in rings:
            cv2.fillPoly(mask, [np.round(ring).astype(np.int32)], 1)
        if not mask.any():
            raise AnnotationError("a mask without a pixel in its image")
        x, y, width, height = cv2.boundingRect(mask)
        runs = {"size": list(mask.shape), "counts": counts_of(mask)}
        return rest | {"bbox": [x, y, width, height], "area": int(mask.sum()), "segmentation": runs}
    low, high = np.min([ring.min(0) for ring in rings], 0), np.max([ring.max(0) for ring in rings], 0)
    box = {"bbox": [*low.tolist(), *(high - low).tolist()]}
    return rest | box | ({} if is_box else {"segmentation": [ring.flatten().tolist() for ring in rings]})


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


def set_pixels(picture: npt.NDArray[np.bool_], x: int, y: int, onto: Mask) -> None:
    """Set the pixels of ``onto`` that ``picture`` covers, whose corner is at x, y; it may reach over the edge."""
    height, width = onto.shape
    inside = picture[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
    top, left = max(0, y), max(0, x)
    onto[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside.astype(np.uint8)

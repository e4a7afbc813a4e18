"""An image with its objects between decoding and the model's input: what augmentation changes together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spt_deploy.datasets.dataset import Record
from spt_deploy.datasets.objects import Boxes, Mask, Objects, box_mask, cut_box
from spt_deploy.errors import SourceError
from spt_deploy.preprocess import Preprocessing

Image = npt.NDArray[np.uint8]

_ROUNDING = 1e-6  # pixels; an edge at 6.9999999 is one at 7


@dataclass(frozen=True, eq=False)
class Scene:
    """One image and n objects.

    Attributes:
        image: H x W x 3 uint8, BGR.
        boxes: n x 4 float32, xyxy in pixels of ``image``.
        labels: n int64, index of the class.
        crowd: n bool, objects that are not to be learnt or found.
        drawn: n bool, objects whose pixels are in ``mask``; the others cover their box.
        mask: H x W uint8, 1 in the outline of an object; None where no object has one.
        known: whether all objects are known; without, there is no select label.
    """

    image: Image
    boxes: Boxes
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    drawn: npt.NDArray[np.bool_]
    mask: Mask | None = None
    known: bool = True

    @classmethod
    def of(cls, image: Image, objects: Objects | None) -> Scene:
        """An image as decoded, with what is known of it.

        Raises:
            SourceError: when an outline cannot be read.
        """
        if objects is None:
            nothing = Objects.from_boxes([], [])
            return cls(
                image, nothing.boxes, nothing.labels, nothing.crowd, np.zeros(0, dtype=np.bool_), None, known=False
            )
        mask, drawn = None, np.zeros(len(objects), dtype=np.bool_)
        if objects.outlines is not None:
            mask, drawn = objects.draw_outlines((image.shape[0], image.shape[1]))
        limit = np.array([image.shape[1], image.shape[0]] * 2, dtype=np.float32)
        return cls(image, np.clip(objects.boxes, 0, limit), objects.labels, objects.crowd, drawn, mask)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]


def mask_in_input(scene: Scene, preprocessing: Preprocessing) -> Mask:
    """Which pixels of the model's input lie in an object: H x W uint8, 1 where an outline or else a box has a part."""
    boxes = preprocessing.boxes_to_input(scene.boxes[~scene.drawn], scene.size)
    mask = box_mask(boxes, preprocessing.size)
    if scene.mask is not None:
        place = preprocessing.placement(scene.size)
        inner = mask[place.top : place.top + place.height, place.left : place.left + place.width]
        inner |= resize_mask(scene.mask, (place.height, place.width))
    return mask


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """``mask`` (h x w of 0 and 1) at another size (height, width); 1 wherever a part of a 1 comes to lie."""
    for axis, length in enumerate(size):
        if length != mask.shape[axis]:
            edges = np.arange(length + 1) * mask.shape[axis] / length  # of the new pixels, in old ones
            starts, ends = np.floor(edges[:-1] + _ROUNDING).astype(int), np.ceil(edges[1:] - _ROUNDING).astype(int)
            nothing = np.zeros_like(mask.take([0], axis), dtype=np.int32)
            sums = np.concatenate([nothing, mask.cumsum(axis, dtype=np.int32)], axis)
            mask = (sums.take(ends, axis) > sums.take(starts, axis)).astype(np.uint8)
    return mask


def scene_of(record: Record, image: npt.NDArray[np.uint8]) -> Scene:
    """The image of a record (H x W x 3, BGR, as decoded) and its objects as they are.

    Raises:
        SourceError: when an outline cannot be read, or the annotations are for an image of another size.
    """
    size = (image.shape[0], image.shape[1])
    if record.size is not None and record.size != size:
        raise SourceError(
            f"{record.path} is {size[1]} x {size[0]} pixels and its annotations are for "
            f"{record.size[1]} x {record.size[0]}; annotate the image as it is, with its EXIF orientation obeyed"
        )
    objects = record.objects
    if record.size is None and objects is not None:  # nobody could look before
        for number, box in enumerate(objects.boxes.tolist()):
            if cut_box(tuple(box), size) is None:
                raise SourceError(
                    f"{record.path} is {size[1]} x {size[0]} pixels and the box {', '.join(f'{v:g}' for v in box)} "
                    f"(x0, y0, x1, y1) of its object {number} lies outside; correct its annotations"
                )
    return Scene.of(image, objects)

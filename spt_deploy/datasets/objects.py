"""What is known of the objects in an image, and which pixels they cover.

Boxes are kept as numbers; outlines stay as compact as their file wrote them and become pixels when a sample needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]

_ROUNDING = 1e-3  # pixels; a box scaled to 7.9999 ends at 8
# A box may reach past its image by this much, in pixels or as a share of the side: tools round, and it is cut. More is
# a mistake: a box of another image, or of this image at another size.
_SLACK_PIXELS, _SLACK_SHARE = 2.0, 0.01


class Outline(Protocol):
    """The exact shape of one object (see `outlines.py`)."""

    def draw(self, mask: Mask) -> bool:
        """Set the object's pixels in ``mask`` (H x W of the image) to 1.

        Returns:
            Whether there was any pixel.

        Raises:
            SourceError: when the outline cannot be read, or is that of an image of another size.
        """


@dataclass(frozen=True, eq=False)
class Objects:
    """The n objects of one image.

    Attributes:
        boxes: n x 4 float32, xyxy in pixels of the image as decoded, x1 and y1 past the last pixel.
        labels: n int64, index of the class.
        crowd: n bool; such an object is not to be learnt or found (COCO's iscrowd, VOC's difficult, BDD's ignore), but
            it is an object: the select label has it.
        areas: n float64, pixels, by which metrics sort small from large: of the outline where the file says, else of
            the box.
        outlines: of each object, None for one that has but a box; None where no object has one.
    """

    boxes: Boxes
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    outlines: tuple[Outline | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_boxes(cls, boxes: npt.ArrayLike, labels: npt.ArrayLike, crowd: npt.ArrayLike | None = None) -> Objects:
        """Objects with boxes only; ``labels`` one for all or one each, ``crowd`` none by default."""
        array = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        return cls(
            array,
            np.broadcast_to(np.asarray(labels, dtype=np.int64), len(array)).copy(),
            np.zeros(len(array), dtype=np.bool_) if crowd is None else np.asarray(crowd, dtype=np.bool_).reshape(-1),
            np.prod(array[:, 2:].astype(np.float64) - array[:, :2], axis=1),
        )

    @property
    def has_outline(self) -> npt.NDArray[np.bool_]:
        """n bool, whether more than the box is known."""
        if self.outlines is None:
            return np.zeros(len(self), dtype=np.bool_)
        return np.array([outline is not None for outline in self.outlines], dtype=np.bool_)

    def draw_outlines(self, size: tuple[int, int]) -> tuple[Mask, npt.NDArray[np.bool_]]:
        """The union of all outlines.

        Args:
            size: (height, width) of the image.

        Returns:
            H x W uint8, 1 inside an outline; and n bool, which objects are in it. One whose outline is thinner than a
            pixel and covers none is not: its box speaks for it.

        Raises:
            SourceError: when an outline cannot be read.
        """
        mask = np.zeros(size, dtype=np.uint8)
        drawn = [outline is not None and outline.draw(mask) for outline in self.outlines or [None] * len(self)]
        return mask, np.array(drawn, dtype=np.bool_)

    def mask(self, size: tuple[int, int]) -> Mask:
        """H x W uint8, 1 in every pixel of an object: its outline's, else its box's; ``size`` is (height, width).

        Raises:
            SourceError: when an outline cannot be read.
        """
        mask, drawn = self.draw_outlines(size)
        return mask | box_mask(self.boxes[~drawn], size)


def cut_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The part of a box (xyxy, pixels) in an image of ``size`` (height, width); None where it does not belong to it."""
    x0, y0, x1, y1 = box
    height, width = size
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    reach_x, reach_y = max(-x0, x1 - width), max(-y0, y1 - height)
    slack_x, slack_y = max(_SLACK_PIXELS, _SLACK_SHARE * width), max(_SLACK_PIXELS, _SLACK_SHARE * height)
    fits = reach_x <= slack_x and reach_y <= slack_y and cut[0] < cut[2] and cut[1] < cut[3]
    return cut if fits else None


def box_mask(boxes: Boxes, size: tuple[int, int]) -> Mask:
    """H x W uint8, 1 in every pixel that a box touches; ``boxes`` n x 4 xyxy in pixels, ``size`` (height, width)."""
    mask = np.zeros(size, dtype=np.uint8)
    starts = np.floor(boxes[:, :2] + _ROUNDING).clip(min=0).astype(int)
    ends = np.ceil(boxes[:, 2:] - _ROUNDING).clip(min=0).astype(int)
    for (x0, y0), (x1, y1) in zip(starts, ends, strict=True):
        mask[y0:y1, x0:x1] = 1
    return mask

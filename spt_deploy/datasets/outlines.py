"""Outlines of objects as data sets write them: polygons, run-length codes, and images of object numbers.

Polygons        COCO's ``segmentation`` as a list: rings of x, y in pixels; a pixel is inside if its centre is
RunLength       COCO's ``segmentation`` as a dict: lengths of runs of 0 and 1, column after column, as numbers or as
                text (base 32 with differences, source: cocoapi, common/maskApi.c, rleToString)
NumberedImage   VOC's SegmentationObject: a PNG whose palette index is the object's place in the XML, from 1
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.datasets.objects import Mask
from spt_deploy.errors import SourceError

_VOC_BORDER = 255  # the line between objects and around them, which is nobody's


@dataclass(frozen=True, eq=False)
class Polygons:
    """Rings of k x 2 float32, x and y in pixels; what lies in any of them is the object."""

    rings: tuple[npt.NDArray[np.float32], ...]

    def draw(self, mask: Mask) -> bool:
        """See `Outline`."""
        filled = [_fill(ring, mask) for ring in self.rings]
        return any(filled)


def _fill(ring: npt.NDArray[np.float32], mask: Mask) -> bool:
    """Set the pixels whose centre lies inside (even-odd rule), row by row from the crossings of the edges."""
    xs, ys = ring[:, 0].astype(np.float64) - 0.5, ring[:, 1].astype(np.float64) - 0.5  # centres at whole numbers
    top, bottom = max(0, int(np.ceil(ys.min()))), min(mask.shape[0], int(np.ceil(ys.max())))
    left, right = max(0, int(np.ceil(xs.min()))), min(mask.shape[1], int(np.ceil(xs.max())))
    if top >= bottom or left >= right:
        return False
    # Each edge crosses the rows from its upper end to just above its lower one; two edges that meet share no row.
    next_xs, next_ys = np.roll(xs, -1), np.roll(ys, -1)
    firsts = np.ceil(np.minimum(ys, next_ys)).clip(top, bottom).astype(int)
    counts = np.ceil(np.maximum(ys, next_ys)).clip(top, bottom).astype(int) - firsts
    edges = np.repeat(np.arange(len(ring)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + firsts[edges]
    slopes = (next_xs - xs)[edges] / (next_ys - ys)[edges]
    crossings = np.ceil(xs[edges] + (rows - ys[edges]) * slopes).clip(left, right).astype(int)
    toggles = np.zeros((bottom - top, right - left + 1), dtype=np.uint8)
    np.bitwise_xor.at(toggles, (rows - top, crossings - left), 1)
    inside = np.bitwise_xor.accumulate(toggles, axis=1)[:, :-1]
    mask[top:bottom, left:right] |= inside
    return bool(inside.any())


@dataclass(frozen=True, eq=False)
class RunLength:
    """Runs of 0 and 1 in turn, 0 first, down the columns of an image.

    Attributes:
        size: (height, width) of the image.
        counts: lengths of the runs, int32 or COCO's text.
        where: names the annotation in errors.
    """

    size: tuple[int, int]
    counts: npt.NDArray[np.int32] | str
    where: str

    def draw(self, mask: Mask) -> bool:
        """See `Outline`."""
        if self.size != mask.shape:
            raise SourceError(
                f"{self.where} has a mask of {self.size[1]} x {self.size[0]} pixels in an image of "
                f"{mask.shape[1]} x {mask.shape[0]}; write it for the image's size"
            )
        counts = _text_to_counts(self.counts) if isinstance(self.counts, str) else self.counts
        if counts.sum() != mask.size or (counts < 0).any():
            raise SourceError(
                f"{self.where} has a mask whose runs are {counts.sum()} pixels long together; expected {mask.size} for "
                f"{self.size[1]} x {self.size[0]}"
            )
        inside = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8).reshape(self.size, order="F")
        mask |= inside
        return bool(inside.any())


def _text_to_counts(text: str) -> npt.NDArray[np.int64]:
    """COCO's text as lengths: 5 bits a character from 48 on, a sixth for "more follows"; from the fourth length on the
    text has the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii", errors="replace"):
        code = character - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return np.array(counts, dtype=np.int64)


def counts_of(mask: Mask, *, before: int = 0, after: int = 0) -> list[int]:
    """The lengths that `RunLength` draws ``mask`` from, with so many pixels of 0 before it and after it."""
    flat = mask.flatten(order="F")
    places = np.flatnonzero(np.diff(flat, prepend=0, append=0))  # where a run of 1 begins, where it ends, and so on
    lengths = np.diff(np.concatenate([[-before], places, [flat.size + after]]))
    return [int(n) for n in (lengths if lengths[-1] else lengths[:-1])]


@dataclass(frozen=True, eq=False)
class NumberedImage:
    """Those pixels of an image file that have the object's number."""

    path: Path
    number: int

    def draw(self, mask: Mask) -> bool:
        """See `Outline`."""
        numbers = read_numbers(self.path)
        if numbers.shape != mask.shape:
            raise SourceError(
                f"{self.path} is {numbers.shape[1]} x {numbers.shape[0]} pixels and its image "
                f"{mask.shape[1]} x {mask.shape[0]}; both must have one size"
            )
        inside = numbers == self.number
        mask[inside] = 1
        return bool(inside.any())


@lru_cache(maxsize=2)  # an image's objects are drawn one after the other
def read_numbers(path: Path) -> Mask:
    """H x W uint8, the palette indices of a VOC segmentation.

    Raises:
        SourceError: when the file is no image that can be read, or has colours that are not VOC's.
    """
    import cv2

    try:
        image: Any = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    if image is None or image.dtype != np.uint8:
        raise SourceError(f"{path} is no 8-bit image that can be decoded; expected a PNG of object numbers")
    if image.ndim == 2:
        return np.asarray(image, dtype=np.uint8)
    codes = image[:, :, :3].astype(np.int32) @ np.array([1, 1 << 8, 1 << 16])  # OpenCV looked the palette up: BGR
    palette = voc_palette().astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    order = np.argsort(palette)
    places = order[np.searchsorted(palette[order], codes).clip(max=255)]
    if (palette[places] != codes).any():
        raise SourceError(f"{path} has colours that are not of VOC's palette; expected a PNG of object numbers")
    return np.asarray(places, dtype=np.uint8)


def voc_palette() -> npt.NDArray[np.uint8]:
    """256 x 3 uint8 RGB: bits 0, 1, 2 of an index are the highest bits of R, G, B, bits 3, 4, 5 the next, and so on."""
    indices = np.arange(256)
    channels = [sum(((indices >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)

"""Random changes of a training image, its boxes with it: flip, a jittered crop, a light change of colour.

They come before preprocessing and never resample: a crop is a slice, so that the one resize is preprocessing's own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spt_deploy.preprocess import IMAGENET_MEAN

Image = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]

FLIP = 0.5  # probability
CROP_SIDE = (0.8, 1.1)  # sides of the crop as shares of the image's; above 1 it looks past the edge
BRIGHTNESS = 0.15
CONTRAST = 0.15
CHANNEL = 0.05  # each channel's own gain
OUTSIDE_BGR = tuple(round(255 * v) for v in reversed(IMAGENET_MEAN))  # 0 once normalised, as letterbox fills


class Crop(NamedTuple):
    """A rectangle in pixels of the source; it may reach past the image's edges."""

    top: int
    left: int
    height: int
    width: int


def augment(image: Image, boxes: Boxes | None, random: np.random.Generator) -> tuple[Image, Boxes | None]:
    """One image changed at random.

    Args:
        image: H x W x 3 uint8, BGR; stays as it is.
        boxes: n x 4 float32, xyxy in pixels of ``image``; None where nothing is known of objects.
        random: where chance comes from.

    Returns:
        The changed image, its size a little different, and its boxes; boxes that left the image are gone.
    """
    if random.random() < FLIP:
        image, boxes = flip(image, boxes)
    image, boxes = crop(image, boxes, _random_crop(image.shape[0], image.shape[1], random))
    return colour_jitter(image, random), boxes


def flip(image: Image, boxes: Boxes | None) -> tuple[Image, Boxes | None]:
    """Mirror left and right."""
    if boxes is not None:
        width = np.float32(image.shape[1])
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return image[:, ::-1], boxes


def crop(image: Image, boxes: Boxes | None, window: Crop) -> tuple[Image, Boxes | None]:
    """The part of an image in ``window``; what lies outside the image gets the mean colour."""
    height, width = image.shape[:2]
    top, left = max(0, window.top), max(0, window.left)
    bottom, right = min(height, window.top + window.height), min(width, window.left + window.width)
    inside = image[top:bottom, left:right]
    if inside.shape[:2] != (window.height, window.width):
        whole = np.empty((window.height, window.width, 3), dtype=np.uint8)
        whole[:] = OUTSIDE_BGR
        whole[top - window.top : bottom - window.top, left - window.left : right - window.left] = inside
        inside = whole
    if boxes is not None:
        moved = boxes - np.array([window.left, window.top] * 2, dtype=np.float32)
        limit = np.array([window.width, window.height] * 2, dtype=np.float32)
        moved = np.clip(moved, 0, limit)
        boxes = moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]
    return inside, boxes


def colour_jitter(image: Image, random: np.random.Generator) -> Image:
    """Brightness, contrast and each channel's gain changed a little, by one look-up table a channel."""
    gain = (1 + random.uniform(-CONTRAST, CONTRAST)) * (1 + random.uniform(-CHANNEL, CHANNEL, 3))
    offset = 255 * random.uniform(-BRIGHTNESS, BRIGHTNESS)
    table = (np.arange(256)[:, None] - 127.5) * gain + 127.5 + offset
    table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return np.stack([table[:, c][image[:, :, c]] for c in range(3)], axis=2)


def _random_crop(height: int, width: int, random: np.random.Generator) -> Crop:
    """A window of almost the image's size and shape, somewhere near it."""
    scale = random.uniform(*CROP_SIDE)
    aspect = random.uniform(0.95, 1.05)
    rows, columns = max(1, round(height * scale * aspect)), max(1, round(width * scale / aspect))
    # Between flush with one edge and flush with the other; larger than the image, it slides over it the same way.
    top, left = random.uniform(0, 1, 2) * (height - rows, width - columns)
    return Crop(round(top), round(left), rows, columns)

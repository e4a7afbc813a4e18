"""Random changes of a training image, its objects with it: flip, a jittered crop, a light change of colour.

They come before preprocessing and never resample: a crop is a slice, so that the one resize is preprocessing's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spt_deploy.config import Task
from spt_deploy.datasets.scene import Image, Scene
from spt_deploy.preprocess import IMAGENET_MEAN

BRIGHTNESS = 0.15
CONTRAST = 0.15
CHANNEL = 0.05  # each channel's own gain
LEAST_VISIBLE = 0.25  # share of an object's box; with less left in the crop it is not to be found any more
OUTSIDE_BGR = tuple(round(255 * v) for v in reversed(IMAGENET_MEAN))  # 0 once normalised, as letterbox fills


@dataclass(frozen=True)
class Augmentation:
    """How much training images change.

    Attributes:
        flip: probability that left and right are exchanged.
        window: sides of the crop as shares of the image's; above 1 it looks past the edge, and objects become smaller.
        aspect: the crop's height and width differ from the image's by up to this share.
        mosaic: probability that an image is put together with three others (see `mosaic.py`).
    """

    flip: float = 0.5
    window: tuple[float, float] = (0.8, 1.1)
    aspect: float = 0.05
    mosaic: float = 0.0

    @classmethod
    def for_task(cls, task: Task, flip: float = 0.5, mosaic: float = 0.0) -> Augmentation:
        """The default of a task: objects to be found come in more sizes than images to be named."""
        return cls(flip, window=(0.67, 1.6), mosaic=mosaic) if task == "detect" else cls(flip)


class Crop(NamedTuple):
    """A rectangle in pixels of the source; it may reach past the image's edges."""

    top: int
    left: int
    height: int
    width: int


def augment(scene: Scene, how: Augmentation, random: np.random.Generator) -> Scene:
    """One image and its objects changed at random; objects that left the image are gone, its size differs a little."""
    if random.random() < how.flip:
        scene = flip(scene)
    scene = crop(scene, _random_crop(scene.size, how, random))
    return replace(scene, image=colour_jitter(scene.image, random))


def flip(scene: Scene) -> Scene:
    """Mirror left and right."""
    import cv2

    width = np.float32(scene.size[1])
    x0, y0, x1, y1 = scene.boxes.T
    return replace(
        scene,
        image=np.asarray(cv2.flip(scene.image, 1), dtype=np.uint8),  # not [:, ::-1], which is slow to read from
        boxes=np.stack([width - x1, y0, width - x0, y1], axis=1),
        mask=None if scene.mask is None else scene.mask[:, ::-1],
    )


def crop(scene: Scene, window: Crop) -> Scene:
    """The part of an image in ``window``; what lies outside the image gets the mean colour.

    Boxes are cut at the window's edge. An object of which less than ``LEAST_VISIBLE`` is left becomes crowd.
    """
    moved = scene.boxes - np.array([window.left, window.top] * 2, dtype=np.float32)
    moved = np.clip(moved, 0, np.array([window.width, window.height] * 2, dtype=np.float32))
    left = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    hidden = _areas(moved) < LEAST_VISIBLE * _areas(scene.boxes)
    return replace(
        scene,
        image=_slice(scene.image, window, OUTSIDE_BGR),
        boxes=moved[left],
        labels=scene.labels[left],
        crowd=(scene.crowd | hidden)[left],
        drawn=scene.drawn[left],
        mask=None if scene.mask is None else _slice(scene.mask, window, 0),
    )


def colour_jitter(image: Image, random: np.random.Generator) -> Image:
    """Brightness, contrast and each channel's gain changed a little, by one look-up table a channel."""
    import cv2

    gain = (1 + random.uniform(-CONTRAST, CONTRAST)) * (1 + random.uniform(-CHANNEL, CHANNEL, 3))
    offset = 255 * random.uniform(-BRIGHTNESS, BRIGHTNESS)
    table = (np.arange(256)[:, None] - 127.5) * gain + 127.5 + offset
    table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), table[None]), dtype=np.uint8)


def _random_crop(size: tuple[int, int], how: Augmentation, random: np.random.Generator) -> Crop:
    """A window of about the image's shape, somewhere near it."""
    height, width = size
    scale = random.uniform(*how.window)
    aspect = random.uniform(1 - how.aspect, 1 + how.aspect)
    rows, columns = max(1, round(height * scale * aspect)), max(1, round(width * scale / aspect))
    # Between flush with one edge and flush with the other; larger than the image, it slides over it the same way.
    top, left = random.uniform(0, 1, 2) * (height - rows, width - columns)
    return Crop(round(top), round(left), rows, columns)


def _slice(array: npt.NDArray[np.uint8], window: Crop, fill: int | tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """H x W (x 3) in ``window``, ``fill`` outside."""
    height, width = array.shape[:2]
    top, left = max(0, window.top), max(0, window.left)
    bottom, right = min(height, window.top + window.height), min(width, window.left + window.width)
    inside = array[top:bottom, left:right]
    if inside.shape[:2] == (window.height, window.width):
        return inside
    whole = np.empty((window.height, window.width, *array.shape[2:]), dtype=np.uint8)
    whole[:] = fill
    whole[top - window.top : bottom - window.top, left - window.left : right - window.left] = inside
    return whole


def _areas(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

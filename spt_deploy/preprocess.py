"""From a decoded image to a model's input, and back: the one implementation that training, validation
and inference share. Its parameters travel with every artefact (see `facts.py`), and a golden-tensor
test pins what it computes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from spt_deploy.config import Task, check_image_size
from spt_deploy.errors import InputError, UsageError

ResizeMode = Literal["letterbox", "resize"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)

# ImageNet statistics in RGB order, as Swin was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Placement(NamedTuple):
    """Where a source image lies in the model's input, in pixels of the input."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    Attributes:
        size: (height, width) of the model's input in pixels.
        mode: ``letterbox`` keeps the aspect ratio, centred, the rest filled with the mean colour (0 once
            normalised); ``resize`` stretches to ``size``.
        mean: per channel, RGB order, of values in [0, 1].
        std: per channel, RGB order, of values in [0, 1].

    Raises:
        UsageError: when the size is below 32 pixels, a std is not positive, or the mode is unknown.
    """

    size: tuple[int, int]
    mode: ResizeMode = "resize"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        check_image_size(self.size)
        if self.mode not in RESIZE_MODES:
            raise UsageError(f"resize mode is {self.mode!r}; known are {', '.join(RESIZE_MODES)}")
        numbers = np.isfinite((*self.mean, *self.std)).all()
        if len(self.mean) != 3 or len(self.std) != 3 or not numbers or min(self.std) <= 0:
            raise UsageError(f"mean {self.mean} and std {self.std} must be three numbers each, std positive")

    @classmethod
    def for_task(cls, task: Task, size: tuple[int, int]) -> Preprocessing:
        """The default of a task: letterbox for boxes, which need the aspect ratio; resize for whole-image labels."""
        return cls(size=size, mode="letterbox" if task == "detect" else "resize")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, and the colour order for readers of the file."""
        return asdict(self) | {"colour_order": "RGB"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``.

        Raises:
            UsageError: when a field is unknown, missing or out of range.
        """
        try:
            return cls(**{k: v for k, v in values.items() if k != "colour_order"})
        except (AttributeError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise UsageError(f"not a preprocessing description: {error}") from error

    def placement(self, source_size: tuple[int, int]) -> Placement:
        """Where an image of ``source_size`` (height, width) lies in the input."""
        height, width = self.size
        if self.mode == "resize":
            return Placement(0, 0, height, width)
        scale = min(height / source_size[0], width / source_size[1])
        inner_height = min(height, max(1, round(source_size[0] * scale)))
        inner_width = min(width, max(1, round(source_size[1] * scale)))
        return Placement((height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width)

    def apply(
        self, image: npt.NDArray[np.uint8], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """One image as a model's input.

        Args:
            image: H x W x 3 uint8 in BGR order, as OpenCV decodes it.
            out: 3 x height x width float32 to write into; a new array if None.

        Returns:
            3 x height x width float32, RGB, normalised; ``out`` where it was given.

        Raises:
            InputError: when ``image`` has another shape or dtype, or no pixels.
        """
        import cv2

        image, place = self._resized(image)
        if out is None:
            out = np.empty((3, *self.size), dtype=np.float32)
        if (place.height, place.width) != self.size:
            out.fill(0.0)
        bottom, right = place.top + place.height, place.left + place.width
        planes = cv2.split(image)
        for channel, levels in enumerate(_levels(self)):
            # A byte has 256 values: looking them up is faster than computing them, and the same to the last bit.
            out[channel, place.top : bottom, place.left : right] = cv2.LUT(planes[2 - channel], levels)
        return out

    def apply_bytes(
        self, image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """One image as a model takes it that normalises by itself; ``normalise`` makes of it what ``apply`` gives.

        Only the padding of a letterbox differs: the mean colour is no whole byte, and ``padding`` lies within half a
        level of it.

        Args:
            image: see ``apply``.
            out: height x width x 3 uint8 to write into, its rows contiguous; a new array if None.

        Returns:
            height x width x 3 uint8, RGB; ``out`` where it was given.

        Raises:
            InputError: when ``image`` has another shape or dtype, or no pixels.
        """
        import cv2

        image, place = self._resized(image)
        if out is None:
            out = np.empty((*self.size, 3), dtype=np.uint8)
        if (place.height, place.width) != self.size:
            out[...] = _filled(self.size, self.padding)
        bottom, right = place.top + place.height, place.left + place.width
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out[place.top : bottom, place.left : right])
        return out

    @property
    def padding(self) -> tuple[int, int, int]:
        """The byte of each channel, RGB, that is nearest to the mean."""
        red, green, blue = (min(255, max(0, round(255 * mean))) for mean in self.mean)
        return red, green, blue

    @property
    def scale_and_offset(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What normalises a byte, RGB, 3 float32 each: ``byte * scale - offset`` is (byte / 255 - mean) / std."""
        scale = [1 / (255 * std) for std in self.std]
        offset = [mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return np.array(scale, dtype=np.float32), np.array(offset, dtype=np.float32)

    def normalise(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Images in bytes (B x height x width x 3 uint8, RGB) as ``apply`` gives them: B x 3 x height x width."""
        scale, offset = self.scale_and_offset
        return np.ascontiguousarray(np.moveaxis(images.astype(np.float32) * scale - offset, 3, 1))

    def nearest_bytes(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """The inverse of ``normalise``; what lies between two bytes is rounded, what lies beyond them is cut off."""
        scale, offset = self.scale_and_offset
        levels = np.rint((np.moveaxis(images, 1, 3) + offset) / scale)
        return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8))

    def boxes_to_input(self, boxes: npt.ArrayLike, source_size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Boxes (n x 4, xyxy in source pixels) in pixels of the input."""
        place, scale = self._scale(source_size)
        moved = np.asarray(boxes, dtype=np.float32).reshape(-1, 4) * scale
        return (moved + np.array([place.left, place.top] * 2, dtype=np.float32)).astype(np.float32)

    def boxes_to_source(self, boxes: npt.ArrayLike, source_size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Boxes (n x 4, xyxy in pixels of the input) in source pixels, clipped to the source image."""
        place, scale = self._scale(source_size)
        moved = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        moved = (moved - np.array([place.left, place.top] * 2, dtype=np.float32)) / scale
        height, width = source_size
        limit = np.array([width, height, width, height], dtype=np.float32)
        return np.clip(moved, 0, limit).astype(np.float32)

    def map_to_source(self, values: npt.NDArray[np.float32], source_size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """A token map (h x w, covering the input) as source_size float32, by linear interpolation."""
        import cv2

        full = cv2.resize(np.asarray(values, dtype=np.float32), self.size[::-1], interpolation=cv2.INTER_LINEAR)
        place = self.placement(source_size)
        inner = full[place.top : place.top + place.height, place.left : place.left + place.width]
        return np.asarray(cv2.resize(inner, source_size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)

    def _resized(self, image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], Placement]:
        """An image, still in BGR, at the size that it has in the input, and where it lies there."""
        import cv2

        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(f"an image of shape {image.shape} and dtype {image.dtype}; expected H x W x 3 uint8, BGR")
        place = self.placement((image.shape[0], image.shape[1]))
        if (place.height, place.width) != image.shape[:2]:
            # Area averaging does not alias when shrinking; it is nearest neighbour when enlarging.
            shrinks = place.height <= image.shape[0] and place.width <= image.shape[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (place.width, place.height), interpolation=method)  # type: ignore[assignment]
        return image, place

    def _scale(self, source_size: tuple[int, int]) -> tuple[Placement, npt.NDArray[np.float32]]:
        place = self.placement(source_size)
        scale = (place.width / source_size[1], place.height / source_size[0])
        return place, np.array([*scale, *scale], dtype=np.float32)


@cache
def _levels(preprocessing: Preprocessing) -> tuple[npt.NDArray[np.float32], ...]:
    """What each byte becomes in each channel, R, G, B: 3 times 256 float32."""
    bytes_ = np.arange(256, dtype=np.float32)
    return tuple(bytes_ * scale - offset for scale, offset in zip(*preprocessing.scale_and_offset, strict=True))


@lru_cache(maxsize=8)
def _filled(size: tuple[int, int], colour: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """height x width x 3 uint8 of one colour; copying it is faster than writing a colour pixel by pixel."""
    return np.full((*size, 3), colour, dtype=np.uint8)

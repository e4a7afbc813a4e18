"""The array that a model takes its images in: normalised numbers, or the bytes, where its graph normalises them.

Whoever fills a buffer, checks a batch or makes one up asks here, so that both kinds of model run everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spt_deploy.errors import InputError
from spt_deploy.preprocess import Preprocessing

Images = npt.NDArray[np.float32] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageInput:
    """What a model takes.

    Attributes:
        preprocessing: from a decoded image to the input.
        uint8: B x H x W x 3 uint8, RGB, in place of B x 3 x H x W float32, RGB, normalised.
    """

    preprocessing: Preprocessing
    uint8: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        height, width = self.preprocessing.size
        return (height, width, 3) if self.uint8 else (3, height, width)

    @property
    def dtype(self) -> np.dtype[np.float32] | np.dtype[np.uint8]:
        """Of every value."""
        return np.dtype(np.uint8) if self.uint8 else np.dtype(np.float32)

    def __str__(self) -> str:
        """In words: ``B x 3 x 224 x 224 float32, RGB, normalised``."""
        sides = " x ".join(str(side) for side in self.shape)
        return f"B x {sides} {self.dtype}, RGB, {'not ' * self.uint8}normalised"

    def empty(self, batch: int) -> Images:
        """Room for a batch."""
        return np.empty((batch, *self.shape), dtype=self.dtype)

    def prepare(self, image: npt.NDArray[np.uint8], out: Images | None = None) -> Images:
        """One image as the model takes it; arguments and errors as for ``Preprocessing.apply``."""
        if self.uint8:
            return self.preprocessing.apply_bytes(image, out)  # type: ignore[arg-type]
        return self.preprocessing.apply(image, out)  # type: ignore[arg-type]

    def check(self, images: npt.NDArray[np.generic], where: str) -> None:
        """Whether ``images`` is a batch for the model that ``where`` names.

        Raises:
            InputError: when shape or dtype are others.
        """
        if images.ndim == 4 and len(images) and images.shape[1:] == self.shape and images.dtype == self.dtype:
            return
        raise InputError(
            f"images have shape {tuple(images.shape)} and dtype {images.dtype}; {where} takes {self}, B >= 1"
        )

    def of(self, images: Images) -> Images:
        """Images of either kind as the model takes them; numbers between two bytes are rounded.

        Args:
            images: B x 3 x H x W float32, normalised, or B x H x W x 3 uint8.
        """
        if images.dtype == self.dtype:
            return images
        if self.uint8:
            return self.preprocessing.nearest_bytes(images)  # type: ignore[arg-type]
        return self.preprocessing.normalise(images)  # type: ignore[arg-type]


def same_for_both(one: ImageInput, other: ImageInput, images: Images) -> tuple[Images, Images]:
    """Images for two models that are to be compared: where either takes bytes, both get what bytes can say.

    Args:
        one: what the first takes; ``other`` the second, with the same preprocessing.
        other: see ``one``.
        images: of either kind.
    """
    shared = one.of(images) if one.uint8 else other.of(images)
    return one.of(shared), other.of(shared)

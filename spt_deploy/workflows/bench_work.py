"""What contenders of a bench are given to do: which tokens they keep, and how much work that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spt_deploy.config import ModelConfig
from spt_deploy.errors import InputError
from spt_deploy.image_input import ImageInput, Images
from spt_deploy.model.complexity import complexity, kept_tokens
from spt_deploy.parity.inputs import folder_cases
from spt_deploy.preprocess import Preprocessing

_MOST_IMAGES = 64  # of a folder: enough for a mean select ratio, and they stay in memory


class Inputs:
    """Batches of images, of which all contenders of one round get the same.

    Args:
        batches: each B x 3 x H x W float32, normalised.

    Attributes:
        place: of this round's batch among them.
    """

    def __init__(self, batches: Sequence[npt.NDArray[np.float32]]) -> None:
        self.batches = batches
        self.place = 0

    def taken_by(self, model: ImageInput) -> list[Images]:
        """All batches as a model takes them."""
        return [model.of(batch) for batch in self.batches]

    def next_round(self) -> None:
        """Go on to the next batch, after the last to the first."""
        self.place = (self.place + 1) % len(self.batches)


def random_inputs(batch: int, size: tuple[int, int]) -> Inputs:
    """One batch of noise, the same every time."""
    return Inputs([np.random.default_rng(0).standard_normal((batch, 3, *size), dtype=np.float32)])


def folder_inputs(
    folder: Path, preprocessing: Preprocessing, batch: int, status: Callable[[str], None] = lambda text: None
) -> Inputs:
    """Full batches of the images of a folder, evenly chosen where there are many.

    Raises:
        InputError: see ``folder_cases``; also when the images do not fill a batch.
    """
    cases = folder_cases(folder, preprocessing, max(_MOST_IMAGES, batch), batch, status)
    batches = [case.images for case in cases if len(case.images) == batch]
    if not batches:
        raise InputError(f"{folder} holds fewer than {batch} images; give a --batch that it can fill")
    return Inputs(batches)


def forced_mask(batch: int, tokens: int, ratio: float) -> npt.NDArray[np.bool_]:
    """Tokens to keep, ``batch`` x ``tokens``: the same number in each image, at random places, the same every time."""
    order = np.random.default_rng(tokens).random((batch, tokens)).argsort(1)
    return np.asarray(order < max(1, round(ratio * tokens)))


def gmacs(config: ModelConfig, size: tuple[int, int], select_ratio: Sequence[float]) -> float:
    """Multiply-accumulates of one image, in 10^9.

    Args:
        config: of the model.
        size: height and width of the input in pixels.
        select_ratio: share of kept tokens of each SPA block; none for a model without.
    """
    kept = kept_tokens(config.backbone, size, select_ratio) if select_ratio else ()
    return complexity(config, size, kept).total.macs / 1e9


def one_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The input size of all contenders.

    Raises:
        InputError: when they differ.
    """
    if len(set(sizes)) > 1:
        named = ", ".join(f"{height}x{width}" for height, width in sorted(set(sizes)))
        raise InputError(f"the artefacts take images of different sizes ({named}); export them at one size")
    return sizes[0]

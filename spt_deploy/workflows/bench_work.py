"""What contenders of a bench are given to do: which tokens they keep, and how much work that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spt_deploy.config import ModelConfig
from spt_deploy.errors import InputError
from spt_deploy.model.complexity import complexity, kept_tokens


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

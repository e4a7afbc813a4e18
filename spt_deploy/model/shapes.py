"""Sizes that follow from the configuration: of stages, containers and heads. Whoever counts them needs no PyTorch."""

from __future__ import annotations

import math

PATCH = 4  # pixels of a side of one token in stage 1
DETECT_STAGES = (2, 3, 4)  # of the backbone that a detector looks at, at strides 8, 16 and 32
TOWER_DEPTH = 2  # convolutions of a detector before each branch's last one


def stage_sizes(image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Height and width in tokens of the four stages, for an image of the given height and width in pixels."""
    strides = (PATCH * 2**i for i in range(4))
    return tuple((math.ceil(image_size[0] / s), math.ceil(image_size[1] / s)) for s in strides)


def container_length(window: int, tokens: int, packing: str) -> int:
    """L, slots a container: a window's, but no more than an image has tokens where a container is of one image.

    Static packing keeps to whole windows: its containers were cut before attention sees them.
    """
    return min(window * window, tokens) if packing == "per-image" else window * window

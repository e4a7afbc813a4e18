"""How a batch is best computed on a CPU: in parts, some of them at the same time, none too large for a core's cache.

Threads that share one part wait for each other at every operator, those with a part each only at the end. And what one
operator leaves for the next is found sooner where it still lies in a core's own cache (docs/cpu.md has figures).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from spt_deploy.facts import ModelFacts


class Parts(NamedTuple):
    """A batch in so many parts of equal size, so many of them at the same time."""

    number: int = 1
    together: int = 1


def may_be_cut(facts: ModelFacts) -> bool:
    """Whether an image's answer is the same in whatever part; where containers are packed across images it is not."""
    backbone = facts.model.backbone
    return backbone.packing != "batch" or not backbone.spa_stages


def parts_of(batch: int, cores: int, most: int | None) -> Parts:
    """A batch in parts of equal size.

    Args:
        batch: images, at least 1.
        cores: that parts may run on.
        most: images that a core computes fast; parts of less than half of it are not worth cutting. None is any number.
    """
    together = math.gcd(batch, cores)  # so that each part has as many images, and as many cores
    size = batch // together
    if most is not None and size > most:
        smaller = max(each for each in range(1, most + 1) if size % each == 0)
        size = smaller if 2 * smaller >= most else size
    return Parts(batch // size, together)


def cut(feeds: Mapping[str, Any], count: int, size: int, fill: bool = False) -> Iterator[dict[str, Any]]:
    """The inputs of each part.

    Args:
        feeds: inputs by name; the first dimension is the batch, of all but scalars.
        count: images in them.
        size: images in a part; the last one may have fewer.
        fill: the last one up with copies of its last image.
    """
    for start in range(0, count, size):
        part = {name: rows[start : start + size] if np.ndim(rows) else rows for name, rows in feeds.items()}
        lacking = start + size - count
        if fill and lacking > 0:
            part = {name: _filled_up(rows, lacking) if np.ndim(rows) else rows for name, rows in part.items()}
        yield part


def _filled_up(rows: Any, lacking: int) -> Any:
    return np.concatenate([rows, np.repeat(rows[-1:], lacking, axis=0)])

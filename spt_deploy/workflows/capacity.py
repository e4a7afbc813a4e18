"""How much room static packing needs: the share of tokens that each SPA block keeps on a user's own images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spt_deploy.config import BackboneConfig
from spt_deploy.model.checkpoint import Checkpoint
from spt_deploy.parity.inputs import folder_cases

QUANTILE = 0.999  # of images that shall not overflow
BATCH = 8
LIMIT = 10_000  # images; a thousandth of them is ten


@dataclass(frozen=True)
class CapacityNeed:
    """What images need.

    Attributes:
        images: that were looked at.
        blocks: of each SPA block the share of tokens that ``QUANTILE`` of the images do not exceed.
        capacity: the least, in whole hundredths, that has room for them: room is rounded up to whole containers, so
            that a map of few tokens never asks for more.
    """

    images: int
    blocks: dict[str, float]
    capacity: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {"quantile": QUANTILE}


def needed_capacity(
    checkpoint: Checkpoint, data: Path, status: Callable[[str], None] = lambda text: None
) -> CapacityNeed | None:
    """Measure it with PyTorch on the CPU; None of a model without SPA blocks.

    Args:
        checkpoint: as it will be exported, but packed ``per-image``: with room for all.
        data: folder of images.
        status: hears what is being done.

    Raises:
        InputError: see ``folder_cases``.
    """
    facts = checkpoint.facts
    names = facts.model.backbone.spa_blocks
    if not names:
        return None
    status(f"measuring on {data} how much room the selection needs")
    model = checkpoint.build()
    counts: list[npt.NDArray[np.int64]] = []
    with torch.inference_mode():
        for case in folder_cases(data, facts.preprocessing, LIMIT, BATCH, status):
            kept = model.backbone(torch.from_numpy(case.images)).kept
            tokens = [mask[0].numel() for mask in kept]
            counts.append(np.stack([mask.flatten(1).sum(1).numpy() for mask in kept], axis=1))
    every = np.concatenate(counts)
    needed = [int(count) for count in np.quantile(every, QUANTILE, axis=0, method="higher")]
    shares = [count / size for count, size in zip(needed, tokens, strict=True)]
    capacity = least_capacity(facts.model.backbone, needed, tokens)
    return CapacityNeed(len(every), dict(zip(names, shares, strict=True)), capacity)


def least_capacity(backbone: BackboneConfig, needed: Sequence[int], tokens: Sequence[int]) -> float:
    """The least capacity, in whole hundredths, with ``needed`` slots for each map of so many ``tokens``."""
    for hundredths in range(1, 101):
        tried = replace(backbone, capacity=hundredths / 100)
        if all(tried.static_slots(size) >= count for count, size in zip(needed, tokens, strict=True)):
            return tried.capacity
    return 1.0

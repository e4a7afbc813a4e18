"""How much room static packing needs: the share of tokens that each SPA block keeps on a user's own images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
        capacity: room for the block that needs most, in whole hundredths, as ``--capacity`` takes it.
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
        InputError: when there is no such folder, no image in it, or one cannot be read.
    """
    facts = checkpoint.facts
    names = facts.model.backbone.spa_blocks
    if not names:
        return None
    status(f"measuring on {data} how much room the selection needs")
    model = checkpoint.build()
    shares: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    with torch.inference_mode():
        for case in folder_cases(data, facts.preprocessing, LIMIT, BATCH):
            shares.append(model.backbone(torch.from_numpy(case.images)).select_ratio.numpy())
    every = np.concatenate(shares)
    needed = np.quantile(every, QUANTILE, axis=0, method="higher")
    capacity = max(0.01, math.ceil(round(float(needed.max()) * 100, 6)) / 100)
    return CapacityNeed(len(every), dict(zip(names, map(float, needed), strict=True)), capacity)

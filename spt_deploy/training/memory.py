"""Memory that a run does not find, in words that say what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spt_deploy.errors import ResultError
from spt_deploy.training.config import TrainConfig
from spt_deploy.wording import counted

_ON_CPU = "DefaultCPUAllocator"  # PyTorch has a class of its own for GPUs only


@contextmanager
def told_what_needs_less(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Run the block.

    Raises:
        ResultError: when PyTorch finds too little memory on ``device``.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and _ON_CPU not in str(error):
            raise
        height, width = config.imgsz
        step = f"{counted(config.batch, 'image')} of {height}x{width} pixels at a time"
        raise ResultError(
            f"the memory of {device} is too small for {config.model} and {step}: {_remedy(config)} "
            f"({str(error).splitlines()[0]})"
        ) from error


def _remedy(config: TrainConfig) -> str:
    if config.batch == 1:
        return "a smaller --imgsz or --model needs less"
    parts = next(n for n in range(2, config.batch + 1) if config.batch % n == 0)
    return f"--batch {config.batch // parts} --accumulate {config.accumulate * parts} takes the same steps in less"

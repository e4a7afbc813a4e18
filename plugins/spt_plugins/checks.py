"""What the kernels can take: checks of the launchers, each with a remedy in its message."""

from __future__ import annotations

import torch
from torch import Tensor

from spt_deploy.config import HEAD_DIM
from spt_deploy.errors import UsageError
from spt_plugins.variant import FLOAT_TYPES

MAX_CHANNELS = 1024
MAX_WINDOW = 8
# Slots are counted in int32, and the last tile reaches past their number.
MAX_SLOTS = 2**31 - 2**16


def float_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """The dtype of ``tensor``, if the kernels take it."""
    if tensor.dtype not in FLOAT_TYPES:
        raise UsageError(
            f"{name} is {_short(tensor.dtype)}, and the kernels take float16, bfloat16 or float32: convert the model, "
            "or run it on the CPU."
        )
    return tensor.dtype


def same_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """``tensor`` must have ``dtype``."""
    if tensor.dtype != dtype:
        raise UsageError(f"{name} is {_short(tensor.dtype)}, expected {_short(dtype)}: convert it.")


def shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """``tensor`` must have the shape ``expected``."""
    if tuple(tensor.shape) != expected:
        found, wanted = (" x ".join(map(str, sizes)) or "scalar" for sizes in (tensor.shape, expected))
        raise UsageError(f"{name} is {found}, expected {wanted}: see the operator's documentation for the shapes.")


def dimensions(name: str, tensor: Tensor, expected: int) -> None:
    """``tensor`` must have ``expected`` dimensions."""
    if tensor.ndim != expected:
        raise UsageError(f"{name} has {tensor.ndim} dimensions, expected {expected}: reshape it.")


def channels(count: int) -> int:
    """``count``, if it is a width that the kernels take."""
    if count % HEAD_DIM or not HEAD_DIM <= count <= MAX_CHANNELS:
        raise UsageError(
            f"{count} channels, and the kernels take multiples of {HEAD_DIM} from {HEAD_DIM} to {MAX_CHANNELS}: "
            "choose such a width, or run the model on the CPU."
        )
    return count


def one_device(**tensors: Tensor) -> None:
    """All ``tensors`` must lie on one device: a kernel cannot follow a pointer to another."""
    (first, leader), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != leader.device:
            raise UsageError(f"{name} is on {tensor.device}, but {first} is on {leader.device}: move one to the other.")


def slots(count: int) -> int:
    """``count``, if the kernels can number so many tokens."""
    if count > MAX_SLOTS:
        raise UsageError(f"{count} tokens in one batch, and the kernels take {MAX_SLOTS}: use a smaller batch.")
    return count


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

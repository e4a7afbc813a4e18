"""Constant index tables of windows and containers: which token comes where, and who sees whom.

All depend on sizes only, so they are computed once with NumPy and kept per device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_on_device: dict[tuple[object, ...], Tensor] = {}


def effective_shift(height: int, width: int, window: int, shift: int) -> int:
    """The cyclic shift of a block: 0 where one window already spans the map's shorter side.

    Source: Swin's classification code and Hugging Face's; Swin's detection code never does this.
    """
    return 0 if min(height, width) <= window else shift


@lru_cache(maxsize=256)
def _window_order(height: int, width: int, window: int, shift: int) -> npt.NDArray[np.int64]:
    y, x = np.divmod(np.arange(height * width), width)
    rolled_y, rolled_x = (y - shift) % height, (x - shift) % width
    # lexsort's last key is the first to sort by: window row, window column, row, column.
    return np.lexsort((rolled_x % window, rolled_y % window, rolled_x // window, rolled_y // window)).astype(np.int64)


@lru_cache(maxsize=256)
def _window_place(height: int, width: int, window: int, shift: int) -> npt.NDArray[np.int64]:
    padded = height + -height % window, width + -width % window
    place = np.argsort(_window_order(*padded, window, shift)).reshape(padded)
    return place[:height, :width].reshape(-1)


@lru_cache(maxsize=64)
def _relative_position_index(window: int) -> npt.NDArray[np.int64]:
    y, x = np.divmod(np.arange(window * window), window)
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return np.asarray((dy + window - 1) * (2 * window - 1) + dx + window - 1, dtype=np.int64)


@lru_cache(maxsize=64)
def _shift_mask(height: int, width: int, window: int, shift: int) -> npt.NDArray[np.float32]:
    def region(size: int) -> npt.NDArray[np.int64]:
        at = np.arange(size)
        return (at >= size - window).astype(np.int64) + (at >= size - shift)

    regions = region(height)[:, None] * 3 + region(width)[None, :]
    cut = regions.reshape(height // window, window, width // window, window).transpose(0, 2, 1, 3)
    flat = cut.reshape(-1, window * window)
    return np.where(flat[:, :, None] == flat[:, None, :], 0.0, -100.0).astype(np.float32)


def _kept(name: str, make: Callable[..., npt.NDArray[np.generic]], device: torch.device, *sizes: int) -> Tensor:
    key = (name, str(device), *sizes)  # what a compiler can compare, too
    if key not in _on_device:
        with torch.inference_mode(False):  # autograd may meet the same table later
            table = torch.from_numpy(make(*sizes)).to(device)
        if torch.compiler.is_compiling():  # a traced tensor must not outlive its trace
            return table
        _on_device[key] = table
    return _on_device[key]


def window_order(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Tokens of a map in the order in which an SPA block packs them.

    Window by window after a cyclic shift by ``-shift`` in both directions, row-major inside a window; windows
    at the lower and right edge are cut short where a side is no multiple of ``window``.

    Returns:
        N int64, a permutation of ``row * width + column``.
    """
    return _kept("window_order", _window_order, device, height, width, window, shift)


def window_place(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Where each token of a map comes in the ``window_order`` of that map padded to whole windows: N int64."""
    return _kept("window_place", _window_place, device, height, width, window, shift)


def relative_position_index(window: int, device: torch.device) -> Tensor:
    """Row of the relative position table for each pair of tokens of one window, M*M x M*M int64 (Swin)."""
    return _kept("relative_position_index", _relative_position_index, device, window)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """What SW-MSA adds to the logits of each window: 0 inside a region, -100 across (Swin).

    ``height`` and ``width`` are multiples of ``window``.

    Returns:
        windows x M*M x M*M float32.
    """
    return _kept("shift_mask", _shift_mask, device, height, width, window, shift)

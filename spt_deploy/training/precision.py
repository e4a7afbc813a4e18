"""Mixed precision where it pays: bfloat16 on GPUs that have it, else float16 with a scaled loss, float32 on a CPU."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class MixedPrecision:
    """How a step computes on a device.

    Attributes:
        dtype: of autocast; None computes everything in float32.
    """

    def __init__(self, device: torch.device) -> None:
        self.dtype: torch.dtype | None = None
        if device.type == "cuda":
            # Emulated bfloat16 is slower than float32.
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            self.dtype = torch.bfloat16 if has_bf16 else torch.float16
        self._device = device
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """For the forward pass and the loss."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to what is there."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, clip: float) -> bool:
        """Clip the norm of the gradient at ``clip``, update, and forget the gradient.

        Returns:
            Whether the gradient was finite; False leaves everything as it was. A scaled loss leaves such a step out by
            itself, as it must while it looks for its scale: with one it is always True.
        """
        self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        if not self._scaler.is_enabled() and not math.isfinite(norm.item()):
            return False
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return True

    def state_dict(self) -> dict[str, Any]:
        """State of the loss scale; empty where there is none."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; a state of another precision is left alone."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)

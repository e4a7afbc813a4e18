"""Inputs of the kernels, and their answers by `reference.py` in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spt_deploy.model import reference
from spt_deploy.model.order import window_order
from tests import tolerances

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN = float("nan")

TOLERANCES = tolerances.KERNEL if DEVICE.type == "cuda" else tolerances.BLOCK

# Around one container of 49 slots, none and all.
KEPT = (0, 1, 48, 49, 50, None)


@dataclass(frozen=True)
class Selection:
    """A random selection of the tokens of some images, listed exactly and as kernels list it."""

    height: int
    width: int
    window: int
    logits: Tensor  # B x N float32
    order: Tensor  # N int64
    threshold: Tensor  # scalar float32
    exact: Tensor  # S int64, without a tail
    token_of_slot: Tensor  # B*N int64, -1 past the last kept token
    slot_of_token: Tensor  # B x N int64
    cu_seqlens: Tensor  # B + 1 int64

    @property
    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the selection is made from."""
        return self.logits, self.order, self.threshold

    @property
    def batch(self) -> int:
        return self.logits.shape[0]

    @property
    def tokens(self) -> int:
        return self.logits.shape[1]

    @property
    def kept(self) -> int:
        return self.exact.numel()


def select(
    batch: int, height: int, width: int, *, kept: int | None = None, share: float | None = None, window: int = 7
) -> Selection:
    """Select ``kept`` random tokens of the whole batch, or each with probability ``share``, or all."""
    tokens = height * width
    generator = torch.Generator().manual_seed(1000 * batch + tokens + (kept or 0))
    logits = torch.rand(batch, tokens, generator=generator)
    threshold = torch.tensor(-1.0)
    if share is not None:
        threshold = torch.tensor(1 - share)
    elif kept is not None:
        ranked = logits.flatten().sort(descending=True).values
        threshold = torch.tensor(2.0) if kept == 0 else ranked[kept] if kept < ranked.numel() else threshold
    order = window_order(height, width, window, window // 2, torch.device("cpu"))
    exact, slot_of_token, cu_seqlens = reference.select_tokens(logits, order, threshold)
    assert kept is None or exact.numel() == kept
    tail = exact.new_full((batch * tokens - exact.numel(),), -1)
    token_of_slot = torch.cat([exact, tail])
    tensors = logits, order, threshold, exact, token_of_slot, slot_of_token, cu_seqlens
    return Selection(height, width, window, *(tensor.to(DEVICE) for tensor in tensors))


def normal(*sizes: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normally distributed numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*sizes, generator=generator)).to(DEVICE, dtype)


def linear(outputs: int, inputs: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection that keeps the size of what it projects."""
    weight = normal(outputs, inputs, dtype=dtype, seed=seed, scale=inputs**-0.5)
    return weight, normal(outputs, dtype=dtype, seed=seed + 1)


def double(*tensors: Tensor) -> list[Tensor]:
    """The floating ones in float64."""
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Same shape, and values as close as one kernel can be to ``expected``."""
    tolerances.assert_close(actual, expected, TOLERANCES)


def assert_lists(found: tuple[Tensor, Tensor, Tensor], logits: Tensor, order: Tensor, threshold: Tensor) -> None:
    """The reference's lists, exactly, and -1 in every slot past the last kept token."""
    token_of_slot, slot_of_token, cu_seqlens = reference.select_tokens(logits, order, threshold)
    tail = token_of_slot.new_full((logits.numel() - token_of_slot.numel(),), -1)
    assert torch.equal(found[0], torch.cat([token_of_slot, tail]))
    assert torch.equal(found[1], slot_of_token)
    assert torch.equal(found[2], cu_seqlens)

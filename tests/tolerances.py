"""How far two computations of the same thing may lie apart, absolutely and relatively: the one place that says so."""

from __future__ import annotations

from typing import Any

import torch

# One block or operation, against the same arithmetic in another order.
BLOCK = {torch.float64: 1e-10, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# One kernel on a GPU: sums of a thousand products, and an exp2 that is good to some units in the last place.
KERNEL = {**BLOCK, torch.float32: 1e-5}
# A whole model, whose blocks add up their roundings.
MODEL = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
# Coordinates of boxes in pixels: a point less a distance, of which little may be left.
PIXELS = 1e-3


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerances: dict[torch.dtype, float] = BLOCK) -> None:
    """Same shape, and values as close as the coarser of the two dtypes demands."""
    allowed: Any = max(tolerances[actual.dtype], tolerances[expected.dtype])
    torch.testing.assert_close(actual, expected, rtol=allowed, atol=allowed, check_dtype=False)

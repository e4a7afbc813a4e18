"""A division by multiplication is exact for every number that a kernel divides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from spt_plugins.division import divide, divisor
from tests.spt_plugins.kernel_cases import DEVICE

LARGEST = 2**31 - 1
DIVISORS = (1, 2, 3, 5, 7, 49, 80, 320, 4000, 64000, 65535, 65536, 65537, 2**30 + 1, LARGEST)
COUNT = 1024


@triton.jit(do_not_specialize=["multiplier", "shift"])
def divide_all(x: Any, multiplier: Any, shift: Any, out: Any, COUNT: tl.constexpr) -> None:
    at = tl.arange(0, COUNT)
    tl.store(out + at, divide(tl.load(x + at), multiplier, shift))


@pytest.mark.parametrize("n", DIVISORS)
def test_quotients_are_exact_up_to_the_largest_number(n: int) -> None:
    multiplier, shift = divisor(n)
    assert 0 <= multiplier < 2**31
    near = [
        k * n + rest for k in (0, 1, 2, 3, LARGEST // n // 2, LARGEST // n - 1, LARGEST // n) for rest in (-1, 0, 1)
    ]
    for x in {x for x in [*near, LARGEST - 1, LARGEST] if 0 <= x <= LARGEST}:
        assert (2 * x * (multiplier + 2**31) >> 32) >> shift == x // n


@pytest.mark.parametrize("n", DIVISORS)
def test_a_kernel_divides_as_the_host_does(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(0, LARGEST, (COUNT,), generator=generator).to(DEVICE, torch.int32)
    x[:2] = torch.tensor([0, LARGEST])
    out = torch.empty_like(x)
    divide_all[(1,)](x, *divisor(n), out, COUNT=COUNT)
    assert torch.equal(out, x // n)

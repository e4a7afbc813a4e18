"""Whole division by a number that the host knows: a multiplication, where a processor without a divider takes twenty
instructions or more.

    x // n = (2 x m >> 32) >> s   with   s = ceil(log2 n),  m = ceil(2^(31 + s) / n),   for 0 <= x < 2^31

Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, PLDI 1994, theorem 4.2.
"""

from __future__ import annotations

import triton
import triton.language as tl


def divisor(n: int) -> tuple[int, int]:
    """What `divide` takes for a division by ``n``, 1 to 2^31 - 1: m - 2^31 and s, which are int32 and not negative."""
    shift = (n - 1).bit_length()
    return -(-(1 << (31 + shift)) // n) - (1 << 31), shift


@triton.jit
def divide(x, multiplier, shift):
    """``x`` // n of int32 numbers that are not negative; of others something."""
    twice = (x + x).to(tl.uint32, bitcast=True)
    high = tl.umulhi(twice, multiplier.to(tl.uint32) + 0x80000000)
    return (high >> shift.to(tl.uint32)).to(tl.int32, bitcast=True)

"""Floors by hand: what must move and what must be done, for a size small enough to count."""

from __future__ import annotations

import itertools

import pytest

from spt_deploy.workflows.gpu.floors import OPERATORS, Case, packed_attention, packed_qkv, select_tokens, unpack_project

# Two images of 2 x 3 tokens, 32 channels (one head), 4 kept of each; windows of 2 x 2, float16.
CASE = Case(images=2, height=2, width=3, channels=32, kept=4, window=2)


def test_bytes_and_operations_are_those_counted_by_hand() -> None:
    select = select_tokens(CASE)
    assert select.bytes == 12 * 4 + 6 * 8 + 12 * 8 + 12 * 8 + 3 * 8
    assert select.operations == 0
    qkv = packed_qkv(CASE)
    assert qkv.bytes == 8 * 32 * 2 + 8 * 4 + 8 * 8 + (96 * 32 + 96) * 2 + 8 * 96 * 2
    assert qkv.operations == 2 * 8 * 32 * 96
    attention = packed_attention(CASE)
    assert attention.bytes == 8 * 96 * 2 + 8 * 8 + 3 * 8 + 9 * 1 * 2 + 8 * 32 * 2
    assert attention.operations == 2 * (2 * 4 * 4 * 32 + 2 * 4 * 4 * 32)  # two containers of 4: q k and weights v
    unpack = unpack_project(CASE)
    assert unpack.bytes == 8 * 32 * 2 + 12 * (32 * 2 + 8) + (32 * 32 + 32) * 2 + 12 * 32 * 2
    assert unpack.operations == 2 * 8 * 32 * 32


def test_a_container_is_computed_whole() -> None:
    five = Case(2, 2, 3, 32, kept=5, window=2)
    assert packed_attention(five).operations == 2 * packed_attention(CASE).operations


def test_the_floor_is_the_longer_of_moving_and_computing() -> None:
    work = packed_qkv(CASE)
    assert work.floor_s(bandwidth=1.0, peak=1e30) == work.bytes
    assert work.floor_s(bandwidth=1e30, peak=1.0) == work.operations


@pytest.mark.parametrize("operator", OPERATORS)
def test_keeping_more_never_costs_less(operator: str) -> None:
    works = [OPERATORS[operator](Case(4, 14, 14, 384, kept)) for kept in (1, 48, 49, 50, 196)]
    for less, more in itertools.pairwise(works):
        assert (less.bytes, less.operations) <= (more.bytes, more.operations)

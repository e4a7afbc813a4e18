"""Tiles of the two matrix products, and the order in which programs take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Tile(NamedTuple):
    """The part of a product that one program computes, and how."""

    rows: int
    columns: int
    depth: int  # of the inner dimension, at a time; less where it does not divide the channels
    num_warps: int
    num_stages: int


# By bytes an element. Shared memory is num_stages * depth * (rows + columns) elements, and GPUs of compute capability
# 8.6, 8.9 and 12.0 have 99 KiB for a program. Float32 runs without tensor cores (TF32 would lose 13 bits), where small
# tiles fit the registers.
LARGE = {2: Tile(128, 128, 64, num_warps=8, num_stages=3), 4: Tile(64, 64, 16, num_warps=4, num_stages=3)}
SMALL = {2: Tile(64, 64, 64, num_warps=4, num_stages=3), 4: Tile(32, 64, 16, num_warps=8, num_stages=3)}
# Large tiles from so many large ones on: fewer would leave most of a GPU of 80 to 170 multiprocessors idle.
ENOUGH = 128

# Programs next to each other in time share so many row tiles, whose rows then come from the L2 cache.
GROUP = 8


def choose(dtype: torch.dtype, columns: int, rows: int) -> Tile:
    """Tile shape for a product of ``rows`` x ``columns``; ``rows`` counts what may be computed at most."""
    large = LARGE[dtype.itemsize]
    programs = -(-rows // large.rows) * -(-columns // large.columns)
    return large if programs >= ENOUGH else SMALL[dtype.itemsize]


def largest_power_of_two_in(n: int) -> int:
    """The largest power of two that divides ``n``."""
    return n & -n


@triton.jit
def grouped_tile(program, rows, columns, GROUP: tl.constexpr):
    """Row and column tile of a program: down GROUP row tiles, then one column on, then the next group."""
    in_group = GROUP * columns
    first = program // in_group * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + program % in_group % height, program % in_group // height

"""A table of what every representative form of every kernel costs on every architecture; no GPU is needed.

    python -m spt_plugins.ptxas_report [--arch 89] [--jobs 4] [--json]

Registers, stack and spills are what NVIDIA's assembler reports, shared memory is what a launch asks for, instructions
are what it makes of a kernel; those in a loop count once. Blocks are those that fit a multiprocessor at once.
"""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import click
import torch

from spt_plugins import launches
from spt_plugins.ptx import ARCHITECTURES, compile_ptx
from spt_plugins.ptxas import SHARED_MEMORY_LIMIT, assemble, blocks_at_once
from spt_plugins.variant import Variant

# Slots from which on the matrix products take their large tiles at every width, and few enough for the small ones.
MANY, FEW = 1 << 20, 32

_HALF, _BF16, _FLOAT = torch.float16, torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Row:
    """One variant on one architecture."""

    variant: str
    arch: int
    threads: int  # a block
    registers: int  # a thread
    stack: int  # bytes a thread
    spill_stores: int  # bytes
    spill_loads: int  # bytes
    shared_memory: int  # bytes a block, static and dynamic
    instructions: int
    tensor_core_instructions: int
    wide_loads: int  # from global memory, 16 bytes a thread
    blocks: int | None  # that fit a multiprocessor at once; None where its sizes are not known
    seconds: float  # to compile and to assemble


@functools.cache
def representative_variants() -> tuple[Variant, ...]:
    """Each kernel in each form that its code tells apart; widths stand for the ones between them.

    * ``SelectTokens``: each of its tilings.
    * ``PackedQKV``, ``UnpackProject``: small and large tiles at C = 384 and at 1024, the widest; in float16 also at 96,
      which halves the depth of a tile, and at 32, the narrowest. Bfloat16, whose code is float16's but for the
      multiplication, and a float32 residual beside float16 weights, which mixed precision exports, once.
    * ``PackedAttention``: an odd and an even number of heads (heads go in pairs where they can), both packings, the
      usual window, a small one and the largest, and a float32 bias table beside float16.
    """
    found = [launches.for_select_tokens(1, n, usual_tokens=n).variant for n in (196, 4000, 64000)]
    for dtype, channels, slots in (
        *itertools.product((_HALF,), (96, 384), (FEW, MANY)),
        *itertools.product((_FLOAT,), (384, 1024), (FEW, MANY)),
        (_HALF, 32, FEW),
        (_HALF, 1024, MANY),
        (_BF16, 384, MANY),
    ):
        found += [
            launches.for_packed_qkv(1, dtype=dtype, channels=channels, usual_slots=slots).variant,
            _unpack_project(dtype, dtype, channels, slots),
        ]
    found.append(_unpack_project(_HALF, _FLOAT, 384, MANY))
    for dtype, bias_dtype, heads, window, packing in (
        (_HALF, _HALF, 12, 7, "per-image"),
        (_HALF, _HALF, 12, 7, "batch"),
        (_HALF, _HALF, 3, 8, "per-image"),
        (_HALF, _HALF, 1, 3, "batch"),
        (_HALF, _FLOAT, 12, 7, "per-image"),
        (_BF16, _BF16, 12, 7, "per-image"),
        (_FLOAT, _FLOAT, 12, 7, "per-image"),
        (_FLOAT, _FLOAT, 3, 8, "batch"),
    ):
        launch = launches.for_packed_attention(
            1,
            1,
            dtype=dtype,
            bias_dtype=bias_dtype,
            heads=heads,
            window=window,
            tokens=100,
            width=10,
            packing=packing,
        )
        found.append(launch.variant)
    return tuple({variant.name: variant for variant in found}.values())


def _unpack_project(dtype: torch.dtype, residual_dtype: torch.dtype, channels: int, slots: int) -> Variant:
    return launches.for_unpack_project(
        1, 1, dtype=dtype, residual_dtype=residual_dtype, channels=channels, usual_slots=slots
    ).variant


def measure(index: int, arch: int) -> Row:
    """Compile and assemble the representative variant number ``index``."""
    variant = representative_variants()[index]
    begin = time.perf_counter()
    kernel = compile_ptx(variant, arch)
    taken, instructions = assemble(kernel)
    shared_memory = kernel.shared_memory + taken.static_shared_memory
    return Row(
        variant=variant.name,
        arch=arch,
        threads=kernel.threads,
        registers=taken.registers,
        stack=taken.stack,
        spill_stores=taken.spill_stores,
        spill_loads=taken.spill_loads,
        shared_memory=shared_memory,
        instructions=instructions.all,
        tensor_core_instructions=instructions.tensor_cores,
        wide_loads=instructions.wide,
        blocks=blocks_at_once(arch, kernel.threads, taken.registers, shared_memory),
        seconds=round(time.perf_counter() - begin, 3),
    )


def report(archs: tuple[int, ...] = ARCHITECTURES, jobs: int = 1) -> list[Row]:
    """Measure every representative variant on every architecture, in ``jobs`` processes.

    Raises:
        RuntimeMissingError: Triton is not installed.
        ResultError: ptxas refused a kernel.
    """
    cases = list(itertools.product(range(len(representative_variants())), archs))
    if jobs == 1:
        return [measure(*case) for case in cases]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(measure, *zip(*cases, strict=True)))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--arch", "archs", multiple=True, type=int, help="Compute capability, 89 for 8.9; repeatable.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; as many as there are processors by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(archs: tuple[int, ...], jobs: int | None, as_json: bool) -> None:
    """Registers, shared memory, spills and instructions of every kernel, from NVIDIA's assembler."""
    rows = report(archs or ARCHITECTURES, jobs or len(os.sched_getaffinity(0)))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    width = max(len(row.variant) for row in rows)
    heads = "arch  threads  registers  shared (limit), KiB  blocks  spilled, bytes  instructions  seconds"
    click.echo(f"{'variant':{width}}  {heads}")
    for row in rows:
        limit = SHARED_MEMORY_LIMIT.get(row.arch)
        shared = f"{row.shared_memory / 1024:.1f} ({limit // 1024 if limit else '?'})"
        spilled = row.spill_stores + row.spill_loads
        click.echo(
            f"{row.variant:{width}}  {row.arch:4}  {row.threads:7}  {row.registers:9}  {shared:>19}  "
            f"{row.blocks or '?':>6}  {spilled:14}  {row.instructions:12}  {row.seconds:7.2f}"
        )


if __name__ == "__main__":
    main()

"""How long one launch takes on the GPU, and what the GPU can do at best.

Launches are captured in a CUDA graph, so that their overhead does not hide short kernels, and go round over several
sets of inputs and outputs that together exceed the cache. On a CPU, where this only proves that the code runs, a clock
is read.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Run = Callable[[], object]

_LAUNCHES = 20  # in a graph, at least
_REPLAYS = 15  # timed
_COPY_BYTES = 1 << 30
_MATRIX = 8192
_BEYOND = 3  # caches that sets of inputs must fill together, for nothing of the first to be left when it comes again


class Ceilings(NamedTuple):
    """Measured on this machine, in this run.

    Attributes:
        bandwidth: bytes a second of a large copy, read and written counted.
        peak: operations a second of a large float16 matrix product.
    """

    bandwidth: float
    peak: float


def seconds_per_run(runs: Sequence[Run], device: torch.device, quick: bool = False) -> float:
    """Median time of one of ``runs``, which do the same on different inputs and take turns.

    What a run returns is kept until its turn comes again: outputs that shared one place would never leave the cache.
    """
    if device.type != "cuda":
        return _on_cpu(runs)
    for run in runs:  # compiles kernels, and makes what they keep
        run()
    torch.cuda.synchronize()
    launches = max(len(runs), _LAUNCHES // (4 if quick else 1))
    graph = torch.cuda.CUDAGraph()
    outputs: deque[object] = deque(maxlen=len(runs))
    with torch.cuda.graph(graph):
        for index in range(launches):
            outputs.append(runs[index % len(runs)]())
    graph.replay()
    times: list[float] = []
    for _ in range(_REPLAYS // (3 if quick else 1)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3 / launches)
    return statistics.median(times)


def _on_cpu(runs: Sequence[Run]) -> float:
    runs[0]()
    start = time.perf_counter()
    runs[-1]()
    return time.perf_counter() - start


def sets_beyond_cache(device: torch.device, bytes_each: int) -> int:
    """How many sets it takes, of which a run moves so many bytes, until the cache holds none from turn to turn."""
    if device.type != "cuda":
        return 1
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, -(-_BEYOND * cache // max(1, bytes_each)))


def spare_memory(device: torch.device) -> int:
    """Bytes of the device that sets of inputs may take: a quarter of what is free."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0


def measure_ceilings(device: torch.device) -> Ceilings:
    """A large copy and a large matrix product."""
    if device.type != "cuda":
        size, side = 1 << 20, 64
    else:
        size, side = _COPY_BYTES, _MATRIX
    source = torch.randint(0, 100, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = seconds_per_run([lambda: target.copy_(source)], device)
    a, b = (torch.randn(side, side, dtype=torch.float16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    matrix_s = seconds_per_run([lambda: torch.mm(a, b, out=out)], device)
    return Ceilings(2 * size / copy_s, 2 * side**3 / matrix_s)

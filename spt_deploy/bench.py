"""Timing that can be trusted on a noisy machine: contenders take turns, medians and paired ratios.

A ratio is taken round by round, within which the machine hardly changes, and only then summed up. A turn is two runs,
of which the second is timed: the first brings a contender's weights back into the caches, where they are in a stream.
Without it whoever follows itself at another share of kept tokens would look faster than who follows another model.
Every round has another order, drawn from a fixed seed: who runs after whom makes half a percent otherwise.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from spt_deploy.errors import UsageError


@dataclass(frozen=True)
class Timing:
    """One contender.

    Attributes:
        name: of the contender.
        median_ms: of one run, in milliseconds.
        quartiles_ms: lower and upper quartile, likewise.
        p95_ms: 95th percentile, likewise.
        min_ms: fastest run, likewise.
        images_per_second: at the median.
        speedup: how many times faster than the first contender: median over rounds of its time over ours.
        speedup_range: lower and upper quartile of the same.
        peer: the contender that this one is also held against, the first of its runtime for example; may be itself.
        peer_speedup: how many times faster than that, as ``speedup``.
        rounds: runs that were timed.
    """

    name: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    p95_ms: float
    min_ms: float
    images_per_second: float
    speedup: float
    speedup_range: tuple[float, float]
    peer: str
    peer_speedup: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


class Turns:
    """Times of contenders that take turns, over several openings of them.

    Where a contender's buffers come to lie in memory is luck, makes a percent or two, and stays as it is until they are
    allocated anew: so more rounds do not average it out, and more openings do.

    Args:
        images: a run.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._seconds: dict[str, list[float]] = {}
        self._taken = 0

    def take(
        self,
        contenders: Mapping[str, Callable[[], object]],
        rounds: int,
        warmup: int = 2,
        on_round: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Time contenders in turn.

        Args:
            contenders: by name, each a run of the same number of images; the same names each time.
            rounds: timed, each of which gives every contender its turn.
            warmup: rounds before that, not timed.
            on_round: hears how many rounds are done.
        """
        draw = random.Random(self._taken)
        self._taken += 1
        for number in range(warmup + rounds):
            for name, run in draw.sample(list(contenders.items()), len(contenders)):
                run()
                start = time.perf_counter()
                run()
                if number >= warmup:
                    self._seconds.setdefault(name, []).append(time.perf_counter() - start)
            on_round(max(0, number + 1 - warmup))

    def timings(self, order: Iterable[str], peers: Mapping[str, str] | None = None) -> list[Timing]:
        """What was seen of each contender, which took two turns at least.

        Args:
            order: their names; the first is what the others are held against.
            peers: by name, which other contender one is also held against; the first where it is not said.
        """
        names, of = list(order), peers or {}
        return [_summary(name, self._seconds, names[0], of.get(name, names[0]), self._images) for name in names]


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    images: int,
    rounds: int,
    warmup: int = 2,
    peers: Mapping[str, str] | None = None,
) -> list[Timing]:
    """Time contenders in turn, once.

    Args:
        contenders: by name, each a run of the same ``images`` images; the first is what the others are held against.
        images: a run.
        rounds: see ``Turns.take``.
        warmup: likewise.
        peers: see ``Turns.timings``.

    Raises:
        UsageError: when there is no contender, or fewer than two rounds.
    """
    if not contenders:
        raise UsageError("there is nothing to time; name at least one artefact")
    check_rounds(rounds)
    turns = Turns(images)
    turns.take(contenders, rounds, warmup)
    return turns.timings(contenders, peers)


def check_rounds(rounds: int) -> None:
    """Raise a UsageError for too few."""
    if rounds < 2:
        raise UsageError(f"rounds is {rounds}; expected at least 2, for a median of one says little")


def shown_batches(batch: int, at_once: int) -> str:
    """Images of a batch, and how many batches make a run: ``8``, or ``8 (2 at a time)``."""
    return f"{batch} ({at_once} at a time)" if at_once > 1 else str(batch)


def _summary(name: str, seconds: Mapping[str, list[float]], first: str, peer: str, images: int) -> Timing:
    times = seconds[name]
    median = statistics.median(times)
    below, _, above = statistics.quantiles(times, n=4, method="inclusive")
    low, middle, high = statistics.quantiles(_ratios(seconds[first], times), n=4, method="inclusive")
    return Timing(
        name=name,
        median_ms=1e3 * median,
        quartiles_ms=(1e3 * below, 1e3 * above),
        p95_ms=1e3 * statistics.quantiles(times, n=20, method="inclusive")[-1],
        min_ms=1e3 * min(times),
        images_per_second=images / median,
        speedup=middle,
        speedup_range=(low, high),
        peer=peer,
        peer_speedup=statistics.median(_ratios(seconds[peer], times)),
        rounds=len(times),
    )


def _ratios(others: list[float], times: list[float]) -> list[float]:
    return [a / b for a, b in zip(others, times, strict=True)]

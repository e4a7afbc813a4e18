"""Contenders take turns, and the figures are those of the definitions. No clock is read: time is made here."""

from __future__ import annotations

import itertools

import pytest

from spt_deploy import bench
from spt_deploy.bench import take_turns
from spt_deploy.errors import UsageError


def test_contenders_take_turns_of_two_runs_after_the_warm_up() -> None:
    order: list[str] = []
    take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, images=1, rounds=3, warmup=2)
    assert order == ["a", "a", "b", "b"] * 5


def test_the_second_run_of_a_turn_is_the_one_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = [0.0], itertools.cycle([10.0, 2.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def run() -> None:
        now[0] += next(runs)

    (timing,) = take_turns({"a": run}, images=1, rounds=2)
    assert timing.median_ms == pytest.approx(2000)


def test_figures_are_medians_and_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.accumulate(itertools.chain.from_iterable((0.0, run) for run in durations()), initial=0.0)
    next(now)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    a, b = take_turns({"a": int, "b": int}, images=8, rounds=3, warmup=0)
    assert a.median_ms == pytest.approx(4000)
    assert b.median_ms == pytest.approx(1000)
    assert b.images_per_second == pytest.approx(8)
    assert a.speedup == 1
    assert b.speedup == pytest.approx(4)  # of 2/1, 4/1 and 8/0.5; the median of 4 by that of 1 is 4 too
    assert b.speedup_range == pytest.approx((3, 10))
    assert b.min_ms == pytest.approx(500)


def durations() -> list[float]:
    """Seconds of a, b, a, b, ...: the machine gets slower from round to round, the ratio grows."""
    return [2.0, 1.0, 4.0, 1.0, 8.0, 0.5]


def test_one_round_is_refused_for_it_says_little() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        take_turns({"a": int}, images=1, rounds=1)


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        take_turns({}, images=1, rounds=2)

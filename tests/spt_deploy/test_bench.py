"""Contenders take turns, and the figures are those of the definitions. No clock is read: time is made here."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from spt_deploy import bench
from spt_deploy.bench import Turns, take_turns
from spt_deploy.errors import UsageError


def test_contenders_take_turns_of_two_runs_after_the_warm_up() -> None:
    order: list[str] = []
    take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, images=1, rounds=3, warmup=2)
    assert len(order) == 5 * 4
    for start in range(0, len(order), 4):
        assert order[start : start + 4] in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


def test_rounds_have_orders_of_their_own_and_the_same_ones_each_time() -> None:
    def orders() -> list[str]:
        order: list[str] = []
        take_turns({name: partial(order.append, name) for name in "abcd"}, images=1, rounds=6, warmup=0)
        return ["".join(order[start : start + 8 : 2]) for start in range(0, len(order), 8)]

    assert all(sorted(each) == list("abcd") for each in orders())
    assert len(set(orders())) > 1
    assert orders() == orders()


def test_the_second_run_of_a_turn_is_the_one_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = [0.0], itertools.cycle([10.0, 2.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def run() -> None:
        now[0] += next(runs)

    (timing,) = take_turns({"a": run}, images=1, rounds=2)
    assert timing.median_ms == pytest.approx(2000)


def test_figures_are_medians_and_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine gets slower from round to round, and the ratio grows."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    takes = {"a": iter([0.0, 2.0, 0.0, 4.0, 0.0, 8.0]), "b": iter([0.0, 1.0, 0.0, 1.0, 0.0, 0.5])}

    def run(name: str) -> None:
        now[0] += next(takes[name])

    a, b = take_turns({name: partial(run, name) for name in takes}, images=8, rounds=3, warmup=0)
    assert a.median_ms == pytest.approx(4000)
    assert b.median_ms == pytest.approx(1000)
    assert b.images_per_second == pytest.approx(8)
    assert a.speedup == 1
    assert b.speedup == pytest.approx(4)  # of 2/1, 4/1 and 8/0.5; the median of 4 by that of 1 is 4 too
    assert b.speedup_range == pytest.approx((3, 10))
    assert b.min_ms == pytest.approx(500)


def test_openings_are_pooled_each_with_a_warm_up_and_orders_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def run(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    turns = Turns(images=2)
    for opened in (1, 2, 4):
        before = len(order)
        contenders = {name: partial(run, name, opened * ("abc".index(name) + 1.0)) for name in "abc"}
        turns.take(contenders, rounds=1, warmup=4)
        assert len(order) - before == 3 * 2 * 5
    assert len({tuple(order[first : first + 30]) for first in (0, 30, 60)}) == 3
    c, b = turns.timings("cb", {"b": "c"})
    assert (c.median_ms, c.min_ms, c.rounds) == (6000, 3000, 3)
    assert (b.median_ms, b.speedup, b.peer_speedup) == (4000, 1.5, 1.5)


def test_one_round_is_refused_for_it_says_little() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        take_turns({"a": int}, images=1, rounds=1)


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        take_turns({}, images=1, rounds=2)

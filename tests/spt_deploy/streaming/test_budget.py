"""The controller on simulated models, whose time is a + b * (share kept at the threshold), with noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.errors import UsageError
from spt_deploy.streaming.budget import DEAD_BAND, Budget, parse_threshold_range

Plant = Callable[[float], float]  # threshold -> seconds a frame


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def plant(fixed: float, selected: float, centre: float = -1.0, width: float = 0.5) -> Plant:
    """A model that takes ``fixed`` seconds a frame, and ``selected`` more with every token kept.

    Its scores are logistic about ``centre``, in logits; the narrower, the more suddenly they are dropped.
    """
    return lambda threshold: fixed + selected / (1 + math.exp((logit(threshold) - centre) / width))


def run(
    budget: Budget, model: Plant, batches: int, batch: int = 8, noise: float = 0.05, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Thresholds and seconds a frame of so many batches."""
    rng = random.Random(seed)
    thresholds, seconds = [], []
    for _ in range(batches):
        thresholds.append(budget.threshold)
        seconds.append(model(budget.threshold) * math.exp(rng.gauss(0, noise)))
        budget.observe(batch, batch * seconds[-1])
    return thresholds, seconds


def rate(seconds: list[float]) -> float:
    return len(seconds) / sum(seconds)


def swing(thresholds: list[float]) -> float:
    """From the lowest to the highest, in logits."""
    return logit(max(thresholds)) - logit(min(thresholds))


@pytest.mark.parametrize("width", [1.5, 0.5, 0.1], ids=["gentle", "usual", "cliff"])
@pytest.mark.parametrize("selected", [0.3, 1.0, 5.0])
@pytest.mark.parametrize(
    ("fixed", "batch", "batches"),
    [(0.03, 8, 120), (0.03, 1, 900), (0.004, 1, 4000), (0.5, 8, 60), (2.0, 1, 60)],
    ids=["30 a second", "batch 1", "fast", "slow", "very slow"],
)
def test_it_converges_holds_and_does_not_oscillate(
    fixed: float, batch: int, batches: int, selected: float, width: float
) -> None:
    model = plant(fixed, selected * fixed, width=width)
    target = 1 / model(1 / (1 + math.e))  # what half of the tokens cost
    thresholds, seconds = run(budget := Budget(target, 0.01), model, batches, batch)
    half = batches // 2
    assert 0.98 * target < rate(seconds[half:]) < 1.07 * target
    assert swing(thresholds[half:]) < 0.35  # of the 6.8 between the bounds
    assert 0.01 < thresholds[-1] < 0.9
    report = budget.report()
    assert (report.least, report.largest) == (min(thresholds), max(thresholds))
    assert report.mean == pytest.approx(sum(thresholds) / batches)


def test_without_noise_it_comes_to_rest_at_the_aim() -> None:
    model = plant(0.02, 0.02)
    thresholds, seconds = run(Budget(30, 0.01), model, 400, noise=0)
    assert len(set(thresholds[300:])) == 1
    assert 30 < 1 / seconds[-1] < 30 * (1 + 2 * DEAD_BAND + 0.03)


def test_a_target_that_is_easy_leaves_the_model_its_own_threshold() -> None:
    thresholds, _ = run(budget := Budget(10, 0.01), plant(0.02, 0.02), 100, noise=0.3)
    assert set(thresholds) == {0.01}
    report = budget.report()
    assert report.held
    assert report.share_at_highest == 0
    assert "10 frames/s held" in report.verdict


def test_a_target_that_nothing_holds_ends_at_the_upper_bound_and_says_so() -> None:
    thresholds, _ = run(budget := Budget(100, 0.01, 0.6), plant(0.02, 0.02), 200)
    assert thresholds[-1] == 0.6  # exactly, whatever logarithms make of it
    report = budget.report()
    assert report.held is False
    assert report.share_at_highest == pytest.approx(thresholds.count(0.6) / 200)
    assert report.verdict.startswith("no threshold up to 0.6 holds 100 frames/s: the model made 4")


def test_it_does_not_wind_up_at_a_bound() -> None:
    """After a long time at the upper bound an easy scene brings the threshold down as fast as after a short one."""

    def batches_to_fall(hopeless: int) -> int:
        budget = Budget(40, 0.01)
        run(budget, plant(0.05, 0.02), hopeless, noise=0)
        assert budget.threshold == 0.9
        thresholds, _ = run(budget, plant(0.005, 0.005), 400, noise=0)
        return sum(threshold > 0.02 for threshold in thresholds)

    assert batches_to_fall(2000) <= batches_to_fall(60) + 1


@pytest.mark.parametrize("selected", [0.3, 1.0])
def test_it_follows_a_change_of_scene_and_back(selected: float) -> None:
    sparse, crowded = (plant(0.03, 0.03 * selected, centre, 0.5) for centre in (-3.0, 1.0))
    target = 1 / (0.03 * (1 + 0.5 * selected))
    budget = Budget(target, 0.01)
    settled = []
    for scene in (sparse, crowded, sparse):
        thresholds, seconds = run(budget, scene, 160)
        assert rate(seconds[80:]) > 0.98 * target
        assert swing(thresholds[120:]) < 0.35
        settled.append(thresholds[-1])
    assert settled[1] > 0.5 > 0.1 > settled[2] > 0.01  # it goes up only for as long as it must


def test_one_batch_that_the_machine_held_up_moves_it_little() -> None:
    budget = Budget(30, 0.01)
    model = plant(0.02, 0.02)
    run(budget, model, 200, noise=0)
    before = budget.threshold
    budget.observe(8, 100 * 8 / 30)
    assert logit(budget.threshold) - logit(before) < 8.0 * 0.7  # the largest gain, and no more than double the time
    thresholds, _ = run(budget, model, 200, noise=0)
    assert logit(thresholds[-1]) == pytest.approx(logit(before), abs=0.3)


def test_the_first_batch_is_no_measurement() -> None:
    budget = Budget(30, 0.01)
    budget.observe(8, 60.0)  # compiles
    assert budget.threshold == 0.01
    report = budget.report()
    assert (report.held, report.model_fps) == (None, None)
    assert "too short to say" in report.verdict
    assert report.to_dict()["held"] is None


def test_a_stream_that_ended_while_the_threshold_still_rose_says_so() -> None:
    run(budget := Budget(30, 0.01), plant(0.02, 0.02, width=0.1), 8, noise=0)
    assert "30 frames/s not held: the model made 25 over the whole stream" in budget.report().verdict


def test_a_stream_of_nothing_has_a_report() -> None:
    report = Budget(30, 0.01).report()
    assert (report.mean, report.least, report.largest, report.share_at_highest) == (None, None, None, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    bounds=st.lists(st.floats(1e-6, 1 - 1e-6), min_size=2, max_size=2, unique=True).map(sorted),
    target=st.floats(1e-3, 1e6),
    observed=st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1e4)), max_size=40),
)
def test_the_threshold_is_always_within_its_bounds_and_a_number(
    bounds: list[float], target: float, observed: list[tuple[int, float]]
) -> None:
    low, high = bounds
    budget = Budget(target, low, high)
    assert budget.threshold == low
    for frames, seconds in observed:
        budget.observe(frames, seconds)
        assert low <= budget.threshold <= high
    assert all(value == value for value in budget.report().to_dict().values())


@pytest.mark.parametrize("target", [0.0, -30.0, math.inf, math.nan])
def test_a_target_that_is_no_rate_is_refused(target: float) -> None:
    with pytest.raises(UsageError, match=r"target-fps is .*; expected a positive number"):
        Budget(target, 0.01)


@pytest.mark.parametrize("bounds", [(0.5, 0.5), (0.9, 0.1), (0.0, 0.5), (0.5, 1.0), (0.95, 0.9), (math.nan, 0.5)])
def test_bounds_that_bound_nothing_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="expected two numbers between 0 and 1, the lower one first"):
        Budget(30, *bounds)
    with pytest.raises(UsageError, match=r"threshold is 0\.99999999, in float32 1"):
        Budget(30, 0.5, 0.99999999)


def test_a_range_is_two_numbers() -> None:
    assert parse_threshold_range("0.01:0.9") == (0.01, 0.9)
    for text in ("0.5", "", "0.1:", ":0.9", "0.1:0.2:0.3", "low:high"):
        with pytest.raises(UsageError, match="expected LOW:HIGH"):
            parse_threshold_range(text)

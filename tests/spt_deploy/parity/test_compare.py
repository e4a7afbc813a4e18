"""Comparing outputs: what counts as equal, and what never does."""

from __future__ import annotations

import numpy as np
import pytest

from spt_deploy.errors import InputError, UsageError
from spt_deploy.parity.compare import compare_outputs, difference
from spt_deploy.parity.tolerances import TOLERANCES, tolerance_for
from spt_deploy.runtimes.base import Arrays

FP32 = TOLERANCES["fp32"]


def _logits(*rows: list[float]) -> Arrays:
    return {"logits": np.array(rows, dtype=np.float32)}


def _detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Arrays:
    return {
        "boxes": np.array([boxes], dtype=np.float32),
        "scores": np.array([scores], dtype=np.float32),
        "labels": np.array([labels], dtype=np.int64),
    }


def test_the_figures_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    a = random.standard_normal((3, 7)).astype(np.float32)
    b = (a + 1e-3 * random.standard_normal((3, 7))).astype(np.float32)
    found = difference(a, b, 1e-6, 1e-6)
    assert found.max_absolute == pytest.approx(np.abs(a - b).max(), rel=1e-5)
    assert found.mean_absolute == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    assert found.max_relative == pytest.approx((np.abs(a - b) / np.abs(a)).max(), rel=1e-4)
    assert not found.passed


def test_an_element_passes_when_absolute_plus_relative_tolerance_covers_it() -> None:
    a = np.array([100.0, 0.0], dtype=np.float32)
    assert difference(a, np.array([100.9, 0.0], dtype=np.float32), 0.0, 1e-2).passed
    assert not difference(a, np.array([100.0, 0.9], dtype=np.float32), 0.0, 1e-2).passed
    assert difference(a, np.array([100.0, 0.9], dtype=np.float32), 1.0, 0.0).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_never_pass_even_on_both_sides(bad: float) -> None:
    clean, broken = np.array([1.0, 2.0], dtype=np.float32), np.array([1.0, bad], dtype=np.float32)
    for a, b in ((clean, broken), (broken, clean), (broken, broken)):
        found = difference(a, b, 10.0, 10.0)
        assert found.not_finite == 1
        assert not found.passed
        assert np.isfinite(found.max_absolute)


def test_another_shape_is_an_error() -> None:
    with pytest.raises(InputError, match="shapes"):
        difference(np.zeros(3, np.float32), np.zeros((1, 3), np.float32), 1.0, 0.0)


def test_the_same_top_class_is_counted_image_by_image() -> None:
    ours, theirs = _logits([1, 2], [3, 0], [0, 1]), _logits([1, 2], [0, 3], [0, 1])
    found = compare_outputs(ours, theirs, FP32)
    assert (found.agreed, found.counted) == (2, 3)
    assert not found.passed


def test_detections_of_equal_score_may_come_in_another_order() -> None:
    boxes = [[0.0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 9, 9]]
    ours = _detections(boxes, [0.9, 0.5, 0.1], [1, 0, 0])
    swapped = _detections([boxes[0], boxes[2], boxes[1]], [0.9, 0.5, 0.5], [1, 0, 0])
    tied = _detections(boxes, [0.9, 0.5, 0.5], [1, 0, 0])
    assert compare_outputs(tied, swapped, FP32).passed
    assert not compare_outputs(ours, swapped, FP32).passed  # there the scores are no tie


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [
        ([[0.0, 0, 10, 11], [20, 20, 40, 40]], [0.9, 0.5], [1, 0]),  # a box is off by a pixel
        ([[0.0, 0, 10, 10], [20, 20, 40, 40]], [0.8, 0.5], [1, 0]),  # a score differs
        ([[0.0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.5], [0, 0]),  # a label differs
    ],
)
def test_a_detection_that_differs_in_anything_is_no_match(
    boxes: list[list[float]], scores: list[float], labels: list[int]
) -> None:
    ours = _detections([[0.0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.5], [1, 0])
    found = compare_outputs(ours, _detections(boxes, scores, labels), FP32)
    assert not found.passed
    assert found.agreed < 2


def test_a_detection_at_the_cut_of_k_may_be_another_one() -> None:
    ours = _detections([[0.0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.5], [1, 0])
    theirs = _detections([[0.0, 0, 10, 10], [60, 60, 80, 80]], [0.9, 0.5], [1, 0])
    found = compare_outputs(ours, theirs, FP32)
    assert found.passed
    assert (found.agreed, found.counted) == (1, 1)


def test_a_box_at_the_cut_is_taken_for_another_only_where_every_corner_is_near() -> None:
    """Within tolerance of its far corner, not of its near one: no match, and at the cut none is needed."""
    bf16 = TOLERANCES["bf16"]
    ours = _detections([[30.0, 30, 50, 50], [4, 4, 200, 200]], [0.9, 0.01], [1, 0])
    theirs = _detections([[30.0, 30, 50, 50], [10, 4, 200, 200]], [0.9, 0.01], [1, 0])
    found = compare_outputs(ours, theirs, bf16)
    assert found.passed
    assert (found.agreed, found.counted) == (1, 1)
    strong = [dict(side, scores=np.array([[0.9, 0.9]], dtype=np.float32)) for side in (ours, theirs)]
    more = [dict(side, **_with_a_last_box(side)) for side in strong]
    assert not compare_outputs(*more, bf16).passed


def _with_a_last_box(side: Arrays) -> Arrays:
    """One more of no score, so that none of the others is at the cut."""
    last = _detections([[0.0, 0, 1, 1]], [0.0], [0])
    return {name: np.concatenate([side[name], last[name]], axis=1) for name in last}


def test_a_box_that_is_no_number_is_seen_at_the_cut_too() -> None:
    ours = _detections([[0.0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.5], [1, 0])
    theirs = _detections([[0.0, 0, 10, 10], [20, float("nan"), 40, 40]], [0.9, 0.5], [1, 0])
    found = compare_outputs(ours, theirs, FP32)
    assert not found.passed
    assert found.differences["boxes"].not_finite == 1


def test_other_tasks_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="same task"):
        compare_outputs(_logits([1, 2]), _detections([[0.0, 0, 1, 1]], [0.5], [0]), FP32)


def test_the_least_precise_side_sets_the_tolerance() -> None:
    assert tolerance_for("fp32", "fp16") == TOLERANCES["fp16"]
    assert tolerance_for("fp16", "bf16") == TOLERANCES["bf16"]
    with pytest.raises(UsageError, match="fp32, fp16, bf16"):
        tolerance_for("fp32", "int4")

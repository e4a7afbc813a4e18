"""Postprocessing against brute force and against what softmax, sigmoid and NMS are by definition."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.config import Task
from spt_deploy.errors import InputError, UsageError
from spt_deploy.postprocess import (
    Classification,
    Detection,
    Postprocessing,
    Prediction,
    best_classes,
    detections_kept,
    present_classes,
    sigmoid,
    softmax,
)
from tests.spt_deploy.streaming.support import facts_of

NAMES = tuple("abcdefg")


def nms_by_hand(
    boxes: npt.NDArray[Any], scores: npt.NDArray[Any], labels: npt.NDArray[Any], conf: float, iou: float
) -> list[int]:
    """Greedy class-wise NMS, box against box, in Python floats."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        ax0, ay0, ax1, ay1 = (float(v) for v in boxes[i])
        if scores[i] < conf or ax1 <= ax0 or ay1 <= ay0:
            continue
        for j in kept:
            bx0, by0, bx1, by1 = (float(v) for v in boxes[j])
            width, height = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
            both = max(width, 0.0) * max(height, 0.0)
            either = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - both
            if labels[i] == labels[j] and both / either > iou:
                break
        else:
            kept.append(i)
    return kept


@st.composite
def boxes_scores_labels(draw: st.DrawFn) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Boxes on a coarse grid, so that ties, equal overlaps, copies and empty boxes all come up."""
    count = draw(st.integers(0, 25))
    side = st.integers(0, 9)
    rows = draw(st.lists(st.tuples(side, side, side, side), min_size=count, max_size=count))
    scores = draw(st.lists(st.integers(0, 10).map(lambda v: v / 10), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    boxes = np.array(rows, dtype=np.float32).reshape(-1, 4)
    return boxes, np.array(scores, dtype=np.float32), np.array(labels, dtype=np.int64)


@settings(max_examples=300, deadline=None)
@given(boxes_scores_labels(), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([0.0, 1 / 3, 0.5, 1.0]))
def test_nms_keeps_what_brute_force_keeps_in_the_same_order(
    case: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]], conf: float, iou: float
) -> None:
    boxes, scores, labels = case
    conf = float(np.float32(conf))
    assert detections_kept(boxes, scores, labels, conf, iou).tolist() == nms_by_hand(boxes, scores, labels, conf, iou)


def test_nms_leaves_out_boxes_and_scores_that_are_no_numbers() -> None:
    boxes = np.array([[0, 0, 5, 5], [0, 0, np.nan, 5], [9, 9, np.inf, 12], [20, 20, 25, 25]], dtype=np.float32)
    scores = np.array([np.nan, 0.9, 0.9, 0.9], dtype=np.float32)
    assert detections_kept(boxes, scores, np.zeros(4, dtype=np.int64), 0.0, 0.5).tolist() == [3]


def test_softmax_is_a_distribution_even_of_huge_logits() -> None:
    shares = softmax(np.array([[1e30, 1e30], [-1e30, -1e30], [800.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(shares, [[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    assert shares.dtype == np.float64


def test_sigmoid_is_the_logistic_function_and_never_overflows() -> None:
    values = [-1e4, -700.0, -1.5, 0.0, 1.5, 700.0, 1e4]
    expected = [0.0, math.exp(-700), 1 / (1 + math.exp(1.5)), 0.5, 1 / (1 + math.exp(-1.5)), 1.0, 1.0]
    np.testing.assert_allclose(sigmoid(np.array(values)), expected, rtol=1e-12)


def test_a_classifier_gives_its_best_five_and_ties_go_to_the_lower_label() -> None:
    model = facts_of("classify", names=NAMES).model
    answer = best_classes(np.array([0.0, 2.0, 1.0, 2.0, -1.0, 0.0, 3.0], dtype=np.float32), model)
    assert [entry.label for entry in answer] == [6, 1, 3, 2, 0]
    assert [entry.name for entry in answer] == ["g", "b", "d", "c", "a"]
    assert best_classes(np.zeros(3), facts_of("classify").model)[0].score == pytest.approx(1 / 3)


def test_a_multilabel_model_gives_every_class_at_or_above_the_threshold_best_first() -> None:
    model = facts_of("multilabel", names=NAMES).model
    logits = np.array([0.0, -5.0, 2.0, 0.0, -0.1, 9.0, -9.0])
    assert [entry.label for entry in present_classes(logits, model, 0.5)] == [5, 2, 0, 3]
    assert present_classes(logits, model, 1.0) == ()
    assert len(present_classes(logits, model, 0.0)) == len(NAMES)


def test_boxes_come_back_in_source_pixels_and_those_in_the_letterbox_border_do_not() -> None:
    facts = facts_of("detect", size=(64, 64))
    # A source of 100 x 200 fills rows 16 to 48 of the input, at 0.32 input pixels a source pixel.
    arrays: dict[str, npt.NDArray[Any]] = {
        "boxes": np.array([[[0, 16, 32, 32], [0, 0, 64, 15], [32, 40, 64, 64]]], dtype=np.float32),
        "scores": np.array([[0.5, 0.9, 0.8]], dtype=np.float32),
        "labels": np.array([[1, 1, 2]]),
        "select_ratio": np.array([[0.25, 0.75]], dtype=np.float32),
        "selection": np.ones((1, 4, 4), dtype=np.float32),
    }
    (prediction,) = Postprocessing(conf=0.25).apply(arrays, facts, [(100, 200)])
    assert prediction.classes is None
    assert prediction.detections is not None
    assert [found.name for found in prediction.detections] == ["blue", "green"]
    np.testing.assert_allclose([found.box for found in prediction.detections], [[100, 75, 200, 100], [0, 0, 100, 50]])
    assert prediction.select_ratio == (0.25, 0.75)
    assert prediction.mean_select_ratio == 0.5


def test_a_prediction_does_not_keep_the_arrays_of_its_batch() -> None:
    arrays = {"logits": np.zeros((2, 3)), "selection": np.zeros((2, 4, 4), dtype=np.float32)}
    for prediction in Postprocessing().apply(arrays, facts_of(), [(8, 8), (8, 8)]):
        assert prediction.selection is not None
        assert not np.shares_memory(prediction.selection, arrays["selection"])
        assert prediction.mean_select_ratio is None


def test_a_prediction_is_valid_json_whatever_the_model_says() -> None:
    logits = np.array([[np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0]])
    arrays = {"logits": logits, "select_ratio": np.array([[np.nan], [0.123456]])}
    answers = Postprocessing().apply(arrays, facts_of(), [(8, 8), (8, 8)])
    lines = [json.loads(json.dumps(answer.to_dict(), allow_nan=False)) for answer in answers]
    assert lines[0]["select_ratio"] == [None]
    assert lines[1]["select_ratio"] == [0.1235]
    assert lines[0]["classes"][0]["score"] is None
    assert answers[0].mean_select_ratio is None


def test_a_prediction_as_a_dictionary_names_everything_and_rounds_it() -> None:
    found = Detection(box=(1.23456, 2.0, 3.0, 4.0), label=0, name="red", score=0.1234567)
    assert Prediction(detections=(found,), select_ratio=(0.5,)).to_dict() == {
        "detections": [{"label": 0, "name": "red", "score": 0.12346, "box": [1.23, 2.0, 3.0, 4.0]}],
        "select_ratio": [0.5],
    }
    assert Prediction(classes=(Classification(1, "green", 1.0),)).to_dict() == {
        "classes": [{"label": 1, "name": "green", "score": 1.0}],
        "select_ratio": [],
    }


@pytest.mark.parametrize(("name", "value"), [("conf", 1.5), ("conf", -0.1), ("iou", 2.0), ("iou", float("nan"))])
def test_a_threshold_outside_0_to_1_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}; expected a number from 0 to 1"):
        Postprocessing(**{name: value})


@pytest.mark.parametrize(
    ("score", "corner", "is_finite"),
    [(0.9, 8.0, True), (np.nan, 8.0, False), (0.9, np.inf, False), (0.1, np.inf, True)],  # the last is no answer
)
def test_a_detection_is_finite_where_scores_and_answers_are_numbers(
    score: float, corner: float, is_finite: bool
) -> None:
    boxes = np.array([[[1, 1, 5, 5], [2, 2, corner, 9]]], np.float32)
    arrays = {"boxes": boxes, "scores": np.array([[0.8, score]], np.float32), "labels": np.array([[0, 1]])}
    assert Postprocessing().apply(arrays, facts_of("detect"), [(64, 64)])[0].is_finite == is_finite


@pytest.mark.parametrize("task", ["classify", "multilabel"])
def test_classes_are_finite_where_all_logits_are(task: Task) -> None:
    arrays = {"logits": np.array([[0, 1, 2], [0, np.nan, 2], [0, 1, -np.inf]], np.float32)}
    answers = Postprocessing().apply(arrays, facts_of(task), [(8, 8)] * 3)
    assert [answer.is_finite for answer in answers] == [True, False, False]


def test_a_missing_output_and_a_batch_of_another_size_are_named() -> None:
    with pytest.raises(InputError, match="no output 'boxes' but logits"):
        Postprocessing().apply({"logits": np.zeros((1, 3))}, facts_of("detect"), [(8, 8)])
    with pytest.raises(InputError, match=r"'logits' has shape .2, 3. for 1 images"):
        Postprocessing().apply({"logits": np.zeros((2, 3))}, facts_of(), [(8, 8)])


def test_a_prediction_carries_the_masks_that_were_asked_for_and_no_others() -> None:
    masks = np.arange(2 * 3 * 4).reshape(2, 3, 4) % 3 == 0
    arrays = {"logits": np.zeros((2, 3), np.float32), "kept_3.1": masks, "kept_3.2": ~masks}
    assert Postprocessing().apply(arrays, facts_of(), [(9, 9)] * 2)[0].masks == {}
    for row, answer in enumerate(Postprocessing(masks=("3.2",)).apply(arrays, facts_of(), [(9, 9)] * 2)):
        assert list(answer.masks) == ["3.2"]
        np.testing.assert_array_equal(answer.masks["3.2"], ~masks[row])
    with pytest.raises(InputError, match=r"gave no output 'kept_4.1' but logits, kept_3.1, kept_3.2"):
        Postprocessing(masks=("4.1",)).apply(arrays, facts_of(), [(9, 9)] * 2)


def test_predictions_with_arrays_can_be_compared_and_counted() -> None:
    ones, others = (Prediction(selection=np.full((2, 2), value, dtype=np.float32)) for value in (0.5, 0.5))
    assert ones == ones
    assert ones != others
    assert len({ones, others}) == 2

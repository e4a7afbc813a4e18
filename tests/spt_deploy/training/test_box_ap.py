"""Known answers; the arithmetic between them is the library's."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from spt_deploy.datasets.objects import Objects
from spt_deploy.errors import InputError, RuntimeMissingError
from spt_deploy.training.box_ap import FoundObjects, ScoredImage, box_average_precision

SMALL, MEDIUM, LARGE = [10, 10, 30, 30], [50, 50, 100, 100], [100, 100, 300, 300]


def scored(truth: Objects, boxes: Any = (), scores: Any = (), labels: Any = ()) -> ScoredImage:
    found = FoundObjects(
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        np.asarray(scores, dtype=np.float32),
        np.asarray(labels, dtype=np.int64),
    )
    return ScoredImage(truth, found)


def perfect(truth: Objects) -> ScoredImage:
    return scored(truth, truth.boxes, np.linspace(0.9, 0.5, len(truth)), truth.labels)


def test_the_truth_itself_has_every_ap_at_1() -> None:
    truth = Objects.from_boxes([SMALL, MEDIUM, LARGE], [0, 1, 0])
    result = box_average_precision([perfect(truth), perfect(Objects.from_boxes([], []))])
    assert result.metrics == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75", "APS", "APM", "APL"), 1.0))
    assert result.per_class == pytest.approx({0: 1.0, 1: 1.0})


def test_no_prediction_at_all_is_0() -> None:
    result = box_average_precision([scored(Objects.from_boxes([MEDIUM], 3))])
    assert result.metrics == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "APM": 0.0}
    assert result.per_class == {3: 0.0}


def test_a_box_shifted_to_an_iou_of_0_6_counts_at_three_thresholds_of_ten() -> None:
    # 40 x 40 shifted by 10 along x: 30 / 50 = 0.6, a threshold itself, which float32 may miss; by 9.8 it is 0.606.
    truth = Objects.from_boxes([[50, 50, 90, 90]], 0)
    result = box_average_precision([scored(truth, [[59.8, 50, 99.8, 90]], [0.9], [0])])
    assert result.metrics == pytest.approx({"AP": 0.3, "AP50": 1.0, "AP75": 0.0, "APM": 0.3})


def test_a_duplicate_above_the_second_object_costs_precision_there() -> None:
    truth = Objects.from_boxes([MEDIUM, [120, 50, 170, 100]], 0)
    image = scored(truth, [MEDIUM, MEDIUM, [120, 50, 170, 100]], [0.9, 0.8, 0.7], [0, 0, 0])
    # Precision 1 up to recall 0.5 (51 of 101 recall points), 2/3 beyond.
    assert box_average_precision([image]).metrics["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_right_box_of_the_wrong_class_is_found_by_none() -> None:
    truth = Objects.from_boxes([MEDIUM, LARGE], [0, 1])
    result = box_average_precision([scored(truth, truth.boxes, [0.9, 0.8], [1, 0])])
    assert result.metrics["AP"] == 0.0


def test_classes_without_an_object_count_for_nothing() -> None:
    truth = Objects.from_boxes([MEDIUM], 2)
    image = scored(truth, [MEDIUM, LARGE], [0.5, 0.9], [2, 0])
    result = box_average_precision([image])
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert list(result.per_class) == [2]


def test_a_crowd_is_neither_found_nor_missed() -> None:
    truth = Objects.from_boxes([MEDIUM, LARGE], 0, [False, True])
    inside_crowd = [150, 150, 200, 200]
    result = box_average_precision([scored(truth, [inside_crowd, MEDIUM], [0.9, 0.8], [0, 0])])
    assert result.metrics["AP"] == pytest.approx(1.0)


def test_sizes_follow_the_area_of_the_outline() -> None:
    boxes = Objects.from_boxes([MEDIUM], 0)
    thin = Objects(boxes.boxes, boxes.labels, boxes.crowd, np.array([500.0]))  # of 2,500 pixels in the box
    assert set(box_average_precision([perfect(thin)]).metrics) == {"AP", "AP50", "AP75", "APS"}


def test_without_an_object_there_is_no_ap_and_the_message_says_so() -> None:
    crowd = Objects.from_boxes([LARGE], 0, [True])
    with pytest.raises(InputError, match="none of the 2 validation images has an object"):
        box_average_precision([perfect(Objects.from_boxes([], [])), scored(crowd)])


def test_without_the_library_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("faster_coco_eval"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(RuntimeMissingError, match=r"spt-deploy\[train\]"):
        box_average_precision([perfect(Objects.from_boxes([MEDIUM], 0))])

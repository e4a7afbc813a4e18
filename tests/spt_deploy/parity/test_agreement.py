"""Answers that two artefacts share, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from spt_deploy.config import Task
from spt_deploy.parity.agreement import Agreement, agreement
from spt_deploy.runtimes.base import Arrays


def logits(*rows: list[float]) -> Arrays:
    return {"logits": np.array(rows, dtype=np.float32)}


def objects(*found: tuple[tuple[float, float, float, float], float, int]) -> Arrays:
    """One image; the rest of its K boxes is background."""
    filled = [*found, ((0.0, 0.0, 9.0, 9.0), 0.01, 0)]
    boxes, scores, labels = zip(*filled, strict=True)
    return {
        "boxes": np.array([boxes], dtype=np.float32),
        "scores": np.array([scores], dtype=np.float32),
        "labels": np.array([labels], dtype=np.int64),
    }


BOX = (10.0, 10.0, 30.0, 30.0)
NEAR = (11.0, 10.0, 31.0, 30.0)
FAR = (50.0, 50.0, 70.0, 70.0)

CASES: list[tuple[str, Task, Arrays, Arrays, tuple[int, int]]] = [
    ("the best class of each image", "classify", logits([3, 1], [0, 2]), logits([2, 1], [4, 2]), (1, 2)),
    ("labels both give, of either side", "multilabel", logits([9, 9, -9]), logits([9, -9, -9]), (2, 3)),
    ("no label on either side", "multilabel", logits([-9, -9]), logits([-9, -8]), (0, 0)),
    ("a box moved a little", "detect", objects((BOX, 0.9, 1)), objects((NEAR, 0.6, 1)), (2, 2)),
    ("a box of another class", "detect", objects((BOX, 0.9, 1)), objects((BOX, 0.9, 2)), (0, 2)),
    ("a box elsewhere", "detect", objects((BOX, 0.9, 1)), objects((FAR, 0.9, 1)), (0, 2)),
    ("one more box", "detect", objects((BOX, 0.9, 1)), objects((BOX, 0.9, 1), (FAR, 0.9, 1)), (2, 3)),
    ("a box below the score", "detect", objects((BOX, 0.9, 1)), objects((BOX, 0.2, 1)), (0, 1)),
    ("suppressed on both sides", "detect", objects((BOX, 0.9, 1), (NEAR, 0.8, 1)), objects((NEAR, 0.9, 1)), (2, 2)),
    ("nothing on either side", "detect", objects(), objects(), (0, 0)),
]


@pytest.mark.parametrize(("task", "ours", "theirs", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_answers_that_both_give_are_counted(
    task: Task, ours: Arrays, theirs: Arrays, expected: tuple[int, int]
) -> None:
    assert agreement(task, ours, theirs) == expected
    assert agreement(task, theirs, ours) == expected  # neither side is the measure


def test_shares_add_up_over_batches_and_no_answer_is_no_agreement() -> None:
    assert Agreement(1, 2).plus(Agreement(2, 2)) == (3, 4)
    assert Agreement(3, 4).share == 0.75
    assert Agreement().share == 0

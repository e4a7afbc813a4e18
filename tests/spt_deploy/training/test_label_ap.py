from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from spt_deploy.training.label_ap import average_precision, class_average_precision


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_equals_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 60))
    present = random.random(count) < random.uniform(0.05, 0.95)
    present[random.integers(count)] = True
    scores = random.normal(size=count).astype(np.float32)
    if seed % 2:
        scores = np.round(scores)  # many ties
    assert average_precision(scores, present) == pytest.approx(average_precision_score(present, scores))


def test_known_rankings() -> None:
    present = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 1, 3, 2]), present) == 1.0
    assert average_precision(np.array([1.0, 4, 2, 3]), present) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert average_precision(np.zeros(4), present) == 0.5  # nothing ranked: the share of images that have it


def test_a_class_that_no_image_has_counts_for_nothing() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.7, 0.5]])
    present = np.array([[True, False, False], [False, False, True]])
    assert class_average_precision(scores, present) == {0: 1.0, 2: 0.5}
    assert average_precision(np.zeros(2), np.zeros(2, dtype=bool)) is None

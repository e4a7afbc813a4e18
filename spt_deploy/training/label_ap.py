"""Average precision of labels: how well scores rank the images that have a class above those that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def average_precision(scores: npt.NDArray[np.floating[Any]], present: npt.NDArray[np.bool_]) -> float | None:
    """Area under the curve of precision over recall, all points, not interpolated.

    Sum over thresholds of (R_n - R_{n-1}) P_n, images of equal score at one threshold: the order of the images does
    not matter. The same as scikit-learn's ``average_precision_score``.

    Args:
        scores: n, any range; higher is more likely.
        present: n, whether the image has the class.

    Returns:
        In [0, 1]; None where no image has the class.
    """
    total = int(present.sum())
    if not total:
        return None
    order = np.argsort(-scores, kind="stable")  # NaN last
    ranked = scores[order]
    last_of_ties = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    found = np.cumsum(present[order], dtype=np.float64)[last_of_ties]
    precision = found / (last_of_ties + 1)
    return float(np.sum(np.diff(found, prepend=0.0) * precision) / total)


def class_average_precision(scores: npt.NDArray[np.floating[Any]], present: npt.NDArray[np.bool_]) -> dict[int, float]:
    """``average_precision`` of every class that some image has, by label; arguments are n x classes."""
    values = {c: average_precision(scores[:, c], present[:, c]) for c in range(scores.shape[1])}
    return {label: value for label, value in values.items() if value is not None}

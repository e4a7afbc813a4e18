"""Hold the outputs of two artefacts against each other: errors, NaN and Inf, and agreement on what users see."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.errors import InputError
from spt_deploy.parity.tolerances import Tolerance
from spt_deploy.runtimes.base import Arrays

Array = npt.NDArray[np.generic]


_COUNTS = ("overflow",)


@dataclass(frozen=True)
class Difference:
    """How far one output is from the reference.

    Attributes:
        max_absolute: largest |a - b|, in the output's own unit.
        mean_absolute: mean of |a - b|.
        max_relative: largest |a - b| / |reference|.
        mean_relative: mean of the same.
        not_finite: elements that are NaN or Inf on either side.
        passed: every element is finite and within tolerance.
    """

    max_absolute: float
    mean_absolute: float
    max_relative: float
    mean_relative: float
    not_finite: int
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def worst(differences: list[Difference]) -> Difference:
        """The largest of each figure; passed when all passed."""
        return Difference(
            max_absolute=max(d.max_absolute for d in differences),
            mean_absolute=max(d.mean_absolute for d in differences),
            max_relative=max(d.max_relative for d in differences),
            mean_relative=max(d.mean_relative for d in differences),
            not_finite=sum(d.not_finite for d in differences),
            passed=all(d.passed for d in differences),
        )


@dataclass(frozen=True)
class Comparison:
    """One batch, candidate against reference.

    Attributes:
        differences: by output name.
        agreed: of ``counted`` images or detections, those on which both say the same: the class or label with the
            highest score of ``classify`` and ``multilabel``, matched detections of ``detect``.
        counted: see ``agreed``.
    """

    differences: dict[str, Difference]
    agreed: int
    counted: int

    @property
    def passed(self) -> bool:
        """All outputs are within tolerance."""
        return all(d.passed for d in self.differences.values())


def compare_outputs(reference: Arrays, candidate: Arrays, tolerance: Tolerance) -> Comparison:
    """Compare the outputs that both have, but for counts of what a threshold decided: a borderline token changes those.

    Detections are matched first: where scores tie, runtimes may list them in another order.

    Raises:
        InputError: when the task's outputs are not the same on both sides.
    """
    _check_names(reference, candidate)
    if "boxes" in reference:
        candidate, agreed, counted = _matched(reference, candidate, tolerance)
    elif reference["logits"].shape[1] == 1:
        agreed = counted = reference["logits"].shape[0]
    else:
        same = reference["logits"].argmax(1) == candidate["logits"].argmax(1)
        agreed, counted = int(same.sum()), same.size
    shared = [name for name in reference if name in candidate and name not in _COUNTS]
    differences = {}
    for name in shared:
        limit = tolerance.pixels if name == "boxes" else tolerance.absolute
        differences[name] = difference(reference[name], candidate[name], limit, tolerance.relative)
    return Comparison(differences, agreed, counted)


def difference(reference: Array, candidate: Array, absolute: float, relative: float) -> Difference:
    """Compare two arrays element by element with Polygraphy's comparator; bool and integers count as numbers.

    Raises:
        InputError: when the shapes differ.
    """
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    if reference.shape != candidate.shape:
        raise InputError(f"outputs have shapes {reference.shape} and {candidate.shape}; the same model has the same")
    a, b = (np.asarray(x, dtype=np.float64 if x.dtype.kind in "iu" else np.float32) for x in (reference, candidate))
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    compare = SimpleCompareFunc(atol=absolute, rtol=relative, check_error_stat="elemwise")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # our report has the figures; its log would repeat them
        # Polygraphy's relative error is over its second argument: the reference.
        result = compare(IterationResult({"x": b}, "candidate"), IterationResult({"x": a}, "reference"))["x"]
    not_finite = int((~finite).sum())
    return Difference(
        max_absolute=float(result.max_absdiff),
        mean_absolute=float(result.mean_absdiff),
        max_relative=float(result.max_reldiff),
        mean_relative=float(result.mean_reldiff),
        not_finite=not_finite,
        passed=bool(result) and not not_finite,
    )


def _check_names(reference: Arrays, candidate: Arrays) -> None:
    for name in ("logits", "boxes", "scores", "labels"):
        if (name in reference) != (name in candidate):
            raise InputError(
                f"outputs are {', '.join(reference)} and {', '.join(candidate)}; compare models of the same task"
            )


def _matched(reference: Arrays, candidate: Arrays, tolerance: Tolerance) -> tuple[Arrays, int, int]:
    """The candidate's boxes and labels in the reference's order; scores stay as they are, for both sides sort them.

    A detection matches one of the same label and score whose box is nearest, every corner within tolerance. One at the
    cut, whose score is within tolerance of the last of the K, may be missing on the other side: it is not counted. Not
    where the other side has a box that is no number: that shall be seen.
    """
    out = {name: np.array(value) for name, value in candidate.items()}
    agreed = counted = 0
    for b in range(reference["scores"].shape[0]):
        boxes, scores, labels = (reference[n][b] for n in ("boxes", "scores", "labels"))
        their_boxes, their_scores, their_labels = (candidate[n][b] for n in ("boxes", "scores", "labels"))
        near = 2 * tolerance.absolute
        cut = max(scores[-1], their_scores[-1]) + near
        apart = np.abs(boxes[:, None] - their_boxes[None])  # K x K x 4
        fits = (labels[:, None] == their_labels[None]) & (np.abs(scores[:, None] - their_scores[None]) <= near)
        fits &= (apart <= tolerance.pixels + tolerance.relative * np.abs(boxes[:, None])).all(-1)
        distance = np.where(fits, apart.max(-1), np.inf)
        finite = bool(np.isfinite(their_boxes).all())
        for i in range(len(scores)):
            j = int(distance[i].argmin())
            matched = bool(distance[i, j] < np.inf)
            at_cut = finite and bool(scores[i] <= cut)
            counted += matched or not at_cut
            agreed += matched
            if matched:
                distance[:, j] = np.inf
                out["boxes"][b, i], out["labels"][b, i] = their_boxes[j], their_labels[j]
            elif at_cut:
                out["boxes"][b, i], out["labels"][b, i] = boxes[i], labels[i]
    return out, agreed, counted

"""How far apart two runtimes may be, by the arithmetic of the less precise one: in one place."""

from __future__ import annotations

from typing import NamedTuple

from spt_deploy.errors import UsageError


class Tolerance(NamedTuple):
    """An element passes when |a - b| <= absolute + relative * |reference|.

    Attributes:
        absolute: in the output's own unit (a logit, a score).
        relative: without unit.
        pixels: for box corners, pixels of the input.
        score: for selection scores before the sigmoid; a token may flip only if its score lies this near the threshold.
    """

    absolute: float
    relative: float
    pixels: float
    score: float


# fp32: sums in another order. fp16 and bf16: 10 and 7 bits of mantissa over a dozen blocks. In bf16 the
# corners of a detector's boxes are off by 0.14 pixels where their score is 0.05 or more, and by 1.1 where it is 0.01.
# int8: a detection is found again by these; elements are not held to them, see `checks.compare_runners`.
_INT8 = Tolerance(absolute=5e-2, relative=5e-2, pixels=12.0, score=1.0)
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(absolute=1e-4, relative=1e-4, pixels=0.02, score=1e-3),
    "fp16": Tolerance(absolute=1e-2, relative=1e-2, pixels=1.0, score=5e-2),
    "bf16": Tolerance(absolute=5e-2, relative=5e-2, pixels=2.0, score=2e-1),
    "int8": _INT8,
    "int8+bf16": _INT8,
}
MAX_DROP = 0.01  # of a metric in [0, 1], that an int8 file may lose: what the field takes for well quantised


def tolerance_for(*precisions: str) -> Tolerance:
    """The tolerance of the least precise of the given precisions.

    Raises:
        UsageError: when a precision is unknown.
    """
    unknown = [p for p in precisions if p not in TOLERANCES]
    if unknown:
        raise UsageError(f"precision is {unknown[0]!r}; known are {', '.join(TOLERANCES)}")
    return max((TOLERANCES[p] for p in precisions), key=lambda t: t.absolute)

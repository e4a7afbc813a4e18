"""A time budget for streams: the threshold of the selection is moved so that the model holds a rate.

A higher threshold keeps fewer tokens, and fewer tokens cost less time; how much less differs from model to model and
from scene to scene, so nothing is assumed of it but the direction. The controller integrates: as long as the model
takes longer than the budget the logit of the threshold rises, as long as it has time to spare it falls. Times are
compared as logarithms, so that a machine ten times as fast is controlled in the same way, and smoothed over
``SETTLING`` seconds of the model's work, so that batches of any size are.

Nothing here knows a clock or a thread: whoever runs the model says how long it took.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from spt_deploy.config import check_threshold
from spt_deploy.errors import UsageError
from spt_deploy.runtimes.base import Runner

HIGHEST = 0.9  # default upper bound: of what is left, nearly all is sure to matter

SETTLING = 0.5  # seconds of the model's work over which its time is smoothed
AIM = 0.97  # of the budget: what is aimed at, so that noise does not make every second frame late
DEAD_BAND = 0.02  # of the logarithm of time; nearer than this to the aim nothing is moved
HELD = 0.95  # share of the target from which on it counts as held

_OUTLIER = 0.7  # of the logarithm: a batch that took longer than twice the usual counts as twice
_LARGEST_ERROR = 1.0
# Logits for each unit of error and SETTLING seconds. The response of the model is unknown, so the gain is found: it is
# halved whenever the error changes its sign, which is how an oscillation begins, and grows while an error stays for so
# long that no oscillation can be the cause of it.
_GAIN, _LEAST_GAIN, _LARGEST_GAIN = 2.0, 0.25, 8.0
_PATIENCE_S, _PATIENCE_BATCHES = 3 * SETTLING, 3


@dataclass(frozen=True)
class BudgetReport:
    """What came of a budget.

    Attributes:
        target_fps: frames a second that the model was to make.
        lowest: bound of the threshold; so ``highest``.
        highest: see ``lowest``.
        mean: threshold over all frames; None without frames; so ``least`` and ``largest``.
        least: see ``mean``.
        largest: see ``mean``.
        share_at_highest: frames that ran at the upper bound, of all.
        model_fps: frames a second that the model made, but for its first batch; None where there was no other.
        model_fps_at_end: the same, smoothed, when the stream ended.
    """

    target_fps: float
    lowest: float
    highest: float
    mean: float | None
    least: float | None
    largest: float | None
    share_at_highest: float
    model_fps: float | None
    model_fps_at_end: float | None

    @property
    def held(self) -> bool | None:
        """Whether the model made the target, but for a twentieth; None where that was not measured."""
        return None if self.model_fps is None else self.model_fps >= HELD * self.target_fps

    @property
    def verdict(self) -> str:
        """One sentence."""
        target = f"{_rate(self.target_fps)} frames/s"
        if self.model_fps is None or self.model_fps_at_end is None:
            return f"the stream was too short to say whether the model holds {target}"
        if self.held:
            thresholds = f"{self.least:.4g} to {self.largest:.4g}, mean {self.mean:.4g}"
            return f"{target} held: the model made {_rate(self.model_fps)} (threshold {thresholds})"
        if self.share_at_highest and self.model_fps_at_end < HELD * self.target_fps:
            return (
                f"no threshold up to {self.highest:g} holds {target}: the model made {_rate(self.model_fps_at_end)} at "
                "the end; a smaller model or input, or another --runtime, would help"
            )
        return (
            f"{target} not held: the model made {_rate(self.model_fps)} over the whole stream and "
            f"{_rate(self.model_fps_at_end)} at its end; a longer stream gives the threshold time to settle"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(self).items()}
        return values | {"held": self.held, "verdict": self.verdict}


class Budget:
    """Chooses the threshold of each batch from the time that earlier ones took.

    Args:
        target_fps: frames a second that the model shall make.
        lowest: threshold to begin with, and to return to whenever there is time for it, in (0, 1).
        highest: threshold that is never exceeded, in (0, 1).

    Raises:
        UsageError: when a number is out of range or the bounds are the wrong way round.
    """

    def __init__(self, target_fps: float, lowest: float, highest: float = HIGHEST) -> None:
        if not 0.0 < target_fps < math.inf:
            raise UsageError(f"target-fps is {target_fps:g}; expected a positive number of frames a second")
        if not 0.0 < lowest < highest < 1.0:
            raise UsageError(
                f"the threshold's range is {lowest:g} to {highest:g}; expected two numbers between 0 and 1, the lower "
                "one first, such as --threshold-range 0.01:0.9"
            )
        check_threshold(lowest)
        check_threshold(highest)
        self._target_fps = target_fps
        self._bounds = (lowest, highest)
        self._logits = (_logit(lowest), _logit(highest))
        self._aim = math.log(AIM / target_fps)  # of the time of a frame
        self._logit = self._logits[0]
        self._gain = _GAIN
        self._side = 0.0  # of the aim on which the time lay last: +1 is too slow
        self._steady = (0.0, 0)  # for how long it has lain there: seconds, batches
        self._smoothed: float | None = None  # logarithm of the time of a frame
        self._is_warm = False
        self._frames = self._measured_frames = self._frames_at_highest = 0
        self._seconds = self._sum = 0.0
        self._least, self._largest = math.inf, -math.inf

    @property
    def threshold(self) -> float:
        """Of the next batch, in [lowest, highest]."""
        if self._logit in self._logits:  # a bound exactly, whatever the logarithm made of it
            return self._bounds[self._logits.index(self._logit)]
        lowest, highest = self._bounds
        return max(lowest, min(highest, 1 / (1 + math.exp(-self._logit))))

    def observe(self, frames: int, seconds: float) -> None:
        """A batch has run at ``threshold``; the threshold of the next follows from it.

        Args:
            frames: in the batch, at least one.
            seconds: that the model took for it.
        """
        self._count(frames)
        if not self._is_warm:  # the first batch allocates, compiles and captures
            self._is_warm = True
            return
        self._measured_frames += frames
        self._seconds += seconds
        seconds = max(seconds, 1e-9)
        weight = 1 - math.exp(-seconds / SETTLING)
        measured = math.log(seconds / frames)
        if self._smoothed is None:
            self._smoothed = measured
        self._smoothed += weight * _clamp(measured - self._smoothed, _OUTLIER)
        self._move(self._smoothed - self._aim, seconds, weight)

    def report(self) -> BudgetReport:
        """What has come of it so far."""
        some = self._frames > 0
        return BudgetReport(
            target_fps=self._target_fps,
            lowest=self._bounds[0],
            highest=self._bounds[1],
            mean=self._sum / self._frames if some else None,
            least=self._least if some else None,
            largest=self._largest if some else None,
            share_at_highest=self._frames_at_highest / self._frames if some else 0.0,
            model_fps=self._measured_frames / self._seconds if self._seconds else None,
            model_fps_at_end=None if self._smoothed is None else math.exp(-self._smoothed),
        )

    def _count(self, frames: int) -> None:
        threshold = self.threshold
        self._frames += frames
        self._sum += frames * threshold
        self._frames_at_highest += frames * (threshold == self._bounds[1])
        self._least, self._largest = min(self._least, threshold), max(self._largest, threshold)

    def _move(self, error: float, seconds: float, weight: float) -> None:
        """Integrate the error, in logarithms of time; the integral is clamped, so that it cannot wind up."""
        if abs(error) <= DEAD_BAND:
            self._steady = (0.0, 0)
            return
        side = math.copysign(1.0, error)
        if side == -self._side:
            self._gain = max(_LEAST_GAIN, self._gain / 2)
            self._steady = (0.0, 0)
        self._side = side
        self._steady = (self._steady[0] + seconds, self._steady[1] + 1)
        if self._steady[0] > _PATIENCE_S and self._steady[1] > _PATIENCE_BATCHES:
            self._gain = min(_LARGEST_GAIN, self._gain * (1 + weight))
        self._logit += self._gain * weight * _clamp(error, _LARGEST_ERROR)
        lowest, highest = self._logits
        if not lowest < self._logit < highest:
            self._logit = max(lowest, min(highest, self._logit))
            self._gain, self._steady = _GAIN, (0.0, 0)  # there is nothing to be found out at a bound


def chosen_threshold(
    runner: Runner, threshold: float | None, target_fps: float | None, bounds: tuple[float, float] | None
) -> float | Budget | None:
    """What chooses the threshold of a stream: a fixed one, a budget, or nobody.

    Args:
        runner: of the model; it need not be open.
        threshold: fixed, in (0, 1); None for none.
        target_fps: of a `Budget`; None for none.
        bounds: of its threshold; from the model's own to ``HIGHEST`` if None.

    Raises:
        InputError: when the artefact takes no threshold at run time.
        UsageError: when a number is out of range, or one is given that another excludes.
    """
    if threshold is not None and target_fps is not None:
        raise UsageError("threshold and target-fps exclude each other: the one is fixed, the other moves it; give one")
    if bounds is not None and target_fps is None:
        raise UsageError("threshold-range bounds what target-fps moves; give --target-fps with it, or leave it out")
    if threshold is not None:
        runner.check_threshold(threshold)
    if target_fps is None:
        return threshold
    own = runner.facts.model.backbone.threshold
    if bounds is None and own >= HIGHEST:
        raise UsageError(
            f"the model's own threshold is {own:g}, and target-fps raises it to {HIGHEST:g} at most unless it is told "
            f"how far; give a range, such as --threshold-range {own:g}:{(1 + own) / 2:g}"
        )
    budget = Budget(target_fps, *(bounds or (own,)))
    runner.check_threshold(budget.threshold)
    return budget


def parse_threshold_range(text: str) -> tuple[float, float]:
    """``0.01:0.9`` as two numbers.

    Raises:
        UsageError: when it is none.
    """
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise UsageError(f"threshold-range is {text!r}; expected LOW:HIGH, such as 0.01:0.9") from error


def _rate(fps: float) -> str:
    return f"{fps:.0f}" if fps >= 1000 else f"{fps:.3g}"


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))

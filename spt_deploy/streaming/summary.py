"""What a stream came to: frames and failures counted, and the time of each stage."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from spt_deploy.streaming.budget import BudgetReport
from spt_deploy.streaming.frames import Failure

DECODE, PREPROCESS, MODEL, POSTPROCESS = "decode", "preprocess", "model", "postprocess"
DRAW, ENCODE, WRITE = "draw", "encode", "write"
STAGES = (DECODE, PREPROCESS, MODEL, POSTPROCESS, DRAW, ENCODE, WRITE)

# By the stage that sets the pace.
_HINTS = {
    DECODE: "smaller or less compressed frames, or --stride, would help",
    PREPROCESS: "frames nearer to the model's input size would help",
    MODEL: "another --runtime, a larger --batch, or an engine (spt-deploy build-engine) may help",
    POSTPROCESS: "a higher --conf would help",
    DRAW: "making less of the frames (--no-video, no --save-crops, no --show) would help",
    ENCODE: "making less of the frames (--no-video, no --save-crops, no --show) would help",
    WRITE: "a faster disk would help",
}


class Durations:
    """How long pieces of work took: their sum, and quantiles to a twentieth, in memory that does not grow.

    Args:
        workers: threads that do such work at a time.
    """

    _FINEST = 1e-6  # seconds; shorter ones count as this
    _PER_DECADE = 50
    _BINS = 8 * _PER_DECADE  # up to 100 s; longer ones count as that

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.total = 0.0
        self.pieces = 0
        self._lock = threading.Lock()
        self._counts = [0] * (self._BINS + 1)

    def add(self, seconds: float, pieces: int = 1) -> None:
        """``pieces`` took ``seconds`` together."""
        each = max(seconds / pieces, self._FINEST)
        index = min(self._BINS, int(math.log10(each / self._FINEST) * self._PER_DECADE))
        with self._lock:
            self.total += seconds
            self.pieces += pieces
            self._counts[index] += pieces

    def quantile(self, share: float) -> float:
        """Seconds that ``share`` of the pieces did not exceed; 0 without any."""
        passed = 0
        for index, count in enumerate(self._counts):
            passed += count
            if count and passed >= share * self.pieces:
                return float(self._FINEST * 10 ** ((index + 0.5) / self._PER_DECADE))
        return 0.0


class StageClock:
    """How long each stage is busy, in seconds of wall time.

    Args:
        workers: threads of a stage; 1 where it is not said.
    """

    def __init__(self, workers: Mapping[str, int] | None = None) -> None:
        self.stages = {name: Durations((workers or {}).get(name, 1)) for name in STAGES}
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str, frames: int = 1) -> Iterator[None]:
        """The block is work of that stage on so many frames."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start, frames)

    def add(self, name: str, seconds: float, frames: int = 1) -> None:
        """So many frames took that stage so many seconds together."""
        self.stages[name].add(seconds, frames)

    @property
    def wall(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start


@dataclass
class StreamSummary:
    """Counts and times of one run.

    Attributes:
        read: frames that the sources gave, dropped ones among them.
        inferred: frames that have an answer.
        dropped: frames of live sources that came faster than they could be answered; of files none ever is.
        gaps: times that a live source was lost and came back.
        failures: inputs that could not be read, or not to their end.
        stopped_by: number of the signal that ended it early.
        last: source and index of the last frame with an answer.
        wall_s: seconds from the first read to the last write.
        stages: how long each stage was at work, in all and by frame; they work at the same time.
        mean_select_ratio: over frames and SPA blocks; None without SPA blocks.
        resumed: frames that an earlier run had answered.
        overflowed: frames of which static packing had no room for some token.
        not_finite: frames whose answer is no number: see ``Prediction.is_finite``.
        follows_live: whether all sources are live, so that nothing can be faster than they are.
        budget: what came of a target rate; None without one.
    """

    read: int = 0
    inferred: int = 0
    dropped: int = 0
    gaps: int = 0
    failures: list[Failure] = field(default_factory=list)
    stopped_by: int | None = None
    last: tuple[str, int] | None = None
    wall_s: float = 0.0
    stages: dict[str, Durations] = field(default_factory=lambda: {name: Durations() for name in STAGES})
    mean_select_ratio: float | None = None
    resumed: int = 0
    overflowed: int = 0
    not_finite: int = 0
    follows_live: bool = False
    budget: BudgetReport | None = None

    @property
    def fps(self) -> float:
        """Frames a second, from the first read to the last write."""
        return self.inferred / self.wall_s if self.wall_s else 0.0

    @property
    def limiting_stage(self) -> str:
        """The stage that was busy for the largest share of the time."""
        return max(STAGES, key=self.utilisation)

    @property
    def hint(self) -> str:
        """What would make it faster."""
        if self.follows_live and not self.dropped:
            return "no frame was dropped: the source sets the pace"
        return _HINTS[self.limiting_stage]

    def utilisation(self, stage: str) -> float:
        """Share of the wall time that a stage was busy, of each of its threads where it has several."""
        taken = self.stages[stage]
        return taken.total / taken.workers / self.wall_s if self.wall_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times in seconds."""
        return {
            "frames": {
                "read": self.read,
                "inferred": self.inferred,
                "dropped": self.dropped,
                "failed": len(self.failures),
                "resumed": self.resumed,
                "overflowed": self.overflowed,
                "not_finite": self.not_finite,
            },
            "gaps": self.gaps,
            "fps": round(self.fps, 2),
            "wall_s": round(self.wall_s, 4),
            "stages": {
                stage: {
                    "busy_s": round(taken.total, 4),
                    "utilisation": round(self.utilisation(stage), 4),
                    "p50_ms": round(1e3 * taken.quantile(0.5), 3),
                    "p95_ms": round(1e3 * taken.quantile(0.95), 3),
                }
                for stage, taken in self.stages.items()
            },
            "limiting_stage": self.limiting_stage,
            "hint": self.hint,
            "mean_select_ratio": None if self.mean_select_ratio is None else round(self.mean_select_ratio, 4),
            "budget": None if self.budget is None else self.budget.to_dict(),
            "failures": [{"source": failure.source, "reason": failure.reason} for failure in self.failures],
            "stopped_by_signal": self.stopped_by,
        }

"""What a stream came to: frames and failures counted, and the time of each stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from spt_deploy.streaming.frames import Failure

DECODE, PREPROCESS, MODEL, POSTPROCESS = "decode", "preprocess", "model", "postprocess"
DRAW_ENCODE, WRITE = "draw_encode", "write"
STAGES = (DECODE, PREPROCESS, MODEL, POSTPROCESS, DRAW_ENCODE, WRITE)


class StageClock:
    """Adds up how long each stage is busy, in seconds of wall time."""

    def __init__(self) -> None:
        self.busy = dict.fromkeys(STAGES, 0.0)
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block is work of that stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.busy[name] += time.perf_counter() - start

    @property
    def wall(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start


@dataclass
class StreamSummary:
    """Counts and times of one run.

    Attributes:
        read: frames that the sources gave.
        inferred: frames that have an answer.
        dropped: frames that a live source had to leave out; files never drop one.
        failures: inputs that could not be read, or not to their end.
        stopped_by: number of the signal that ended it early.
        last: source and index of the last frame with an answer.
        wall_s: seconds from the first read to the last write.
        busy_s: seconds that each stage was at work.
        mean_select_ratio: over frames and SPA blocks; None without SPA blocks.
        overflowed: frames of which static packing had no room for some token.
    """

    read: int = 0
    inferred: int = 0
    dropped: int = 0
    failures: list[Failure] = field(default_factory=list)
    stopped_by: int | None = None
    last: tuple[str, int] | None = None
    wall_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    mean_select_ratio: float | None = None
    overflowed: int = 0

    @property
    def fps(self) -> float:
        """Frames a second, from the first read to the last write."""
        return self.inferred / self.wall_s if self.wall_s else 0.0

    @property
    def limiting_stage(self) -> str:
        """The stage that was busy longest."""
        return max(STAGES, key=lambda stage: self.busy_s[stage])

    def utilisation(self, stage: str) -> float:
        """Share of the wall time that a stage was busy."""
        return self.busy_s[stage] / self.wall_s if self.wall_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times in seconds."""
        return {
            "frames": {
                "read": self.read,
                "inferred": self.inferred,
                "dropped": self.dropped,
                "failed": len(self.failures),
                "overflowed": self.overflowed,
            },
            "fps": round(self.fps, 2),
            "wall_s": round(self.wall_s, 4),
            "stages": {
                stage: {"busy_s": round(self.busy_s[stage], 4), "utilisation": round(self.utilisation(stage), 4)}
                for stage in STAGES
            },
            "limiting_stage": self.limiting_stage,
            "mean_select_ratio": None if self.mean_select_ratio is None else round(self.mean_select_ratio, 4),
            "failures": [{"source": failure.source, "reason": failure.reason} for failure in self.failures],
            "stopped_by_signal": self.stopped_by,
        }

"""What infer writes down: a line of JSON a frame, and a summary; and what a writer of frames is.

Every file has a temporary name until it is kept: complete, or closed early on request, but always whole.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from spt_deploy.atomic import atomic_path, output_error
from spt_deploy.postprocess import Prediction
from spt_deploy.streaming.frames import Frame, Gap, Source
from spt_deploy.streaming.resume import PREDICTIONS, SUMMARY, Earlier

_CHUNK = 1 << 20  # bytes


class Draft:
    """A file in the making: ``path`` until ``keep`` gives it its name or ``drop`` removes it.

    Raises:
        OutputError: when its folder cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._file = atomic_path(target)
        self.path = self._file.__enter__()

    def keep(self) -> None:
        """Rename it to ``target``."""
        self._file.__exit__(None, None, None)

    def drop(self) -> None:
        """Remove it."""
        with suppress(_Dropped):
            self._file.__exit__(_Dropped, _Dropped(), None)


class _Dropped(Exception):  # noqa: N818 - no error: it tells atomic_path that the file is not wanted
    pass


class FrameWriter(Protocol):
    """Gets every frame with its answer, and makes something of it: what takes no order in any thread, then the rest."""

    def prepare(self, source: Source, frame: Frame, prediction: Prediction) -> Any:
        """What ``write`` needs of the picture; called by several threads at a time."""

    def write(self, source: Source, frame: Frame, prediction: Prediction, prepared: Any) -> None:
        """Take a frame of ``source``, in order; of its picture there is only what was prepared."""

    def end(self, source: Source) -> None:
        """No more frames of ``source`` come."""

    def keep(self) -> list[Path]:
        """Make whole what there is, and say which files that are."""

    def drop(self) -> None:
        """Remove what is not whole."""


class PredictionLog:
    """``predictions.jsonl``: one line a frame, on the disk as soon as it is written.

    Args:
        folder: to write in; made if need be.
        earlier: the run that is resumed, whose lines come first.

    Attributes:
        path: of the file until it gets its name.

    Raises:
        OutputError: when the file cannot be made.
    """

    def __init__(self, folder: Path, earlier: Earlier | None = None) -> None:
        self._draft = Draft(folder / PREDICTIONS)
        self.path = self._draft.path
        self._whole = 0  # bytes of lines that are on the disk from end to end
        try:
            self._file = self._draft.path.open("wb")
        except OSError as error:
            raise output_error(self._draft.target, error) from error
        try:
            if earlier and earlier.lines:
                self._copy(earlier.lines, earlier.whole)
        except OSError as error:
            self.drop()
            raise output_error(self._draft.target, error) from error

    def write(self, frame: Frame, prediction: Prediction, threshold: float | None = None) -> None:
        """Add the line of ``frame``.

        Args:
            frame: that was inferred.
            prediction: the answer.
            threshold: that its tokens were selected by; None, the model's own, is not written.

        Raises:
            OutputError: when it cannot be written.
        """
        line: dict[str, Any] = {
            "source": frame.source,
            "frame": frame.index,
            "time": None if frame.time is None else round(frame.time, 6),
            "size": list(frame.image.shape[:2]),
        }
        if frame.taken_at is not None:
            line["taken_at"] = datetime.fromtimestamp(frame.taken_at, timezone.utc).isoformat(timespec="milliseconds")
        line |= prediction.to_dict()
        if threshold is not None:
            line["threshold"] = float(f"{threshold:.4g}")
        self._add(line)

    def write_gap(self, gap: Gap) -> None:
        """Add a line that says from when on, how long and why a live source was away: it has ``gap``, no ``frame``.

        Raises:
            OutputError: when it cannot be written.
        """
        where = {"source": gap.source, "time": round(gap.time, 6)}
        self._add(where | {"gap": round(gap.seconds, 3), "before_frame": gap.index, "reason": gap.reason})

    def _add(self, line: dict[str, Any]) -> None:
        try:
            self._put(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise output_error(self._draft.target, error) from error

    def _copy(self, lines: Path, size: int) -> None:
        """So many bytes of a file."""
        with lines.open("rb") as file:
            while data := file.read(min(_CHUNK, size - self._whole)):
                self._file.write(data)
                self._whole += len(data)
        self._file.flush()

    def _put(self, text: str) -> None:
        # A file name need not be UTF-8; a byte that is not becomes \udc.., which JSON reads as it was.
        data = text.encode("utf-8", errors="backslashreplace")
        self._file.write(data)
        self._file.flush()
        self._whole += len(data)

    @property
    def is_empty(self) -> bool:
        """Whether there is no whole line yet."""
        return not self._whole

    def keep(self) -> list[Path]:
        """Close the file, give it its name, and say which that is."""
        try:
            self._file.close()
        except OSError as error:
            raise output_error(self._draft.target, error) from error
        self._draft.keep()
        return [self._draft.target]

    def rescue(self) -> list[Path]:
        """After an error, even a full disk: give the lines that are whole their name, and say which that is."""
        self._close()
        with suppress(OSError):
            os.truncate(self._draft.path, self._whole)
        self._draft.keep()
        return [self._draft.target]

    def drop(self) -> None:
        """Close the file and remove it."""
        self._close()
        self._draft.drop()

    def _close(self) -> None:
        with suppress(OSError):  # what did not fit on the disk does not fit now
            self._file.close()


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """``summary.json``, indented.

    Raises:
        OutputError: when it cannot be written.
    """
    path = folder / SUMMARY
    with atomic_path(path) as temporary:
        text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path

"""Going on where an earlier run was stopped or killed: what it wrote stays, nothing twice, nothing left out.

A run that is killed leaves its lines under a hidden name, each whole but perhaps the last. Beside them lies a note of
that name and of what the run was begun with, for answers of two models or thresholds do not belong into one file. When
the run is complete its summary says that.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spt_deploy.atomic import write_json
from spt_deploy.errors import UsageError

PREDICTIONS = "predictions.jsonl"
SUMMARY = "summary.json"
BEGUN = ".infer.json"  # hidden: it is gone when the run is complete
BEGUN_WITH = "begun_with"  # in the summary
_LINES = "lines"  # in the note


@dataclass(frozen=True)
class Begun:
    """What the answers of a run depend on, beside its sources.

    Attributes:
        model_sha256: of the model's file.
        conf: see ``Postprocessing``; so ``iou``.
        iou: see ``conf``.
        start: see ``Sampling``; so ``stride``.
        stride: see ``start``.
        threshold: of the selection, where one was given; so ``target_fps``.
        target_fps: see ``threshold``; so ``threshold_range``.
        threshold_range: see ``threshold``.
        precision: that the runtime was asked to compute in; None is the artefact's own.
    """

    model_sha256: str
    conf: float
    iou: float
    start: int
    stride: int
    threshold: float | None = None
    target_fps: float | None = None
    threshold_range: tuple[float, float] | None = None
    precision: str | None = None

    def note(self, lines: Path) -> None:
        """Write it down beside the file that the lines go to, with its name.

        Raises:
            OutputError: when it cannot be written.
        """
        write_json(lines.with_name(BEGUN), asdict(self) | {_LINES: lines.name})

    def check(self, folder: Path) -> None:
        """Whether the run in ``folder`` was begun with the same; one of an earlier version may not say.

        Raises:
            UsageError: when something differs.
        """
        before = _noted(folder) or _values_in(folder / SUMMARY).get(BEGUN_WITH)
        if not isinstance(before, dict) or not before:
            return
        now: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # as it was written: a pair is a list
        for name, value in now.items():
            if before.get(name) != value:
                what = f"{name} {_shown(before.get(name))}, not {_shown(value)}"
                if name == "model_sha256":
                    what = "another model"
                elif before.get(name) is None:
                    what = f"no {name}, not {_shown(value)}"
                elif value is None:
                    what = f"{name} {_shown(before[name])}, not without"
                raise UsageError(
                    f"the run in {folder} was begun with {what}; resume it with the same, or choose another --out"
                )


def files_named(folder: Path) -> list[Path]:
    """Results beside the summary in ``folder``, folders among them, that it names and that are still there."""
    files = _values_in(folder / SUMMARY).get("files")
    names = [Path(each).name for each in files if isinstance(each, str)] if isinstance(files, list) else []
    return [folder / name for name in names if name != SUMMARY and (folder / name).exists()]


def _noted(folder: Path) -> dict[str, Any]:
    """The note of a run that is not complete."""
    return _values_in(folder / BEGUN)


def _values_in(path: Path) -> dict[str, Any]:
    """A document's values; none where there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _shown(value: Any) -> str:
    """As the command line has it."""
    return ":".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Earlier:
    """What an earlier run left.

    Attributes:
        lines: file that holds its predictions; None where it has no line.
        whole: bytes of it, from the start on, that are whole lines.
        sized: whether each of them has the size of its frame.
        done: source and frame of each, and how often: a source may be named twice.
        leftovers: hidden files of runs that were killed; they may go once the lines are safe.
        files: its results beside the lines, as far as its summary tells.
    """

    lines: Path | None = None
    whole: int = 0
    sized: bool = True
    done: Mapping[tuple[str, int], int] = field(default_factory=dict)
    leftovers: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()

    def next_index(self, source: str) -> int:
        """The number after the last frame of a source that has an answer; 0 where none has."""
        return 1 + max((index for name, index in self.done if name == source), default=-1)

    def tidy(self) -> None:
        """Remove what killed runs left behind."""
        for path in self.leftovers:
            with suppress(OSError):
                path.unlink()


def earlier_run(folder: Path, resume: bool) -> Earlier:
    """What is in ``folder``; nothing where there is none. Lines under a hidden name count where the note names them.

    Args:
        folder: of the results.
        resume: go on with it; else only its leftovers are of interest, which nobody must take for the new run's.
    """
    stem, suffix = Path(PREDICTIONS).stem, Path(PREDICTIONS).suffix
    try:
        hidden = sorted(folder.glob(f".{stem}.*{suffix}"))
        other_formats = sorted(path for path in folder.glob(f".{stem}.*") if path not in hidden)
        # The first part of a run, and those that it was resumed for.
        videos = sorted([*folder.glob(".*annotated.*.mp4"), *folder.glob(".annotated-*.*.mp4")])
    except OSError:  # a name too long, say: who writes there tells why it cannot be
        return Earlier()
    leftovers = (*hidden, *other_formats, *videos)
    if not resume:
        return Earlier(leftovers=leftovers)
    named = _noted(folder).get(_LINES)  # gone where the run could still give its lines their name
    begun = next((path for path in hidden if path.name == named), folder / PREDICTIONS)
    whole, sized, done = _whole_lines(begun)
    files = tuple(files_named(folder)) if _is_summed_up(begun) else ()
    return Earlier(begun if whole else None, whole, sized, done, leftovers, files)


def _is_summed_up(lines: Path) -> bool:
    """Whether the summary beside the lines is theirs, not that of a run which theirs was to replace when it failed."""
    try:
        return lines.with_name(SUMMARY).stat().st_mtime_ns >= lines.stat().st_mtime_ns
    except OSError:
        return False


def _whole_lines(path: Path) -> tuple[int, bool, Counter[tuple[str, int]]]:
    """Of a file up to the first line that is not whole: the bytes, whether all have a size, and what they are of.

    The lines themselves are not held: those of a camera that ran for days may be larger than the memory.
    """
    whole, sized = 0, True
    done: Counter[tuple[str, int]] = Counter()
    with suppress(OSError), path.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line.decode("utf-8"))
                is_gap = "gap" in values
                key = None if is_gap else (sys.intern(str(values["source"])), int(values["frame"]))
            except (KeyError, TypeError, ValueError):
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            sized = sized and (is_gap or "size" in values)
            if key is not None:
                done[key] += 1
    return whole, sized, done

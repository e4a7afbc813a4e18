"""What a run was begun with: the same goes on, another is refused in words, and what cannot be read says nothing."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from spt_deploy.errors import UsageError
from spt_deploy.streaming.resume import BEGUN, PREDICTIONS, SUMMARY, Begun, earlier_run
from spt_deploy.streaming.writers import PredictionLog

BEFORE = Begun("ab", 0.25, 0.5, 0, 1, target_fps=30.0, threshold_range=(0.01, 0.5))


def test_the_same_goes_on(tmp_path: Path) -> None:
    BEFORE.note(tmp_path / PREDICTIONS)
    BEFORE.check(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_sha256": "cd"}, "begun with another model; resume it with the same, or choose another --out"),
        ({"conf": 0.5}, "begun with conf 0.25, not 0.5; "),
        ({"threshold_range": (0.01, 0.9)}, "begun with threshold_range 0.01:0.5, not 0.01:0.9; "),
        ({"threshold_range": None}, "begun with threshold_range 0.01:0.5, not without; "),
        ({"threshold": 0.3}, "begun with no threshold, not 0.3; "),
        ({"precision": "bf16"}, "begun with no precision, not bf16; "),
    ],
)
def test_another_is_refused_in_words(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    BEFORE.note(tmp_path / PREDICTIONS)
    with pytest.raises(UsageError) as caught:
        replace(BEFORE, **changes).check(tmp_path)
    assert sentence in str(caught.value)


def test_a_note_of_an_earlier_version_that_knew_less(tmp_path: Path) -> None:
    older = {"model_sha256": "ab", "conf": 0.25, "iou": 0.5, "start": 0, "stride": 1}
    (tmp_path / BEGUN).write_text(json.dumps(older), encoding="utf-8")
    replace(BEFORE, target_fps=None, threshold_range=None).check(tmp_path)


def test_a_run_that_is_complete_says_it_in_its_summary(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps({"begun_with": asdict(BEFORE)}), encoding="utf-8")
    BEFORE.check(tmp_path)
    with pytest.raises(UsageError, match=r"begun with conf 0\.25, not 0\.5"):
        replace(BEFORE, conf=0.5).check(tmp_path)
    replace(BEFORE, conf=0.5).note(tmp_path / PREDICTIONS)  # a run that replaces it and was killed goes before
    replace(BEFORE, conf=0.5).check(tmp_path)


def test_lines_under_a_hidden_name_count_where_the_note_names_them(tmp_path: Path) -> None:
    def write(name: str, frames: int) -> Path:
        path = tmp_path / name
        path.write_text("".join(f'{{"source": "{name}", "frame": {n}}}\n' for n in range(frames)), encoding="utf-8")
        return path

    write(PREDICTIONS, 5)
    BEFORE.note(write(".predictions.1-ab.jsonl", 2))
    write(".predictions.2-cd.jsonl", 9)
    assert earlier_run(tmp_path, resume=True).done == {(".predictions.1-ab.jsonl", n): 1 for n in range(2)}
    (tmp_path / ".predictions.1-ab.jsonl").replace(tmp_path / PREDICTIONS)
    earlier = earlier_run(tmp_path, resume=True)
    assert (earlier.lines, earlier.whole) == (tmp_path / PREDICTIONS, (tmp_path / PREDICTIONS).stat().st_size)
    assert not earlier.sized


@pytest.mark.parametrize(
    "end", [b"", b'{"source": "v", "fr', b'{"source": "v", "frame": 2}', b"\xff\n", b"[]\n", b"5\n"]
)
def test_lines_count_up_to_the_first_that_is_not_whole(end: bytes, tmp_path: Path) -> None:
    whole = b'{"source": "v", "frame": 0, "size": [1, 1]}\n{"source": "v", "gap": 1.0}\n'
    (tmp_path / PREDICTIONS).write_bytes(whole + end)
    earlier = earlier_run(tmp_path, resume=True)
    assert (earlier.whole, earlier.sized, earlier.done) == (len(whole), True, {("v", 0): 1})
    log = PredictionLog(tmp_path / "on", earlier)
    assert not log.is_empty
    (path,) = log.keep()
    assert path.read_bytes() == whole


def test_the_lines_of_a_run_that_is_resumed_are_not_held_in_memory(tmp_path: Path) -> None:
    """Those of a camera that ran for days may be larger than it."""
    with (tmp_path / PREDICTIONS).open("w", encoding="utf-8") as file:
        for number in range(300):
            file.write(json.dumps({"source": "v", "frame": number, "padding": "x" * 100_000}) + "\n")
    tracemalloc.start()
    try:
        log = PredictionLog(tmp_path / "on", earlier_run(tmp_path, resume=True))
        (path,) = log.keep()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 30_000_000
    assert peak < 5_000_000


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_note_says_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / BEGUN).write_bytes(data)
    BEFORE.check(tmp_path)


@pytest.mark.parametrize(("lines_are_later", "named"), [(False, ["annotated.mp4"]), (True, [])])
def test_a_summary_names_the_files_of_its_own_lines_only(
    tmp_path: Path, lines_are_later: bool, named: list[str]
) -> None:
    (tmp_path / PREDICTIONS).write_text('{"source": "v.mp4", "frame": 0}\n', encoding="utf-8")
    (tmp_path / "annotated.mp4").touch()
    files = [f"elsewhere/{name}" for name in (PREDICTIONS, "annotated.mp4", "gone.mp4", SUMMARY)]
    (tmp_path / SUMMARY).write_text(json.dumps({"files": files}), encoding="utf-8")
    os.utime(tmp_path / PREDICTIONS, ns=(0, (tmp_path / SUMMARY).stat().st_mtime_ns + lines_are_later))
    assert [path.name for path in earlier_run(tmp_path, resume=True).files if path.name != PREDICTIONS] == named

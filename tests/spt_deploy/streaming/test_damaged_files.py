"""Damaged images and videos through infer: each an answer or an error; and the tool that tries does find crashes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from tools.damaged_files import IMAGES, VIDEOS, Case, whole_files
from tools.fuzz_infer import OUTCOMES, fuzz, outcome


def test_damaged_files_are_an_answer_or_an_error_never_a_crash_or_a_wait() -> None:
    """A part of what tools/fuzz_infer.py tries; a crash of a decoder would end a child process and name the case."""
    found = fuzz(seed=26, numbers=range(400))
    assert found.wrong == []
    assert sum(found.outcomes.values()) == 400
    assert all(found.outcomes[name] > 5 for name in OUTCOMES)


def test_whole_files_of_every_kind_are_read(tmp_path: Path) -> None:
    images, videos = whole_files("images"), whole_files("videos")
    assert {"jpg", "png", "webp", "bmp", "tiff"} <= set(images) <= set(IMAGES)
    assert set(videos) == set(VIDEOS)
    for suffix, data in (images | videos).items():
        path = tmp_path / f"whole.{suffix}"
        path.write_bytes(data)
        expected = "refused" if suffix == "pfm" else "all read"
        assert outcome(path, tmp_path / f"out-{suffix}") == expected, suffix


def test_a_seed_and_a_number_make_the_same_file_again(tmp_path: Path) -> None:
    for number in range(20):
        first, again = (Case(3, number).write(tmp_path / name) for name in _folders(tmp_path))
        assert first.name == again.name
        assert first.read_bytes() == again.read_bytes()


def _folders(tmp_path: Path) -> list[str]:
    for name in ("first", "again"):
        (tmp_path / name).mkdir(exist_ok=True)
    return ["first", "again"]


def _ill(seed: int, numbers: Sequence[int], keep: Path | None, said: Connection, crash: Path) -> None:
    """A child whose case 1 crashes, 3 never ends and 4 is wrong."""
    for number in numbers:
        said.send(number)
        if number == 1:
            crash.write_text("where it was", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 3:
            time.sleep(600)
        said.send(("wrong" if number == 4 else "refused", 0.0))


def test_a_case_that_kills_its_process_or_never_ends_is_named_and_the_others_are_run() -> None:
    found = fuzz(seed=0, numbers=range(6), run=_ill, limit=3.0)
    assert found.wrong == ["case 1: the process died (-11)\nwhere it was", "case 3: no end after 3 s", "wrong"]
    assert found.outcomes == {"refused": 3}

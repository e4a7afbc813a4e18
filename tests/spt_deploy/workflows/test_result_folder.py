"""A folder for the results: named after the source, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spt_deploy.errors import OutputError, UsageError
from spt_deploy.workflows.result_folder import fresh_folder, only_run_in

pytestmark = pytest.mark.usefixtures("inside")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/street.mp4", "street"),
        ("photos", "photos"),
        ("photos/**/*.png", "photos"),
        ("*.png", "images"),
        (".", "images"),
        ("rtsp://host/" + "ä" * 300, "ä" * 60),
    ],
)
def test_the_folder_is_named_after_the_source(source: str, name: str) -> None:
    assert fresh_folder(source) == Path("runs/infer") / name


def test_those_who_ask_at_the_same_time_have_each_their_own(inside: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(fresh_folder, ["a/v.mp4"] * 40))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


def test_a_folder_that_cannot_be_made_is_said(inside: Path) -> None:
    (inside / "runs").touch()
    with pytest.raises(OutputError, match="runs/infer/v cannot be written: Not a directory"):
        fresh_folder("v.mp4")


def test_a_folder_is_one_runs_at_a_time_and_stays_if_there_is_something_in_it(inside: Path) -> None:
    out = Path("results/of/today")
    with only_run_in(out):
        with (
            pytest.raises(UsageError, match="another run writes its results to results/of/today; wait"),
            only_run_in(out),
        ):
            pass
        (out / "predictions.jsonl").touch()
    with only_run_in(out):
        pass
    assert [path.name for path in out.iterdir()] == ["predictions.jsonl"]


def test_folders_that_are_new_and_stay_empty_go_again_and_others_stay(inside: Path) -> None:
    Path("results").mkdir()
    with only_run_in(Path("results/of/today")):
        assert Path("results/of/today").is_dir()
    assert list(Path("results").iterdir()) == []
    with only_run_in(Path("results")):
        pass
    assert Path("results").is_dir()
    with only_run_in(fresh_folder("v.mp4"), is_fresh=True):
        pass
    assert not Path("runs").exists()


def test_a_process_that_is_killed_keeps_nobody_out(inside: Path) -> None:
    code = """
import time
from pathlib import Path
from spt_deploy.workflows.result_folder import only_run_in
with only_run_in(Path("out")):
    print("in", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(UsageError, match="another run"), only_run_in(Path("out")):
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait(30)
    with only_run_in(Path("out")):
        pass


def test_where_there_are_no_locks_nobody_is_kept_out(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with only_run_in(Path("out")), only_run_in(Path("out")):
        assert Path("out").is_dir()

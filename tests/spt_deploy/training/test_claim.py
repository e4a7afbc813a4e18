"""No two runs share a folder, and none leaves an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from spt_deploy.errors import OutputError, UsageError
from spt_deploy.training.claim import new_run_folder, only_run_in

_HOLDER = """
import sys
from pathlib import Path
from spt_deploy.training.claim import only_run_in
with only_run_in(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_that_begin_together_get_a_name_each(home: Path) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        names = [threads.submit(stack.enter_context, new_run_folder(Path("data"), "spt_t")) for _ in range(8)]
        folders = {future.result() for future in names}
        assert folders == {Path("runs/data-spt_t"), *(Path(f"runs/data-spt_t-{n}") for n in range(2, 9))}
        (home / "runs/data-spt_t-3/config.json").touch()
    assert [path.name for path in (home / "runs").iterdir()] == ["data-spt_t-3"]


def test_a_run_that_comes_to_nothing_leaves_nothing(home: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_run_folder(Path("data"), "spt_t"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), only_run_in(Path("a/b")):
        raise ZeroDivisionError
    assert list(home.iterdir()) == []


def test_data_named_by_its_file_gives_the_run_its_folders_name(home: Path) -> None:
    (home / "street").mkdir()
    (home / "street/data.yaml").touch()
    with new_run_folder(Path("street/data.yaml"), "spt_t") as folder:
        assert folder == Path("runs/street-spt_t")


def test_a_folder_of_the_users_stays_though_it_is_empty(home: Path) -> None:
    (home / "mine").mkdir()
    with only_run_in(Path("mine")):
        pass
    assert list((home / "mine").iterdir()) == []


def test_the_other_processes_of_a_run_make_no_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with new_run_folder(Path("data"), "spt_t") as folder:
        assert not folder.exists()


def test_a_live_run_keeps_others_out_and_a_killed_one_does_not(home: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, "run"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match="another run is training in run; wait until it ends, or choose another"):
            only_run_in(Path("run")).__enter__()
        holder.kill()
    with only_run_in(Path("run")):
        pass
    assert list((home / "run").iterdir()) == []


def test_a_place_that_takes_no_folder_is_named(home: Path) -> None:
    (home / "runs").touch()
    with pytest.raises(OutputError, match=r"runs/data-spt_t cannot be written"):
        new_run_folder(Path("data"), "spt_t").__enter__()
    with pytest.raises(OutputError, match="runs cannot be written"):
        only_run_in(Path("runs")).__enter__()

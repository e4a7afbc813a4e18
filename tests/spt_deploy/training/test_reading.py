"""Processes that read: no lock of the run stops them, none outlives it, and what goes wrong in one is said."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.utils.data
from torch import Tensor

from spt_deploy.errors import ResultError
from spt_deploy.training.reading import batches_of, reader

pytestmark = pytest.mark.timeout(60)

_LOCK = threading.Lock()


class Numbers(torch.utils.data.Dataset[Tensor]):
    """``count`` tensors of 1,000 elements, each its own place; ``effect`` comes first."""

    def __init__(self, effect: Callable[[int], None] = lambda place: None, count: int = 6) -> None:
        self.effect, self.count = effect, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Tensor:
        self.effect(place)
        return torch.full((1000,), place)


def nothing(place: int) -> None:
    pass


def lock(place: int) -> None:
    with _LOCK:
        pass


def end(place: int) -> None:
    if place == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def forbid_files(place: int) -> None:
    """Shared memory is a file; PyTorch's here has 2 x 1,000 elements of 8 bytes."""
    if place == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def stack(samples: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(samples))


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_pass_gives_every_batch_in_order(processes: int) -> None:
    loader = reader(Numbers(nothing), processes, stack, batch_size=2)
    for _ in range(2):
        assert [batch[:, 0].tolist() for batch in batches_of(loader)] == [[0, 1], [2, 3], [4, 5]]


def test_a_lock_that_a_thread_of_the_run_holds_does_not_stop_them() -> None:
    loader = reader(Numbers(lock), 2, stack, batch_size=2)
    with _LOCK:
        assert len(list(batches_of(loader))) == 3


def test_one_that_ends_is_an_error_that_says_what_to_do() -> None:
    loader = reader(Numbers(end), 2, stack, batch_size=2)
    with pytest.raises(ResultError, match=r"reads images has ended: .*--shm-size .*--workers 0 .*\(DataLoader worker"):
        list(batches_of(loader))


def test_one_that_ends_between_two_passes_is_told_likewise() -> None:
    loader = reader(Numbers(nothing), 2, stack, batch_size=2)
    list(batches_of(loader))
    end_readers(loader)
    with pytest.raises(ResultError, match=r"reads images has ended: .*--workers 0"):
        list(batches_of(loader))


def test_a_batch_of_one_that_has_ended_meanwhile_is_an_error_that_says_what_to_do() -> None:
    loader = reader(Numbers(nothing), 1, stack, batch_size=2)
    batches = batches_of(loader)
    next(batches)
    queue = loader._iterator._worker_result_queue  # type: ignore[union-attr]  # where the next batch waits
    assert queue._reader.poll(30)
    end_readers(loader)
    with pytest.raises(ResultError, match=r"cannot hand them over: .*--workers 0"):
        next(batches)


def test_a_batch_that_does_not_fit_in_shared_memory_is_an_error_that_says_what_to_do() -> None:
    batches = batches_of(reader(Numbers(forbid_files), 1, stack, batch_size=2))
    assert next(batches)[0, 0] == 0
    with pytest.raises(ResultError, match=r"cannot hand them over: .*--shm-size .*--workers 0 .*File too large"):
        next(batches)


def test_processes_that_cannot_be_started_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # what semaphores say of a full /dev/shm

    loader = reader(Numbers(nothing), 2, stack, batch_size=2)
    monkeypatch.setattr(type(loader), "_get_iterator", refuse)
    with pytest.raises(ResultError, match=r"cannot be started: .*--shm-size .*--workers 0 .*No space left"):
        next(batches_of(loader))


def test_an_error_in_reading_is_raised_as_it_is() -> None:
    loader = reader(Numbers([].index), 1, stack, batch_size=2)
    with pytest.raises(ValueError, match="not in list"):
        list(batches_of(loader))


SCRIPT = """
from spt_deploy.training.reading import batches_of, reader
from tests.spt_deploy.training.test_reading import Numbers, nothing, stack
loader = reader(Numbers(nothing), 2, stack, batch_size=2)
print(len(list(batches_of(loader))), *(worker.pid for worker in loader._iterator._workers), flush=True)
"""


@pytest.mark.parametrize("is_file", [True, False])
def test_a_script_needs_no_guard_and_no_file(tmp_path: Path, is_file: bool) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, script if is_file else "-"],
        input="" if is_file else SCRIPT,
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert run.stdout.startswith("3 ")
    assert run.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_as_the_server_starts_is_the_runs_to_answer(number: signal.Signals) -> None:
    script = f"""
import os, signal
from multiprocessing import util
start = util.spawnv_passfds
def start_and_signal(*arguments):
    process = start(*arguments)
    os.killpg(0, {int(number)})
    return process
util.spawnv_passfds = start_and_signal
signal.signal({int(number)}, lambda *_: print("answered"))
{SCRIPT}"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        start_new_session=True,
        check=True,
    )
    assert run.stdout.splitlines()[0] == "answered"
    assert run.stdout.splitlines()[-1].startswith("3 ")
    assert run.stderr == ""


def test_none_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    script = f"import os\n{SCRIPT}\nos.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    # Not a pipe: what outlives the run would hold that open, and the wait for its end would hide it.
    with (tmp_path / "said").open("w+") as said:
        killed = subprocess.run([sys.executable, "-c", script], stdout=said, env=environment(), check=False)
        said.seek(0)
        processes = [int(text) for text in said.read().split()[1:]]
    assert killed.returncode == -signal.SIGKILL
    assert len(processes) == 2
    end_by = time.monotonic() + 30
    while any(is_running(process) for process in processes):
        assert time.monotonic() < end_by, processes
        time.sleep(0.05)


def end_readers(loader: torch.utils.data.DataLoader[Tensor]) -> None:
    for process in loader._iterator._workers:  # type: ignore[union-attr]
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

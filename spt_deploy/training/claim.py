"""A folder is one run's at a time: a free name is claimed by making it, and a run that trains keeps others out.

The lock is the process's own (POSIX ``lockf``): the system lets go of it however the process ends, and no process that
reads images for it can hold on to it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from spt_deploy.atomic import make_folder, output_error
from spt_deploy.errors import UsageError
from spt_deploy.training.ranks import is_main_process

RUNS = Path("runs")
_LOCK = ".lock"


@contextmanager
def new_run_folder(data: Path, model: str) -> Iterator[Path]:
    """A free name under ``runs/``, made for the block: ``runs/DATA-MODEL``, or with ``-2``, ``-3`` behind it.

    What is still empty after the block is removed. Only the main process makes it: the others are told its name later.

    Raises:
        OutputError: when it cannot be made.
    """
    place = data.resolve()
    name = f"{(place.parent if place.is_file() else place).name or 'train'}-{model}"
    number, folder, absent = 1, RUNS / name, _absent(RUNS)
    if not is_main_process():
        yield folder
        return
    while not make_folder(folder):
        number += 1
        folder = RUNS / f"{name}-{number}"
    try:
        yield folder
    finally:
        _remove_empty(folder, *absent)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep every other process's run out of ``folder`` for the block; one made for it goes again if it stays empty.

    Raises:
        UsageError: when another run trains there.
        OutputError: when the folder cannot be written.
    """
    absent, path = _absent(folder), folder / _LOCK
    make_folder(folder)
    file = _open_locked(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is locked: who has opened it already finds that it is the folder's no longer
        file.close()
        _remove_empty(*absent)


def _open_locked(path: Path) -> IO[bytes]:
    while True:
        try:
            file = path.open("ab")
        except OSError as error:
            raise output_error(path.parent, error) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UsageError(
                f"another run is training in {path.parent}; wait until it ends, or choose another --out"
            ) from error
        except OSError:
            return file  # a file system without locks keeps nobody out
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the run that held it has just ended


def _absent(folder: Path) -> list[Path]:
    """Of a folder and those above it the ones that are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(*folders: Path) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()

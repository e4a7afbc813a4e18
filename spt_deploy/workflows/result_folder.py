"""The folder for the results of a run: one of its own where it names none, and nobody else's while it runs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spt_deploy.atomic import make_folder, output_error
from spt_deploy.errors import UsageError
from spt_deploy.streaming.source_names import shortened
from spt_deploy.workflows.artefacts import RUNS


def fresh_folder(source: str) -> Path:
    """``runs/infer/NAME`` after a source, or ``NAME-2`` and so on where that is taken; made, for this run alone.

    Raises:
        OutputError: when it cannot be made.
    """
    path = Path(f"camera-{source}" if source.isdecimal() else source)
    fixed = [part for part in path.parts if not glob.has_magic(part)] if not path.exists() else list(path.parts)
    name = shortened(Path(fixed[-1]).stem) if fixed else ""
    base = RUNS / "infer" / (name.strip("./") or "images")
    folder, number = base, 2
    while not make_folder(folder):
        folder = base.with_name(f"{base.name}-{number}")
        number += 1
    return folder


@contextmanager
def only_run_in(folder: Path, is_fresh: bool = False) -> Iterator[None]:
    """Make a folder and keep other runs out of it for the block; what is new and stays empty is removed again.

    The lock is on the folder itself (BSD ``flock``): there is no file to leave behind, and the system lets go of it
    however the process ends. Where there are no such locks, as on some network drives, nobody is kept out.

    Args:
        folder: of the results.
        is_fresh: whether it was made for this run, and with it perhaps those above it.

    Raises:
        OutputError: when it cannot be made.
        UsageError: when another run writes there.
    """
    try:
        new = [each for each in (folder, *folder.parents) if is_fresh or not each.exists()]
    except OSError as error:  # a name too long, a folder that may not be entered
        raise output_error(folder, error) from error
    make_folder(folder)
    lock = _locked(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty: files that were written are whole, and stay, and so do other runs
            for each in new:
                each.rmdir()
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A handle that keeps others out until it is closed; None where that cannot be."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # no POSIX; a folder that may be written and not read
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UsageError(
            f"another run writes its results to {folder}; wait until it ends, or choose another --out"
        ) from error
    except OSError:
        pass
    return handle

"""The folder of a new data set: images put in place by all cores, whole or not there at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from spt_deploy.atomic import output_error
from spt_deploy.errors import OutputError, SourceError
from spt_deploy.runtimes.base import usable_cores
from spt_deploy.training.report import Reports

_CHUNK = 256  # jobs given to the threads at once: what an interruption waits for

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def check_new(out: Path, source: Path) -> None:
    """Whether ``out`` can be made from the data set in the folder ``source``.

    Raises:
        OutputError: when it is there and not empty, or lies in ``source``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is there already; choose another folder, or remove it")
    if source.resolve() in out.resolve().parents:
        raise OutputError(f"{out} lies in {source}, which is only read; choose a folder beside it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` for the block to fill: ``out`` when the block has succeeded, else removed.

    Raises:
        OutputError: when it cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.is_dir():
            out.rmdir()  # an empty one
        temporary.replace(out)
    except OSError as error:
        raise output_error(error.filename2 or error.filename or out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def place_images(
    place: Callable[[Path, Path], None], jobs: list[tuple[Path, Path]], reports: Reports
) -> dict[Path, SourceError]:
    """Put each image where it goes; what could not be read, with the reason."""

    def do(job: tuple[Path, Path]) -> SourceError | None:
        try:
            place(*job)
        except SourceError as error:
            return error
        return None

    errors: dict[Path, SourceError] = {}
    with reports.progress("images", len(jobs)) as progress:
        for done, ((path, _), error) in enumerate(zip(jobs, in_threads(do, jobs), strict=True), start=1):
            if error is not None:
                reports.say(f"left out: {error}")
                errors[path] = error
            progress.update(done)
    return errors


def in_threads(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """``map`` on all cores, in order: OpenCV and the disk work without Python's lock."""
    rest = list(items)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(rest), _CHUNK):
            yield from pool.map(function, rest[start : start + _CHUNK])

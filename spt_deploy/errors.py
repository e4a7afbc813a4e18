"""Every error this toolkit raises on purpose, each with the exit code the command line gives it.

A message is one sentence that names the bad value, says what was expected, and what to do.

    SptError                     1   (never raised itself)
    ├── ResultError              1   the job ran and its result is bad
    ├── UsageError               2   an argument that cannot be meant
    ├── InputError               2   a file, folder or array that cannot be used
    │   ├── ArtefactError        2   a checkpoint, ONNX file or engine that cannot be used
    │   └── SourceError          2   an image, folder or video that cannot be read
    ├── OutputError              2   a file that cannot be written
    └── RuntimeMissingError      3   a runtime, device or package that is not there
"""

from __future__ import annotations

from pathlib import Path


class SptError(Exception):
    """Base of all errors of spt-deploy; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ResultError(SptError):
    """The job ran to its end and its result is bad (parity failed, some inputs were unreadable)."""


class UsageError(SptError):
    """An argument has a value that cannot be meant."""

    exit_code = 2


class InputError(SptError):
    """A file, folder or array that was given cannot be used."""

    exit_code = 2


class ArtefactError(InputError):
    """A checkpoint, ONNX file or engine cannot be used."""


class SourceError(InputError):
    """An image, folder, glob or video cannot be read."""


class OutputError(SptError):
    """A result cannot be written (disk full, no permission)."""

    exit_code = 2


class RuntimeMissingError(SptError):
    """A runtime, device or package that the job needs is not on this machine."""

    exit_code = 3


def no_folder(path: Path) -> str:
    """How a message begins that is about a path which is no folder."""
    return f"{path} is a file and no folder" if path.is_file() else f"there is no folder {path}"


def add_note(error: BaseException, sentence: str) -> None:
    """Have the command line print a sentence below the error's own; tracebacks show it from Python 3.11 on."""
    error.__notes__ = [*notes_of(error), sentence]  # type: ignore[attr-defined]


def notes_of(error: BaseException) -> list[str]:
    """The sentences that were added."""
    return list(getattr(error, "__notes__", ()))

"""Files that are there whole or not at all: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spt_deploy.errors import OutputError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Below this a failed write is put down to the disk: native writers fill it to the last few blocks before they give up.
_FULL_BELOW_BYTES = 1 << 20
_TOKEN = 4  # random bytes of a temporary name
_STEM = 40  # letters of a name that its temporary name repeats: four bytes each and what is added stay below 255


def output_error(path: Path | str, error: OSError) -> OutputError:
    """One sentence for a failed write of ``path``, to be raised in place of ``error``."""
    if error.errno in DISK_FULL:
        return _disk_full(path)
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return OutputError(f"{path} cannot be written: {reason}; choose a place that you may write to")
    return OutputError(f"{path} cannot be written: {reason}; choose another place")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary name for the block to write to: ``path`` once the block has succeeded, removed when it fails.

    The name is hidden, lies in the same folder (made if need be) and keeps the suffix, by which many writers
    choose their format. An existing ``path`` stays as it is until the new file is complete.

    Raises:
        OutputError: when the disk is full, the folder may not be written, or ``path`` is a folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[-_STEM:]}.{os.getpid()}-{secrets.token_hex(_TOKEN)}{path.suffix}")
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if _is_about(error, temporary):
            raise output_error(path, error) from error
        raise
    except RuntimeError as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        if path.parent.is_dir() and shutil.disk_usage(path.parent).free < _FULL_BELOW_BYTES:
            raise _disk_full(path) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote ``path`` have left; nobody may be writing it now."""
    name = re.compile(rf"\.{re.escape(path.stem[-_STEM:])}\.\d+-[0-9a-f]{{{2 * _TOKEN}}}{re.escape(path.suffix)}")
    with suppress(OSError):
        for other in path.parent.iterdir():
            if name.fullmatch(other.name):
                other.unlink()


def make_folder(path: Path) -> bool:
    """Make a folder and those above it; False where there is something of that name already.

    Of two processes that make the same one only one hears True.

    Raises:
        OutputError: when it cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise output_error(path, error) from error
    return True


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8.

    Raises:
        OutputError: see ``atomic_path``.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON; NaN and infinities, which JSON has no word for, become null.

    Raises:
        OutputError: see ``atomic_path``.
    """
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A plain value with None in place of NaN and infinities, for which JSON has no word."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _disk_full(path: Path | str) -> OutputError:
    return OutputError(f"disk full while writing {path}; free some space and run the command again")


def _is_about(error: OSError, temporary: Path) -> bool:
    """Whether the write failed, and not something that the block read: a full disk, or an error about our folder."""
    if error.errno in DISK_FULL or error.filename is None:
        return True
    return Path(os.fsdecode(error.filename)).parent == temporary.parent or not temporary.parent.is_dir()

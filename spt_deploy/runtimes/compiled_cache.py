"""Models as OpenVINO compiled them, kept for the next time: compiling takes seconds, reading takes a tenth.

They lie in the user's cache folder; the oldest go when there are many. OpenVINO ends the process over a damaged one, so
that each begins with the hash of the rest.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from spt_deploy.digest import sha256_of
from spt_deploy.engine.caches import cache_folder, read_cache, write_cache
from spt_deploy.errors import OutputError

_HASH = hashlib.sha256().digest_size
MOST_FILES = 12  # each about as large as its model


def compiled_path(artefact: Path, version: str, processor: str, options: dict[str, object]) -> Path:
    """Where the compiled form of an artefact is kept: another file, library, processor or option is another place.

    Args:
        artefact: the exported file, known by what is in it: two exports of one architecture have one size.
        version: of OpenVINO.
        processor: its full name.
        options: that it is compiled with.
    """
    what = (sha256_of(artefact), version, processor, sorted(options.items()))
    return _folder() / f"{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.blob"


def read_compiled(path: Path) -> bytes:
    """What is kept there; nothing where nothing is, it may not be read, or it is damaged."""
    data = read_cache(path)
    compiled = data[_HASH:]
    if not compiled or hashlib.sha256(compiled).digest() != data[:_HASH]:
        return b""
    with suppress(OSError):
        path.touch()  # it was of use: others are older now
    return compiled


def keep_compiled(path: Path, data: bytes) -> None:
    """Keep it, where that is possible, in place of the oldest."""
    with suppress(OutputError, OSError):
        write_cache(path, hashlib.sha256(data).digest() + data)
        kept = sorted(_folder().glob("*.blob"), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in kept[MOST_FILES:]:
            old.unlink()


def _folder() -> Path:
    return cache_folder() / "openvino"

"""What files that are made of frames are called: no two sources share a name, and a run that is resumed finds them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from spt_deploy.streaming.frames import Frame, ImageSource, Source

_LONGEST_NAME = 120  # bytes; file systems take 255, and numbers and a temporary name's end follow
_NO_NAME = re.compile(r"[^\w\-. ()+]")  # \w: letters and digits of any alphabet, and the underscore


class SourceNames:
    """A name for the frames of each source: its stem, below the folders that not all images have in common.

    Of videos of one stem the second gets ``-2`` and so on; images of one stem in one folder keep their suffixes.

    Args:
        sources: all that will come.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._root = common_root(sources)
        self._stems: dict[Source, str] = {}
        owners: dict[str, Path | None] = {}  # None: a video
        for source in sources:
            if not isinstance(source, ImageSource):
                self._stems[source] = _unused(safe_name(Path(source.name).stem), owners)
                owners[self._stems[source].casefold()] = None
        shared = set()
        for source in sources:
            for picture in source.paths if isinstance(source, ImageSource) else ():
                name = self._path(picture, picture.stem)
                if owners.setdefault(str(name).casefold(), picture) != picture:
                    shared.add(str(name).casefold())
        self._shared = frozenset(shared)

    def of(self, source: Source, frame: Frame) -> Path:
        """Relative, without a suffix."""
        if source in self._stems:
            return Path(self._stems[source])
        picture = Path(frame.source)
        name = self._path(picture, picture.stem)
        return self._path(picture, picture.name) if str(name).casefold() in self._shared else name

    def _path(self, picture: Path, name: str) -> Path:
        return Path(*map(safe_name, below(self._root, picture).parent.parts), safe_name(name))


def common_root(sources: Sequence[Source]) -> Path:
    """The folder that all images lie in; empty without images."""
    roots = [source.root.absolute() for source in sources if isinstance(source, ImageSource)]
    return Path(os.path.commonpath(roots)) if roots else Path()


def below(root: Path, picture: Path) -> Path:
    """The path of a picture from the common root on."""
    inside = picture.absolute().parts[len(root.parts) :]  # not relative_to, to which //data lies not in /data
    return Path(*(part for part in inside if part != ".."))  # a glob may climb; what we write may not


def safe_name(name: str) -> str:
    """``name`` as that of a file anywhere, with underscores for what may not be in one; never empty, never hidden."""
    return shortened(_NO_NAME.sub("_", name)).strip(" .") or "_"


def shortened(name: str) -> str:
    """``name``, or its beginning where a file system, with what is to follow it, might not take it all."""
    data = name.encode(errors="surrogateescape")
    return name if len(data) <= _LONGEST_NAME else data[:_LONGEST_NAME].decode(errors="ignore")


def _unused(stem: str, taken: dict[str, Path | None]) -> str:
    candidate, number = stem, 2
    while candidate.casefold() in taken:
        candidate = f"{stem}-{number}"
        number += 1
    return candidate

"""From what a user names to sources: images, folders, globs, videos, lists of such, cameras, addresses, a pipe."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from spt_deploy.errors import SourceError, UsageError
from spt_deploy.images import find_images, is_image_name, read_image
from spt_deploy.runtimes.registry import MODEL_SUFFIXES
from spt_deploy.streaming.annotations import ANNOTATED_IMAGES
from spt_deploy.streaming.crops import CROPS
from spt_deploy.streaming.frames import Failure, Frame, ImageSource, Sampling, Source
from spt_deploy.streaming.live import RECONNECT, Camera
from spt_deploy.streaming.network import NetworkStream, is_url, without_password
from spt_deploy.streaming.resume import BEGUN, PREDICTIONS
from spt_deploy.streaming.standard_input import StandardInput
from spt_deploy.streaming.video import VideoFile

_ANY_DEPTH = re.compile(r"(?:^|(?<=/))\*\*(?:/+|$)")  # ** as the whole name of a folder


def quieten_decoders() -> None:
    """What FFmpeg, x264 and OpenCV print on stderr is for their developers; we learn of errors without it."""
    import av.logging
    import cv2

    av.logging.set_libav_level(av.logging.PANIC)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Images(ImageSource):
    """Image files, one after the other.

    Args:
        name: as the user named them.
        paths: of the files, in order.
        root: folder that all of them lie in.
    """

    def __init__(self, name: str, paths: Sequence[Path], root: Path) -> None:
        super().__init__(name)
        self.paths = paths
        self.root = root

    def total(self) -> int:
        return len(self.paths)

    def frames(self, sampling: Sampling) -> Iterator[Frame | Failure]:
        """Each image as frame 0 of itself; a Failure in the place of one that cannot be read."""
        for number, path in enumerate(self.paths):
            if not sampling.takes(number):
                continue
            try:
                yield Frame(str(path), 0, None, read_image(path))
            except SourceError as error:
                yield Failure(str(path), str(error))


class Unreadable(Source):
    """What is there and cannot be read, such as a file that is neither an image nor a video.

    It fails in its turn, after the good ones before it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = reason

    def total(self) -> int:
        return 0

    def frames(self, sampling: Sampling) -> Iterator[Frame | Failure]:
        yield Failure(self.name, self.reason)


def open_sources(
    names: Sequence[str | Path], reconnect: float = RECONNECT, raw: tuple[int, int] | None = None
) -> list[Source]:
    """The sources that ``names`` mean, in their order.

    A folder means the images in it and in the folders below, sorted by path, without those that an earlier run wrote; a
    glob (``*``, ``?``, ``[...]``, ``**`` for folders at any depth, links to folders left out) means its matches,
    sorted, the images among them being one source; a text file (``.txt``) means what its lines name, relative to its
    folder; a number means that camera; an address (``rtsp://``, ``http://`` and so on) the stream there; ``-`` what is
    written into standard input. What is there and cannot be read becomes a source that yields a Failure, so that one
    bad file does not stop the others.

    Args:
        names: as the user gives them.
        reconnect: see `live.LiveSource`.
        raw: see `network.StandardInput`.

    Raises:
        SourceError: when a name means nothing that is there, a folder without images, a model, or standard input that
            is closed.
        UsageError: when ``reconnect`` is below 0, or standard input is named twice.
    """
    sources: list[Source] = []
    for name in names:
        if str(name) == "-":
            if sys.stdin is None:  # closed, as by `<&-`
                raise SourceError("standard input is closed, and a source is -; connect it to what gives the frames")
            sources.append(StandardInput(sys.stdin.buffer, raw))
            continue
        if is_url(str(name)):
            sources.append(NetworkStream(str(name), reconnect))
            continue
        path = Path(name)
        _look_up(path)
        if path.is_dir():
            sources += _folder(str(name), path)
        elif path.is_char_device():
            sources.append(Camera(str(name), reconnect))
        elif path.exists() and path.suffix.lower() == ".txt":
            sources += _listed(path, reconnect, raw)
        elif path.exists() and path.suffix in MODEL_SUFFIXES:
            raise SourceError(f"{path} is a model by its name, and no source; give it with --model {path}")
        elif path.exists():
            sources.append(_file(path))
        elif str(name).isdecimal():
            sources.append(Camera(int(str(name)), reconnect))
        elif glob.has_magic(str(name)):
            sources += _matches(str(name))
        else:
            raise SourceError(
                f"there is no file or folder {without_password(str(name))}; name an image, a folder, a glob, a video "
                "file, a list of such (.txt), a camera by its number, an address such as rtsp://, or - for standard "
                "input"
            )
    if sum(isinstance(source, StandardInput) for source in sources) > 1:
        raise UsageError("standard input is named more than once; name - once, for what was read from it is gone")
    return sources


def _look_up(path: Path) -> None:
    """Whether it can be told that there is, or is not, such a file."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with a zero byte is a ValueError
        return
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}") from error


def _folder(name: str, path: Path) -> list[Source]:
    locked: list[OSError] = []
    try:
        images = Images(name, find_images(path, locked, _is_written_by_a_run), path)
    except SourceError as error:
        if error.__cause__ is not None:  # a folder that may not be read
            raise
        raise SourceError(f"{error}; videos are named by themselves, or by a glob such as '{path}/*.mp4'") from error
    return [
        images,
        *(Unreadable(str(e.filename), f"folder {e.filename} cannot be read: {e.strerror}") for e in locked),
    ]


def _is_written_by_a_run(folder: Path) -> bool:
    is_run = any((folder.parent / name).exists() for name in (PREDICTIONS, BEGUN))
    return is_run and folder.name in (ANNOTATED_IMAGES, CROPS)


def _listed(path: Path, reconnect: float, raw: tuple[int, int] | None) -> list[Source]:
    """What the lines of a text file name; images that follow each other are one source."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # Windows' editors mark it
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise SourceError(f"{path} names no source; expected a path or an address in each line")
    sources: list[Source] = []
    images: list[Path] = []

    def together() -> None:
        if images:
            # Absolute, for a list may hold names of both kinds.
            root = Path(os.path.commonpath([each.parent.absolute() for each in images]))
            sources.append(Images(str(path), tuple(images), root))
            images.clear()

    for name in names:
        if "\0" in name:
            raise SourceError(f"{path} is no list of sources: it holds bytes that no name has")
        inside = path.parent / name
        if inside.suffix.lower() == ".txt":
            raise SourceError(f"{path} names the list {name}; a list may not name lists")
        with suppress(OSError):  # a name too long: said below
            if inside.is_file() and is_image_name(inside):
                images.append(inside)
                continue
            if glob.has_magic(name) and not inside.exists():
                inside = Path(glob.escape(str(path.parent)), name)
        together()
        is_path = not (is_url(name) or name.isdecimal() or name == "-")
        try:
            sources += open_sources([inside if is_path else name], reconnect, raw)
        except SourceError as error:
            raise SourceError(f"{path} names {without_password(name)!r}: {error}") from error
    together()
    return sources


def _matches(pattern: str) -> list[Source]:
    paths = [path for path in sorted(set(map(Path, _expanded(pattern))), key=str) if path.is_file()]
    if not paths:
        raise SourceError(f"no file matches {pattern}; quote a glob, so that the shell leaves it alone")
    images = [path for path in paths if is_image_name(path)]
    sources: list[Source] = [_file(path) for path in paths if not is_image_name(path)]
    if images:
        sources.insert(0, Images(pattern, images, _root(pattern)))
    return sources


def _expanded(pattern: str) -> Iterator[str]:
    """What a pattern matches, perhaps twice; ``**`` goes through no link, which may lead back up."""
    before, *rest = _ANY_DEPTH.split(pattern, maxsplit=1)
    if not rest:
        yield from glob.glob(pattern)  # noqa: PTH207 - Path.glob takes no absolute pattern, as users write
        return
    for base in glob.glob(before) if before else [""]:  # noqa: PTH207
        for parent, folders, _ in os.walk(base or "."):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _expanded(os.path.join(glob.escape(parent), rest[0] or "*"))  # noqa: PTH118 - after text


def _root(pattern: str) -> Path:
    """The folder above the first wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _file(path: Path) -> Source:
    import cv2

    if is_image_name(path):
        return Images(str(path), [path], path.parent)
    if not path.is_file():  # it would be opened twice, and what was read the first time is gone
        reason = "is no regular file; write what a pipe holds into standard input, and name that -"
        return Unreadable(str(path), f"{path} {reason}")
    try:
        return VideoFile(path)
    except SourceError as error:
        # An image under another name; bytes, for a str that is not UTF-8 crashes it.
        if cv2.haveImageReader(os.fsencode(path)):  # type: ignore[arg-type]
            return Images(str(path), [path], path.parent)
        return Unreadable(str(path), str(error))

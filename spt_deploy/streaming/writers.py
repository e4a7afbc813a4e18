"""What infer leaves behind: a line of JSON a frame, and the frames with their answers drawn on them.

Every file has a temporary name until it is kept: complete, or closed early on request, but always whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from spt_deploy.atomic import atomic_path, output_error
from spt_deploy.errors import OutputError
from spt_deploy.facts import ModelFacts
from spt_deploy.images import IMAGE_SUFFIXES
from spt_deploy.postprocess import Prediction
from spt_deploy.streaming.encoder import VideoEncoder
from spt_deploy.streaming.frames import Frame, Gap, Image, ImageSource, Source, VideoSource
from spt_deploy.streaming.overlay import Drawing
from spt_deploy.streaming.resume import PREDICTIONS

SUMMARY = "summary.json"
ANNOTATED_VIDEO = "annotated.mp4"
ANNOTATED_IMAGES = "annotated"  # a folder

_LONGEST_NAME = 255  # bytes, of nearly every file system
_JPEG_QUALITY = 92  # artefacts invisible, at half the size of 98


class Draft:
    """A file in the making: ``path`` until ``keep`` gives it its name or ``drop`` removes it.

    Raises:
        OutputError: when its folder cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._file = atomic_path(target)
        self.path = self._file.__enter__()

    def keep(self) -> None:
        """Rename it to ``target``."""
        self._file.__exit__(None, None, None)

    def drop(self) -> None:
        """Remove it."""
        with suppress(_Dropped):
            self._file.__exit__(_Dropped, _Dropped(), None)


class _Dropped(Exception):  # noqa: N818 - no error: it tells atomic_path that the file is not wanted
    pass


class FrameWriter(Protocol):
    """Gets every frame with its answer, in one thread, and makes something of it."""

    def write(self, source: Source, frame: Frame, prediction: Prediction) -> None:
        """Take a frame of ``source``."""

    def end(self, source: Source) -> None:
        """No more frames of ``source`` come."""

    def keep(self) -> list[Path]:
        """Make whole what there is, and say which files that are."""

    def drop(self) -> None:
        """Remove what is not whole."""


class PredictionLog:
    """``predictions.jsonl``: one line a frame, on the disk as soon as it is written.

    Args:
        folder: to write in; made if need be.
        earlier: lines of a run that is resumed, which come first.

    Raises:
        OutputError: when the file cannot be made.
    """

    def __init__(self, folder: Path, earlier: Sequence[str] = ()) -> None:
        self._draft = Draft(folder / PREDICTIONS)
        self._whole = 0  # bytes of lines that are on the disk from end to end
        try:
            self._file = self._draft.path.open("wb")
        except OSError as error:
            raise output_error(self._draft.target, error) from error
        try:
            self._put("".join(earlier))
        except OSError as error:
            self.drop()
            raise output_error(self._draft.target, error) from error

    def write(self, frame: Frame, prediction: Prediction, threshold: float | None = None) -> None:
        """Add the line of ``frame``.

        Args:
            frame: that was inferred.
            prediction: the answer.
            threshold: that its tokens were selected by; None, the model's own, is not written.

        Raises:
            OutputError: when it cannot be written.
        """
        line: dict[str, Any] = {
            "source": frame.source,
            "frame": frame.index,
            "time": None if frame.time is None else round(frame.time, 6),
            "size": list(frame.image.shape[:2]),
        }
        if frame.taken_at is not None:
            line["taken_at"] = datetime.fromtimestamp(frame.taken_at, timezone.utc).isoformat(timespec="milliseconds")
        line |= prediction.to_dict()
        if threshold is not None:
            line["threshold"] = float(f"{threshold:.4g}")
        self._add(line)

    def write_gap(self, gap: Gap) -> None:
        """Add a line that says from when on, how long and why a live source was away: it has ``gap``, no ``frame``.

        Raises:
            OutputError: when it cannot be written.
        """
        where = {"source": gap.source, "time": round(gap.time, 6)}
        self._add(where | {"gap": round(gap.seconds, 3), "before_frame": gap.index, "reason": gap.reason})

    def _add(self, line: dict[str, Any]) -> None:
        try:
            self._put(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise output_error(self._draft.target, error) from error

    def _put(self, text: str) -> None:
        # A file name need not be UTF-8; a byte that is not becomes \udc.., which JSON reads as it was.
        data = text.encode("utf-8", errors="backslashreplace")
        self._file.write(data)
        self._file.flush()
        self._whole += len(data)

    def keep(self) -> list[Path]:
        """Close the file, give it its name, and say which that is."""
        try:
            self._file.close()
        except OSError as error:
            raise output_error(self._draft.target, error) from error
        self._draft.keep()
        return [self._draft.target]

    def rescue(self) -> list[Path]:
        """After an error, even a full disk: give the lines that are whole their name, and say which that is."""
        self._close()
        with suppress(OSError):
            os.truncate(self._draft.path, self._whole)
        self._draft.keep()
        return [self._draft.target]

    def drop(self) -> None:
        """Close the file and remove it."""
        self._close()
        self._draft.drop()

    def _close(self) -> None:
        with suppress(OSError):  # what did not fit on the disk does not fit now
            self._file.close()


class Annotations:
    """The frames with their answers drawn on them: a video for each video, an image for each image.

    One video becomes ``annotated.mp4``; of several, each becomes ``NAME.annotated.mp4``. Images keep their names and
    subfolders, in the folder ``annotated``. A name that is taken gets ``-2`` and so on.

    Args:
        folder: to write in; made if need be.
        sources: all that will come, which decides the names.
        overlay: what is drawn.
        facts: of the model.
        resumes: keep what an earlier run left: the rest of its video is a file of its own.
    """

    def __init__(
        self, folder: Path, sources: Sequence[Source], overlay: Drawing, facts: ModelFacts, resumes: bool = False
    ) -> None:
        self._resumes = resumes
        self._folder = folder
        self._overlay = overlay
        self._facts = facts
        self._several = sum(isinstance(source, VideoSource) for source in sources) > 1
        self._open: dict[Source, tuple[Draft, VideoEncoder]] = {}
        self._used: set[Path] = set()
        self._written: list[Path] = []  # whole files that are in place
        self._images = 0

    def write(self, source: Source, frame: Frame, prediction: Prediction) -> None:
        """Draw and add a frame of ``source``.

        Raises:
            OutputError: when it cannot be written.
        """
        image = self._overlay.draw(frame.image, prediction, self._facts)
        if isinstance(source, VideoSource) and frame.time is not None:
            if source not in self._open:
                self._open[source] = self._begin(source)
            self._open[source][1].write(image, frame.time)
        elif isinstance(source, ImageSource):
            data, suffix = encoded_image(image, Path(frame.source).suffix)
            self._write_image(self._image_path(source, frame, suffix), data)

    def end(self, source: Source) -> None:
        """No more frames of ``source`` come: its video is closed and gets its name."""
        if source in self._open:
            draft, encoder = self._open[source]
            encoder.close()
            draft.keep()
            del self._open[source]
            self._written.append(draft.target)

    def keep(self) -> list[Path]:
        """Close all videos, give them their names, and say what there is: videos, and the folder of images if any."""
        for source in list(self._open):
            self.end(source)
        return self._written + ([self._folder / ANNOTATED_IMAGES] if self._images else [])

    def drop(self) -> None:
        """Close the videos that are open and remove them; what is whole stays."""
        for draft, encoder in self._open.values():
            encoder.abandon()
            draft.drop()
        self._open.clear()
        with suppress(OSError):  # not there, or not empty
            (self._folder / ANNOTATED_IMAGES).rmdir()

    def _begin(self, source: VideoSource) -> tuple[Draft, VideoEncoder]:
        if self._several:
            target = self._unused(self._folder, Path(source.name).stem, f".{ANNOTATED_VIDEO}")
        else:
            target = self._unused(self._folder, Path(ANNOTATED_VIDEO).stem, Path(ANNOTATED_VIDEO).suffix)
        draft = Draft(target)
        try:
            return draft, VideoEncoder(draft.path, source, final=target)
        except OutputError:
            draft.drop()
            raise

    def _image_path(self, source: ImageSource, frame: Frame, suffix: str) -> Path:
        below = Path(frame.source).relative_to(source.root)
        inside = Path(*(part for part in below.parts if part != ".."))  # a glob may climb; what we write may not
        return self._unused(self._folder / ANNOTATED_IMAGES / inside.parent, inside.stem, suffix)

    def _unused(self, folder: Path, stem: str, suffix: str) -> Path:
        candidate, number = folder / _fitting(stem, suffix), 2
        while candidate in self._used or (self._resumes and suffix.endswith(".mp4") and candidate.exists()):
            candidate = folder / _fitting(stem, f"-{number}{suffix}")
            number += 1
        self._used.add(candidate)
        return candidate

    def _write_image(self, path: Path, data: bytes) -> None:
        # Encoded in memory and written here, for cv2.imwrite says of a full disk only that it failed.
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        self._images += 1


def _fitting(stem: str, ending: str) -> str:
    """A file name of both, with as much of the stem as there is room for."""
    while len(os.fsencode(stem + ending)) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem + ending


def encoded_image(image: Image, suffix: str) -> tuple[bytes, str]:
    """The image as a file of that kind; as a PNG where that kind cannot hold it. And the suffix of what it became.

    Args:
        image: H x W x 3 uint8, BGR.
        suffix: with its dot.
    """
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix.lower() in (".jpg", ".jpeg") else []
    if suffix.lower() in IMAGE_SUFFIXES - {".pgm"}:  # grey only, and an overlay is not
        with suppress(cv2.error):  # more pixels than a JPEG or WebP may have
            whole, data = cv2.imencode(suffix.lower(), image, options)
            if whole:
                return data.tobytes(), suffix
    return cv2.imencode(".png", image)[1].tobytes(), ".png"


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """``summary.json``, indented.

    Raises:
        OutputError: when it cannot be written.
    """
    path = folder / SUMMARY
    with atomic_path(path) as temporary:
        text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path

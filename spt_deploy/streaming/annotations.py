"""Frames with their answers drawn on them: a video for each video, an image for each image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from spt_deploy.atomic import atomic_path
from spt_deploy.errors import OutputError
from spt_deploy.facts import ModelFacts
from spt_deploy.images import IMAGE_SUFFIXES
from spt_deploy.postprocess import Prediction
from spt_deploy.streaming.encoder import VideoEncoder
from spt_deploy.streaming.frames import Frame, Image, ImageSource, Source, VideoSource
from spt_deploy.streaming.overlay import Drawing
from spt_deploy.streaming.source_names import below, common_root
from spt_deploy.streaming.writers import Draft

ANNOTATED_VIDEO = "annotated.mp4"
ANNOTATED_IMAGES = "annotated"  # a folder

_LONGEST_NAME = 255  # bytes, of nearly every file system
_JPEG_QUALITY = 92  # artefacts invisible, at half the size of 98


class Annotations:
    """The frames with their answers drawn on them: a video for each video, an image for each image.

    One video becomes ``annotated.mp4``; of several, each becomes ``NAME.annotated.mp4``, and a name that is taken gets
    ``-2`` and so on. Images keep their names, in the folder ``annotated``, and their subfolders below the folder that
    all of them have in common: pictures of equal names in two folders stay apart, also in a run that is resumed.
    ``.png`` is added to the name of an image of a kind that cannot be written.

    Args:
        folder: to write in; made if need be.
        sources: all that will come, which decides the names.
        overlay: what is drawn.
        facts: of the model.
        resumes: keep what an earlier run left: the rest of its video is a file of its own.
        threads: see ``VideoEncoder``.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        overlay: Drawing,
        facts: ModelFacts,
        resumes: bool = False,
        threads: int = 0,
    ) -> None:
        self._threads = threads
        self._resumes = resumes
        self._folder = folder
        self._overlay = overlay
        self._facts = facts
        self._several = sum(isinstance(source, VideoSource) for source in sources) > 1
        self._open: dict[Source, tuple[Draft, VideoEncoder]] = {}
        self._used: set[Path] = set()  # names of videos
        self._written: list[Path] = []  # whole files that are in place
        self._root = common_root(sources)
        self._images: dict[Path, Path] = {}  # annotated image: the picture that it shows

    def prepare(self, source: Source, frame: Frame, prediction: Prediction) -> Image | tuple[bytes, str]:
        """Draw; of an image of its own the file and its suffix."""
        image = self._overlay.draw(frame.image, prediction, self._facts)
        return encoded_image(image, Path(frame.source).suffix) if isinstance(source, ImageSource) else image

    def write(self, source: Source, frame: Frame, prediction: Prediction, prepared: Image | tuple[bytes, str]) -> None:
        """Add a frame of ``source``.

        Raises:
            OutputError: when it cannot be written.
        """
        if isinstance(prepared, tuple):
            data, suffix = prepared
            self._write_image(self._image_path(frame, suffix), data)
        elif isinstance(source, VideoSource) and frame.time is not None:
            if source not in self._open:
                self._open[source] = self._begin(source)
            self._open[source][1].write(prepared, frame.time)

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
            target = self._unused(Path(source.name).stem, f".{ANNOTATED_VIDEO}")
        else:
            target = self._unused(Path(ANNOTATED_VIDEO).stem, Path(ANNOTATED_VIDEO).suffix)
        draft = Draft(target)
        try:
            return draft, VideoEncoder(draft.path, source, target, self._threads)
        except OutputError:
            draft.drop()
            raise

    def _unused(self, stem: str, suffix: str) -> Path:
        candidate, number = self._folder / _fitting(stem, suffix), 2
        while candidate in self._used or (self._resumes and candidate.exists()):
            candidate = self._folder / _fitting(stem, f"-{number}{suffix}")
            number += 1
        self._used.add(candidate)
        return candidate

    def _image_path(self, frame: Frame, suffix: str) -> Path:
        """Of a picture always the same, whatever came before it: a resumed run finds the names it began with."""
        picture = Path(frame.source).absolute()
        inside = below(self._root, picture)
        folder = self._folder / ANNOTATED_IMAGES / inside.parent
        stem = inside.stem if suffix == inside.suffix else inside.name
        candidate, number = folder / _fitting(stem, suffix), 2
        while self._images.get(candidate, picture) != picture:  # where climbing or cutting made two alike
            candidate = folder / _fitting(stem, f"-{number}{suffix}")
            number += 1
        self._images[candidate] = picture
        return candidate

    def _write_image(self, path: Path, data: bytes) -> None:
        # Encoded in memory and written here, for cv2.imwrite says of a full disk only that it failed.
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)


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

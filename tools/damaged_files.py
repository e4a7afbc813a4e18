"""Small image and video files of many formats, and what may happen to a file: cut, overwritten, shuffled, spliced."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

IMAGES = ("jpg", "png", "webp", "bmp", "tiff", "ppm", "pgm", "gif", "jp2", "hdr", "avif", "ras", "pam", "pfm")
VIDEOS = {  # by suffix: codec and pixel format
    "mp4": ("libx264", "yuv420p"),
    "mov": ("mpeg4", "yuv420p"),
    "avi": ("mjpeg", "yuvj420p"),
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "ts": ("libx264", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "nut": ("ffv1", "yuv420p"),
}
_FRAMES, _SIZE = 12, (48, 64)
# Where a header has a size, a count or an offset, these are the ones that programs stumble over.
_WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\1\0")


def picture(number: int) -> npt.NDArray[np.uint8]:
    """48 x 64 x 3 uint8 BGR: noise that moves, so that no encoder can leave much out."""
    noise = np.random.default_rng(0).integers(0, 256, (*_SIZE, 3), dtype=np.uint8)
    return np.roll(cv2.blur(noise, (3, 3)).astype(np.uint8), number, axis=1)


@cache
def whole_files(kind: str) -> dict[str, bytes]:
    """Files as they should be, by suffix: the ``images`` or the ``videos``."""
    if kind == "images":
        return {suffix: _encoded(suffix) for suffix in IMAGES if cv2.haveImageWriter(f"x.{suffix}")}
    return {suffix: _video(suffix, codec, pixels) for suffix, (codec, pixels) in VIDEOS.items()}


def _encoded(suffix: str) -> bytes:
    image: npt.NDArray[Any] = picture(0)
    if suffix in ("pgm", "pfm", "hdr"):
        image = image[:, :, 0] if suffix == "pgm" else image.astype(np.float32) / 255
    return cv2.imencode(f".{suffix}", image)[1].tobytes()


def _video(suffix: str, codec: str, pixels: str) -> bytes:
    made = io.BytesIO()
    name = {"mkv": "matroska", "ts": "mpegts"}.get(suffix, suffix)
    with av.open(made, "w", format=name) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "4", "cpu-used": "8", "deadline": "realtime"})
        stream.height, stream.width = _SIZE
        stream.pix_fmt = pixels
        for number in range(_FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number), format="bgr24").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return made.getvalue()


def damaged(choose: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """``data`` with one to a few things done to it; seldom nothing, or noise in its place."""
    if choose.random() < 0.03:
        return choose.randbytes(choose.choice((0, 1, 7, 100, 5000)))
    out = bytearray(data)
    for _ in range(choose.choice((0, 1, 1, 1, 2, 3, 8))):
        if out:
            _damage(choose, out, others)
    return bytes(out)


def _damage(choose: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    # Two thirds of it near the beginning and near the end, where headers and indexes are.
    where = choose.random()
    near = min(len(out) - 1, choose.randrange(200 if where < 1 / 3 else 1200))
    at = near if where < 1 / 3 else len(out) - 1 - near if where < 2 / 3 else choose.randrange(len(out))
    run = min(len(out) - at, choose.choice((1, 2, 4, 16, 64, 500)))
    what = choose.randrange(8)
    if what == 0:
        del out[choose.randrange(len(out)) :]
    elif what == 1:
        out[at] ^= 1 << choose.randrange(8)
    elif what == 2:
        out[at : at + run] = choose.randbytes(run)
    elif what == 3:
        word = choose.choice(_WORDS)
        out[at : at + len(word)] = word[: len(out) - at]
    elif what == 4:
        del out[at : at + run]
    elif what == 5:
        out[at:at] = out[at : at + run] * choose.choice((1, 2, 50))
    elif what == 6:
        out[at : at + run] = bytes(run)
    else:
        other = choose.choice(others)
        start = choose.randrange(len(other))
        out[at:] = other[start:]


@dataclass(frozen=True)
class Case:
    """A file made of a seed and a number: even numbers are images, odd ones videos."""

    seed: int
    number: int

    def write(self, folder: Path) -> Path:
        """Into ``folder``; its name says what it was made of."""
        choose = random.Random(f"{self.seed} {self.number}")
        files = whole_files("videos" if self.number % 2 else "images")
        suffix = choose.choice(sorted(files))
        data = damaged(choose, files[suffix], [files[other] for other in sorted(files)])
        name = suffix if choose.random() < 0.9 else choose.choice(("dat", "png", "mp4", "jpg", "txt"))
        path = folder / f"{self.number}-{suffix}.{name}"
        path.write_bytes(data)
        return path

"""A video from standard input, which another program writes, through FFmpeg."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, TYPE_CHECKING

from spt_deploy.streaming.frames import Failure, Frame, Sampling, VideoSource
from spt_deploy.streaming.video import FrameClock, has_origin, rate_of, unreadable, upright

if TYPE_CHECKING:
    from av.container import InputContainer

_STDIN = "stdin"
_NO_WAY_BACK = "; an MP4 whose index lies at its end cannot be read from a pipe: name the file instead"
_BUFFER = 1 << 16  # bytes; how much FFmpeg asks a pipe for at a time


class StandardInput(VideoSource):
    """A video that another program writes into this one: JPEGs one after the other, or any container FFmpeg reads.

    Nothing is dropped: the other program waits.

    Args:
        file: open for reading bytes.
        raw: height and width, when it holds bare frames of 3 bytes a pixel, blue, green, red, and nothing else.
    """

    prompt = False
    time_base = Fraction(1, 90_000)

    def __init__(self, file: IO[bytes], raw: tuple[int, int] | None = None) -> None:
        super().__init__(_STDIN)
        self.rate = Fraction(25)
        self._file = _Timed(file)
        self._raw = raw

    def total(self) -> None:
        """Nobody knows."""

    def frames(self, sampling: Sampling) -> Iterator[Frame | Failure]:
        """Once only: what was read is gone."""
        import av
        from av.video.reformatter import VideoReformatter

        try:
            container = self._open()
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            what = f"holds no video that FFmpeg can read: {reason}" if self._file.begun else "is empty"
            yield Failure(self.name, f"{self.name} {what}")
            return
        with container:
            if not container.streams.video:
                yield Failure(self.name, f"{self.name} holds no video")
                return
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"  # a thread a frame holds frames back
            self.rate = rate_of(stream)
            clock = FrameClock(Fraction(stream.time_base or self.time_base), self.rate, has_origin(container))
            converter = VideoReformatter()
            count, broken, begun = 0, 0, None
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    frames = [] if packet is None else packet.decode()
                except (av.FFmpegError, OSError) as error:
                    broken += 1
                    if not isinstance(error, av.error.InvalidDataError):
                        break
                    continue
                if packet is None:
                    break
                for frame in frames:
                    shown = float(clock.time_of(frame))
                    if sampling.takes(count):
                        begun = shown if begun is None else begun
                        if sampling.is_over(shown - begun):
                            return
                        yield Frame(self.name, count, shown, upright(frame, converter), None, self._file.waited())
                    count += 1
                    if sampling.is_past(count):  # asked now: the next frame may never come
                        return
        if broken or not count:
            what = f"{unreadable(broken)}; the rest was used" if count else "there is no frame in it"
            remedy = "" if count or "mp4" not in container.format.name else _NO_WAY_BACK
            yield Failure(self.name, f"{self.name} is damaged: {what}{remedy}")

    def _open(self) -> InputContainer:
        import av

        if self._raw is None:
            return av.open(self._file, "r", metadata_errors="replace", buffer_size=_BUFFER)
        height, width = self._raw
        options = {"video_size": f"{width}x{height}", "pixel_format": "bgr24", "framerate": str(self.rate)}
        return av.open(self._file, "r", format="rawvideo", options=options, buffer_size=_BUFFER)


class _Timed:
    """A pipe that knows how long its reader waited, and whether anything has come (``begun``)."""

    def __init__(self, file: IO[bytes]) -> None:
        # Unbuffered: Python aborts at its end while a thread nobody joins waits inside a BufferedReader.
        self._file: IO[bytes] = getattr(file, "raw", file)
        self._waited = 0.0
        self.begun = False

    def read(self, size: int) -> bytes:
        start = time.perf_counter()
        # Whatever there is, up to the size: a whole buffer would hold the last frame back until the next one comes.
        data = self._file.read1(size) if hasattr(self._file, "read1") else self._file.read(size)
        self._waited += time.perf_counter() - start
        self.begun = self.begun or bool(data)
        return data

    def waited(self) -> float:
        """Seconds since it was last asked."""
        seconds, self._waited = self._waited, 0.0
        return seconds

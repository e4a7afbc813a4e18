"""Video files as frames with exact times.

PyAV decodes, not ``cv2.VideoCapture``: it gives the presentation time of each frame as the file has it, tells an error
from the end of the file, and with one kept converter it is no slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spt_deploy.errors import SourceError
from spt_deploy.streaming.frames import Failure, Frame, Image, Sampling, VideoSource

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

_FALLBACK_RATE = Fraction(25)  # where a file gives none; only spaces frames that have no time of their own
_MAX_RATE = 1000  # some files claim their time base as rate, 90,000 frames a second
_CLOCK_HAS_NO_ORIGIN = 0x0200  # AVFMT_TS_DISCONT
# FFmpeg's demuxers of formats whose header says when the video ends and not how long it lasts: others, of MP4 for one,
# give a video of 2 s that starts at 5 s a duration of 2 s, these one of 7 s.
_GIVE_THE_END = ("matroska,webm", "asf", "nut")
# FFmpeg's demuxers that make "videos" out of text files and of single images.
_NO_VIDEOS = ("tty", "bin", "xbin", "adf", "idf", "image2", "txd")
_SMALL = 1 << 20  # pixels; waking threads to convert so few costs more than they save
_SLACK_FRAMES = 3  # a container may round its duration up; more missing than this is missing


class VideoFile(VideoSource):
    """A video file, opened anew by every ``frames``.

    ``Frame.time`` is the file's own presentation time and strictly increasing. Only where the clock of a format has no
    origin (MPEG-TS counts from an arbitrary moment), or where a damaged file starts before 0, does it count from the
    first frame. Rotation metadata is obeyed.

    Args:
        path: of the file.

    Raises:
        SourceError: when there is no video in it that FFmpeg can read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        with _open(path) as container:
            stream = container.streams.video[0]
            self.time_base = Fraction(stream.time_base or Fraction(1, 90_000))
            self.rate = rate_of(stream)
            self._has_origin = has_origin(container)
            duration = declared_duration(container, stream, self.rate)
            self._end = declared_end(container, stream, self.rate)
            self._total: int | None = stream.frames or None
        if duration is not None:
            self._total = self._total or max(1, round(duration * self.rate))

    def total(self) -> int | None:
        """The container's count of frames, else its duration times its rate; None without either."""
        return self._total

    def frames(self, sampling: Sampling) -> Iterator[Frame | Failure]:
        """The frames, one at a time; then a Failure if there was no frame, or not all of the video could be decoded."""
        from av.video.reformatter import VideoReformatter

        try:
            container = _open(self.path)
        except SourceError as error:  # it was there when it was named
            yield Failure(self.name, str(error))
            return
        converter = VideoReformatter()
        clock = FrameClock(self.time_base, self.rate, self._has_origin)
        count, begun = 0, None
        for item in _decoded(self.path, container):
            if isinstance(item, Failure):
                yield item if count else Failure(item.source, f"{item.source} has no frame that can be decoded")
                return
            time = clock.time_of(item)
            if sampling.takes(count):  # the frames between are decoded, for others refer to them, but not converted
                begun = float(time) if begun is None else begun
                if sampling.is_over(float(time) - begun):
                    return
                yield Frame(self.name, count, float(time), upright(item, converter))
            count += 1
            if sampling.is_past(count):
                return
        if not count:
            yield Failure(self.name, f"{self.name} is a video without frames")
        elif failure := cut_short(self.name, clock.end, self._end, self.rate):
            yield failure


def upright(frame: VideoFrame, converter: VideoReformatter) -> Image:
    """The picture as it is to be seen, H x W x 3 uint8, BGR.

    Args:
        frame: as decoded.
        converter: one for all frames of a stream: setting up a conversion costs as much as doing it.
    """
    threads = 1 if frame.width * frame.height <= _SMALL else 0
    pixels = converter.reformat(frame, format="bgr24", threads=threads).to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90), dtype=np.uint8)


def held_back(stream: VideoStream) -> list[VideoFrame]:
    """What a decoder keeps, for other frames were to come before it, when its packets have ended in an error."""
    import av

    with suppress(av.FFmpegError, OSError):
        return stream.decode(None)
    return []


def unreadable(packets: int) -> str:
    """A clause that says how many packets did not decode."""
    return "1 packet is unreadable" if packets == 1 else f"{packets} packets are unreadable"


def rate_of(stream: VideoStream) -> Fraction:
    """Frames a second on average, as far as the stream tells."""
    rate = stream.average_rate or stream.guessed_rate or _FALLBACK_RATE
    return Fraction(rate) if 0 < rate <= _MAX_RATE else _FALLBACK_RATE


def has_origin(container: InputContainer) -> bool:
    """Whether timestamps count from the video's begin; those of MPEG-TS and the like from an arbitrary moment."""
    return not int(container.format.flags) & _CLOCK_HAS_NO_ORIGIN


def declared_end(container: InputContainer, stream: VideoStream, rate: Fraction) -> Fraction | None:
    """When the video should end by its header, in seconds of its ``FrameClock``; None when the header does not say."""
    duration = declared_duration(container, stream, rate)
    start = (stream.start_time or 0) * Fraction(stream.time_base or 0) if has_origin(container) else Fraction(0)
    return None if duration is None else start + duration


def declared_duration(container: InputContainer, stream: VideoStream, rate: Fraction) -> Fraction | None:
    """How long the video should be by its header, in seconds; None when the header does not say."""
    if container.format.name == "avi" and stream.frames:
        return stream.frames / rate  # FFmpeg shortens the duration of a file that was cut short, not the count
    time_base = Fraction(stream.time_base or 0)
    gives_the_end = container.format.name in _GIVE_THE_END
    if stream.duration and not gives_the_end:
        return stream.duration * time_base
    if container.duration and len(container.streams) == 1:  # else it may be the sound that lasts
        before = (stream.start_time or 0) * time_base if gives_the_end else 0
        return max(Fraction(container.duration, 1_000_000) - before, Fraction(0)) or None
    return None


def cut_short(name: str, end: Fraction, declared: Fraction | None, rate: Fraction) -> Failure | None:
    """The failure of a video that ends before it should; None of one that does not.

    Args:
        name: of the source.
        end: when its last frame gave way, in seconds.
        declared: when it should end; None where nobody says.
        rate: frames a second.
    """
    if declared is None or declared - end <= _SLACK_FRAMES / rate:
        return None
    at = f"{float(end):.2f} s of {float(declared):.2f} s"
    return Failure(name, f"{name} breaks off at {at}; the file is cut short or damaged")


class FrameClock:
    """Presentation times out of presentation timestamps, made strictly increasing where a file's are not.

    Args:
        time_base: the unit of timestamps, in seconds.
        rate: frames a second, which spaces frames that have no timestamp.
        has_origin: whether timestamps count from the video's begin; else from an arbitrary moment, and the first frame
            is at 0.
    """

    def __init__(self, time_base: Fraction, rate: Fraction, has_origin: bool) -> None:
        self._time_base = time_base
        self._interval = max(1, round(1 / (rate * time_base)))
        self._has_origin = has_origin
        self._origin: int | None = None
        self._last: int | None = None
        self._shown_for = 0

    def time_of(self, frame: VideoFrame) -> Fraction:
        """Of the next frame, in seconds; without a usable timestamp it follows the last one at the nominal rate."""
        next_ticks = 0 if self._last is None else self._last + self._interval
        if self._origin is None and frame.pts is not None:
            # Not the start that the header declares, for frames may come before it, and no player shows them before 0.
            self._origin = 0 if self._has_origin and frame.pts >= 0 else frame.pts - next_ticks
        ticks = next_ticks if frame.pts is None or self._origin is None else frame.pts - self._origin
        if self._last is not None and ticks <= self._last:
            # A doubled timestamp takes the least there is, for the next frame has its own again; a clock that was set
            # back, as where two recordings were joined, is not to be waited for.
            ticks = self._last + 1 if self._last - ticks < self._interval else next_ticks
        self._last = ticks
        self._shown_for = frame.duration or self._interval
        return self._last * self._time_base

    @property
    def end(self) -> Fraction:
        """When the last frame gives way, in seconds."""
        return ((self._last or 0) + self._shown_for) * self._time_base


def _open(path: Path) -> InputContainer:
    import av

    try:
        # Absolute, for FFmpeg takes the a: of a relative a:b.mp4 for a protocol. A title need not be UTF-8.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise SourceError(f"{path} is neither an image nor a video that FFmpeg can read: {reason}") from error
    name = container.format.name
    if not container.streams.video or name in _NO_VIDEOS or name.endswith("_pipe"):
        container.close()
        raise SourceError(f"{path} has no video stream; expected a video file or an image")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise SourceError(f"{path} is a video in a codec that FFmpeg cannot decode; convert it to H.264")
    return container


def _decoded(path: Path, container: InputContainer) -> Iterator[VideoFrame | Failure]:
    """Every frame that decodes, and last of all a Failure if a packet did not; the container is closed then."""
    import av

    broken = 0
    reason = ""
    with container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.FFmpegError, OSError) as error:  # the container itself is broken: there is no next packet
                broken, reason = broken + 1, error.strerror or str(error)
                yield from held_back(stream)
                break
            try:
                frames = packet.decode()
            except (av.FFmpegError, OSError) as error:  # one packet is broken: decoders go on with the next
                broken, reason = broken + 1, error.strerror or str(error)
                continue
            yield from frames
    if broken:
        yield Failure(str(path), f"{path} is damaged: {unreadable(broken)} ({reason}); the rest was used")

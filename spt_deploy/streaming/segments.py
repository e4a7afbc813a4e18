"""Streams that come in segments, as HLS does: some seconds at once, and in several sizes. Read as players do."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from spt_deploy.streaming.video import FrameClock, rate_of

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_LEAP = 5.0  # seconds between two frames that are not waited for: segments were skipped, or nothing was recorded
_OVERLAP = 60.0  # seconds; what a new connection begins with, the last three segments, is not older


def is_segmented(container: InputContainer) -> bool:
    """Whether it is a playlist of segments; DASH's are not in the FFmpeg that PyAV brings along."""
    return container.format.name == "hls"


def largest_of(container: InputContainer) -> VideoStream:
    """The largest picture of those that a playlist offers for lines of different speed; the others are not fetched."""
    from av.stream import Discard

    videos = [stream for stream in container.streams.video if stream.codec_context is not None]
    chosen = max(videos, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    return chosen


class Player:
    """Gives the frames of a live stream in segments one after the other as they are to be shown, not all at once.

    A server sends a segment when it is whole, and a reader begins three of them behind what is live, so there is always
    something to show. Frames that come too late are shown at once, and those after them as much later.

    Args:
        wait: for so many seconds, or less when the stream is no longer wanted.
    """

    def __init__(self, wait: Callable[[float], object]) -> None:
        self._wait = wait
        self._time_base = Fraction(1)
        self._clock: FrameClock | None = None
        self._begun: float | None = None  # when the frame at 0 was shown, on the monotonic clock
        self._shown = 0.0  # time of the latest frame
        self._latest: float | None = None  # its timestamp, in seconds
        self._overlaps = False

    @property
    def has_begun(self) -> bool:
        """Whether anything was shown."""
        return self._latest is not None

    def connect(self, stream: VideoStream) -> None:
        """A connection was made, for the first time or again: the last segments come once more."""
        self._time_base = Fraction(stream.time_base or 0)
        self._clock = FrameClock(self._time_base, rate_of(stream), has_origin=False)
        self._begun = None
        self._overlaps = self.has_begun

    def is_new(self, frame: VideoFrame) -> bool:
        """Whether it was not shown before the connection was lost; asked of every frame once, in order."""
        stamp = None if frame.pts is None else float(frame.pts * self._time_base)
        if self._overlaps and stamp is not None and self._latest is not None:
            if self._latest - _OVERLAP < stamp <= self._latest:
                return False
            self._overlaps = False
        self._latest = self._latest if stamp is None else stamp
        return True

    def hold(self, frame: VideoFrame) -> float:
        """Wait until the frame is to be shown, and return for how many seconds that was."""
        assert self._clock is not None
        before, self._shown = self._shown, float(self._clock.time_of(frame))
        now = time.monotonic()
        if self._begun is None or now >= self._begun + self._shown or self._shown - before > _LEAP:
            self._begun = now - self._shown
            return 0.0
        self._wait(self._begun + self._shown - now)
        return time.monotonic() - now

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
_NEW = 0.5  # seconds that a packet was waited for which did not lie there yet
_BACK = 1.0  # seconds between two frames that are another clock's, and not another order


def is_segmented(container: InputContainer) -> bool:
    """Whether it is a playlist of segments; DASH's are not in the FFmpeg that PyAV brings along."""
    return container.format.name == "hls"


def largest_of(container: InputContainer) -> VideoStream:
    """The largest of the pictures that a playlist offers for different lines; the others are fetched no more."""
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
        self._time_base, self._rate = Fraction(1), Fraction(1)
        self._begin()
        self._latest: float | None = None  # timestamp of the latest frame, in seconds
        self._overlaps = False

    @property
    def has_begun(self) -> bool:
        """Whether anything was shown."""
        return self._latest is not None

    def connect(self, stream: VideoStream) -> None:
        """A connection was made, for the first time or again: the last segments come once more."""
        self._time_base, self._rate = Fraction(stream.time_base or 0), rate_of(stream)
        self._begin()
        self._overlaps = self.has_begun

    def is_new(self, frame: VideoFrame, waited: float) -> bool:
        """Whether it was not shown before the connection was lost; asked of every frame once, in order.

        Args:
            frame: as decoded.
            waited: seconds that it was waited for: what came before the loss lies there.
        """
        if frame.pts is None or self._latest is None:
            self._latest = self._latest if frame.pts is None else float(frame.pts * self._time_base)
            return True
        stamp, before = float(frame.pts * self._time_base), self._latest
        self._overlaps = self._overlaps and before - _OVERLAP < stamp <= before and waited < _NEW
        if self._overlaps:
            return False
        if stamp < before - _BACK:  # an encoder that began again, or another programme
            self._begin()
        self._latest = stamp
        return True

    def _begin(self) -> None:
        """The next frame is the first of its clock."""
        self._clock = FrameClock(self._time_base, self._rate, has_origin=False)
        self._begun: float | None = None  # when the frame at 0 was shown, on the monotonic clock
        self._shown = 0.0  # time of the latest frame

    def hold(self, frame: VideoFrame) -> float:
        """Wait until the frame is to be shown, and return for how many seconds that was."""
        before, self._shown = self._shown, float(self._clock.time_of(frame))
        now = time.monotonic()
        if self._begun is None or now >= self._begun + self._shown or self._shown - before > _LEAP:
            self._begun = now - self._shown
            return 0.0
        self._wait(self._begun + self._shown - now)
        return time.monotonic() - now

"""Sources that do not wait for anybody: their frames come at their own pace, and they may go away and come back."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from spt_deploy.errors import SourceError, UsageError
from spt_deploy.streaming.frames import Failure, Frame, Gap, Image, Sampling, VideoSource

RECONNECT = 60.0  # seconds; a camera has started again by then
_FIRST_PAUSE = 0.5  # seconds between two attempts, doubled up to the longest
_LONGEST_PAUSE = 8.0
_FALLBACK_RATE = Fraction(25)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame that has come and is not converted yet.

    Attributes:
        waited: seconds until it came.
        picture: makes the H x W x 3 uint8 BGR picture of it.
        time: on the stream's own clock, of recordings only; None of what is live, whose clock is ours.
    """

    waited: float
    picture: Callable[[], Image]
    time: float | None = None


class LiveSource(VideoSource):
    """A camera or a stream: frames as they come, a new connection where one is lost.

    ``Frame.time`` counts from the first frame, by this machine's clock; frames are numbered as they arrive, those that
    are dropped among them. What turns out to be a recording (``live`` is false then) has its own clock and numbers.
    ``on_notice`` gets a sentence as soon as the source is lost, and when it is back, in the thread that reads it.

    Args:
        name: as the results call it.
        reconnect: seconds for which a lost connection is tried again; 0 takes its end for the end. The first
            connection is tried once.

    Raises:
        UsageError: when ``reconnect`` is below 0.
    """

    live = True
    prompt = False
    time_base = Fraction(1, 90_000)  # MPEG's clock

    def __init__(self, name: str, reconnect: float = RECONNECT) -> None:
        super().__init__(name)
        if not reconnect >= 0:
            raise UsageError(f"reconnect is {reconnect}; expected seconds, 0 for never")
        self.rate = _FALLBACK_RATE
        self.first_index = 0  # a run that is resumed goes on counting; a recording begins again
        self.on_notice: Callable[[str], None] = _silence
        self._reconnect = reconnect
        self._stopped = threading.Event()
        self._has_ended = False  # told by the stream itself: no connection would bring more
        self._deadline: float | None = None

    def total(self) -> None:
        """Nobody knows."""

    def stop(self) -> None:
        """See ``Source``."""
        self._stopped.set()

    @property
    def is_over(self) -> bool:
        """See ``Source``."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @abstractmethod
    def _arrivals(self) -> Iterator[Arrival | Failure]:
        """One connection: frames until it ends, and a Failure at the end of a recording of which something is missing.

        Raises:
            SourceError: when it cannot be made, or is lost; the message is a clause that gives the reason.
        """

    def frames(self, sampling: Sampling) -> Iterator[Frame | Gap | Failure]:
        """Frames, and a Gap after each loss; a Failure at the end when the source stayed away."""
        self._stopped.clear()
        self._deadline, self._has_ended = None, False
        count, begun, latest, lost, pause = 0, 0.0, 0.0, None, _FIRST_PAUSE
        first: float | None = None  # time of the first frame of a recording that is taken
        while True:
            reason = ""
            try:
                for arrival in self._arrivals():
                    if isinstance(arrival, Failure):
                        yield arrival
                        continue
                    now = time.monotonic()
                    if self.live and self._deadline is None and sampling.duration is not None:
                        self._deadline = now + sampling.duration
                    if count == 0:
                        begun = now
                    if self._stopped.is_set() or self.is_over:
                        return
                    shown = now - begun if arrival.time is None else arrival.time
                    number = self.first_index + count if self.live else count
                    if lost is not None:
                        self.on_notice(f"{self.name} is back after {now - latest:.1f} s")
                        yield Gap(self.name, number, latest - begun, now - latest, lost[1])
                        lost, pause = None, _FIRST_PAUSE
                    latest = now
                    if sampling.takes(count):
                        first = shown if first is None else first
                        if not self.live and sampling.is_over(shown - first):
                            return
                        start = time.monotonic()
                        image = arrival.picture()
                        taken_at = time.time() - (time.monotonic() - start) if self.live else None
                        yield Frame(self.name, number, shown, image, taken_at, arrival.waited)
                    count += 1
                    if sampling.is_past(count):
                        return
            except SourceError as error:
                reason = str(error)
            now = time.monotonic()
            if self._stopped.is_set() or self.is_over:
                return
            if count == 0:
                yield Failure(self.name, f"{self.name} cannot be read: {reason or 'it has no frame'}")
                return
            if self._has_ended or not (self.live or reason):
                if lost is not None:
                    why = f"{self.name} was lost after {count} frames ({lost[1]}) and has ended since"
                    yield Failure(self.name, why)
                return
            is_lost_now, lost = lost is None, lost or (now, reason or "the stream ended")
            patience = self._reconnect if self.live else 0.0  # a recording would begin again
            if now - lost[0] + pause > patience:
                if patience or reason:
                    stayed = f" and did not come back in {patience:g} s" if patience else ""
                    yield Failure(self.name, f"{self.name} was lost after {count} frames ({lost[1]}){stayed}")
                return
            if is_lost_now:
                self.on_notice(f"{self.name} was lost ({lost[1]}); trying again for {patience:g} s")
            self._stopped.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


class Camera(LiveSource):
    """A camera of this machine, through OpenCV.

    Args:
        device: its number, 0 for the first, or what else OpenCV opens, such as ``/dev/video0``.
        reconnect: see ``LiveSource``.
    """

    def __init__(self, device: int | str, reconnect: float = RECONNECT) -> None:
        super().__init__(str(device), reconnect)
        self._device = device

    def _arrivals(self) -> Iterator[Arrival]:
        import cv2

        camera = cv2.VideoCapture(self._device)
        try:
            if not camera.isOpened():
                raise SourceError(f"there is no camera {self._device}, or another program holds it")
            while True:
                start = time.perf_counter()
                if not camera.grab():
                    raise SourceError("the camera gives no more frames")
                yield Arrival(time.perf_counter() - start, lambda: _retrieved(camera))
        finally:
            camera.release()


def _silence(sentence: str) -> None:
    pass


def _retrieved(camera: object) -> Image:
    whole, image = camera.retrieve()  # type: ignore[attr-defined]
    if not whole:
        raise SourceError("the camera gave a frame that cannot be decoded")
    return image  # type: ignore[no-any-return]

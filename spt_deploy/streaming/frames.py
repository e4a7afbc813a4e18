"""What flows through a stream, frames and failures; and the contract of the sources that yield them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spt_deploy.errors import UsageError

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """A decoded picture.

    Attributes:
        source: path of the file it comes from, as the user would name it.
        index: number of the frame in its video, counted from 0 as decoded, whatever the stride; 0 for an image.
        time: when it is shown, in seconds of the video's own clock; None for an image.
        image: H x W x 3 uint8, BGR, upright.
        taken_at: when it arrived, of a live source, in seconds since the epoch; None of a recording.
        waited: seconds that its source waited for it to come, which are no work.
    """

    source: str
    index: int
    time: float | None
    image: Image
    taken_at: float | None = None
    waited: float = 0.0

    def without_picture(self) -> Frame:
        """The frame for who only asks which one it was, and how large: with a black picture that takes no memory."""
        return replace(self, image=np.broadcast_to(np.uint8(0), self.image.shape))


@dataclass(frozen=True, slots=True)
class Failure:
    """An input, or the rest of one, that could not be read, and why; the stream goes on after it."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A live source was lost for a while and came back.

    Attributes:
        source: its name.
        index: number of the first frame after the gap.
        time: of the last frame before it, on the clock of the source's frames, in seconds.
        seconds: from that frame to the first after it.
        reason: why the source was lost.
    """

    source: str
    index: int
    time: float
    seconds: float
    reason: str


@dataclass(frozen=True)
class Sampling:
    """Which frames of each source are taken; a folder or glob of images is one source, its images the frames.

    Attributes:
        start: number of the first, counted from 0.
        stride: every how many-th from there on.
        max_frames: at most so many of each source; None for all.
        duration: so many seconds of each video or live source from its first taken frame on; None for all.

    Raises:
        UsageError: when a number is out of range.
    """

    start: int = 0
    stride: int = 1
    max_frames: int | None = None
    duration: float | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UsageError(f"start is {self.start}; expected a frame number, 0 or above")
        if self.stride < 1:
            raise UsageError(f"stride is {self.stride}; expected 1 for every frame, 2 for every other, and so on")
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"max_frames is {self.max_frames}; expected 1 or more")
        if self.duration is not None and not self.duration > 0:
            raise UsageError(f"duration is {self.duration}; expected seconds, above 0")

    def takes(self, number: int) -> bool:
        """Whether frame ``number`` is taken."""
        return number >= self.start and (number - self.start) % self.stride == 0 and not self.is_past(number)

    def is_past(self, number: int) -> bool:
        """Whether neither frame ``number`` nor any later one is taken."""
        return self.max_frames is not None and number > self.start + (self.max_frames - 1) * self.stride

    def is_over(self, elapsed: float) -> bool:
        """Whether a frame that is shown so many seconds after the first taken one is too late."""
        return self.duration is not None and elapsed > self.duration - 1e-6  # times are rounded

    def count(self, total: int) -> int:
        """How many of ``total`` frames are taken."""
        taken = max(0, -(-(total - self.start) // self.stride))
        return taken if self.max_frames is None else min(taken, self.max_frames)


class Source(ABC):
    """Something that yields frames; a recording from the start at every call of ``frames``.

    Attributes:
        name: as the user named it.
        live: whether frames come at their own pace, so that who is slow must leave some out.
        prompt: whether the next frame costs reading and decoding only; else it may be long in coming, and nobody
            should stand and wait for it.
    """

    live: bool = False
    prompt: bool = True

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def frames(self, sampling: Sampling) -> Iterator[Frame | Gap | Failure]:
        """The frames that ``sampling`` takes, in order, one at a time.

        What cannot be read raises nothing here: an image, or a video from where it breaks, is a Failure.
        """

    def stop(self) -> None:  # noqa: B027 - most have nothing that takes long
        """No more frames are wanted: ``frames``, perhaps waiting in another thread, should end soon."""

    @property
    def is_over(self) -> bool:
        """Whether the time that ``sampling`` gave it has passed, even if ``frames`` has not noticed yet."""
        return False

    @abstractmethod
    def total(self) -> int | None:
        """How many frames there are before sampling, as far as the source says; None when it does not.

        Good for a progress bar and for nothing else: a video's header may be wrong or only give a duration.
        """


def expected_frames(sources: Sequence[Source], sampling: Sampling) -> int | None:
    """How many frames ``sampling`` takes of all sources, as far as they say; None when one does not."""
    totals = [source.total() for source in sources]
    return None if None in totals else sum(sampling.count(total) for total in totals if total is not None)


class VideoSource(Source):
    """A source whose frames have times and belong into one annotated video.

    Attributes:
        time_base: the unit, in seconds, in which ``Frame.time`` is a whole number.
        rate: average frames a second, for the encoder's rate control only; times come from the frames.
    """

    time_base: Fraction
    rate: Fraction


class ImageSource(Source):
    """A source of single images, each its own result.

    Attributes:
        paths: of their files, in order.
        root: folder that all of them lie in.
    """

    paths: Sequence[Path]
    root: Path

"""Many sources become one sequence of frames, and they take turns.

Recordings take strict turns, one frame of each, so that what comes after what does not depend on how threads happen
to run. They are read by whoever takes, or ahead, each in a thread of its own. Who may be long in coming, a camera or a
pipe, always has a thread, is asked and not waited for, and a live source that is not asked often enough drops its
oldest frames.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from spt_deploy.interrupt import StopRequest
from spt_deploy.streaming.flow import Channel, Empty, Flow
from spt_deploy.streaming.frames import Failure, Frame, Gap, Sampling, Source
from spt_deploy.streaming.summary import DECODE, StageClock, StreamSummary

DECODERS = 4  # recordings that are read at a time; of live sources every one
_AHEAD = 8  # decoded frames of a recording that wait
_LIVE_AHEAD = 2  # of a live source: more would only be older
_GLANCE = 0.1  # seconds between two looks at whether to stop

Item = Frame | Gap | Failure


@dataclass(frozen=True, slots=True)
class Turn:
    """What comes next.

    Attributes:
        source: whose turn it was; None when nobody had anything in the given time.
        item: its frame, or its gap; None when the source has ended.
    """

    source: Source | None
    item: Frame | Gap | None = None


@contextmanager
def closing_sources(sources: Sequence[Source]) -> Iterator[None]:
    """Tell the sources at the end that no more frames are wanted: threads that nobody joins must not linger."""
    try:
        yield
    finally:
        for source in sources:
            source.stop()


class Turns:
    """Frames of all sources, as they are to be handled.

    Args:
        flow: owns the threads.
        sources: to read.
        sampling: which of their frames.
        stop: ends it early, after what was read.
        clock: told how long decoding takes.
        summary: failures, resumed and dropped frames, and gaps are counted there.
        done: source and frame of what has an answer already, and how often: so often it is passed over.
        ahead: read recordings ahead from the start, as is done beside live sources; else see ``read_ahead``.
    """

    def __init__(
        self,
        flow: Flow,
        sources: Sequence[Source],
        sampling: Sampling,
        stop: StopRequest,
        clock: StageClock,
        summary: StreamSummary,
        done: Mapping[tuple[str, int], int] | None = None,
        ahead: bool = True,
    ) -> None:
        self.may_wait = not all(source.prompt for source in sources)
        self._flow = flow
        self._sampling = sampling
        self._stop = stop
        self._clock = clock
        self._summary = summary
        self._done = Counter(done or {})
        self._lock = threading.Lock()
        self._recordings = deque(source for source in sources if source.prompt)
        self._others = deque(source for source in sources if not source.prompt)
        self._reading: deque[tuple[Source, _Recording | Channel[Item]]] = deque()
        self._bell = threading.Condition()  # of all who may be long in coming: rung when any of them has something
        self._ahead = ahead or self.may_wait  # a live frame waits for no recording's decoder

    def take(self, patience: float | None = None) -> Turn | None:
        """The next turn; None when all sources have ended.

        Args:
            patience: seconds after which a turn of nobody is better than none; None waits as long as it takes.
        """
        until = None if patience is None else time.monotonic() + patience
        while True:
            self._begin()
            if not self._reading:
                return None
            for _ in range(len(self._reading)):
                source, channel = self._reading.popleft()
                item = self._next(source, channel)
                if item is not None:
                    self._reading.append((source, channel))
                if item is not Empty.YET:
                    return Turn(source, item)
            left = _GLANCE if until is None else until - time.monotonic()
            if left <= 0:
                return Turn(None)
            channels = [each for _, each in self._reading if isinstance(each, Channel)]  # recordings are never empty
            with self._bell:
                self._bell.wait_for(lambda: any(each.is_ready for each in channels), min(left, _GLANCE))  # noqa: B023

    def read_ahead(self) -> None:
        """Give every recording a thread of its own, now and from now on; called by who takes.

        Costs processor time, for a frame that waits is no longer in a cache; worth it where taking is too slow.
        """
        self._ahead = True
        for _, reading in self._reading:
            if isinstance(reading, _Recording):
                reading.read_ahead(self._flow)

    def _begin(self) -> None:
        """Start reading who may be long in coming, and as many recordings as are read at a time."""
        while self._others:
            source = self._others.popleft()
            channel: Channel[Item] = self._flow.channel(Frame, _LIVE_AHEAD if source.live else _AHEAD, self._bell)
            self._flow.spawn("decode", lambda s=source, c=channel: self._listen(s, c), joined=False)  # type: ignore[misc]
            self._reading.append((source, channel))
        free = DECODERS - sum(each.prompt for each, _ in self._reading)
        while self._recordings and free > 0:
            source = self._recordings.popleft()
            recording = _Recording(self._items(source))
            if self._ahead:
                recording.read_ahead(self._flow)
            self._reading.append((source, recording))
            free -= 1

    def _next(self, source: Source, reading: _Recording | Channel[Item]) -> Frame | Gap | Empty | None:
        """What needs to be handled; None at the end. Failures and frames that have an answer take no turn."""
        while True:
            item = reading.get() if isinstance(reading, _Recording) else reading.poll()
            if isinstance(item, Failure):
                self._summary.failures.append(item)
            elif isinstance(item, Frame) and not source.live and self._done[item.source, item.index] > 0:
                self._done[item.source, item.index] -= 1
                self._summary.resumed += 1
            elif item is Empty.YET and (self._stop.made or source.is_over):
                assert isinstance(reading, Channel)  # a recording always has something, or has ended
                source.stop()
                reading.cancel()  # nobody joins its thread: what it still brings is neither waited for nor counted
                return None
            else:
                return item

    def _items(self, source: Source) -> Iterator[Item]:
        """What a source yields until somebody wants to stop, timed."""
        items = iter(source.frames(self._sampling))
        while not self._stop.made:
            start = time.perf_counter()
            item = next(items, None)
            if isinstance(item, Frame) or source.prompt:  # waiting is no work
                waited = item.waited if isinstance(item, Frame) else 0.0
                self._clock.add(DECODE, max(0.0, time.perf_counter() - start - waited))
            if item is None:
                return
            yield item
            del item  # who has it may be done with it, and the next picture gets its memory

    def _listen(self, source: Source, channel: Channel[Item]) -> None:
        """What a source yields that may be long in coming, into its channel; of a live one the newest."""
        for item in self._items(source):
            if source.live:
                gone = channel.put_newest(item, Frame)
                with self._lock:
                    self._summary.dropped += gone
            else:
                channel.put(item)
        channel.close()


class _Recording:
    """What a recording yields, read by whoever asks for the next of it, or ahead."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._channel: Channel[Item] | None = None

    def get(self) -> Item | None:
        """The next item; None when no more will come."""
        return next(self._items, None) if self._channel is None else self._channel.get()

    def read_ahead(self, flow: Flow) -> None:
        """From now on in a thread of its own."""
        if self._channel is None:
            self._channel = flow.channel(Frame, _AHEAD)
            flow.spawn("decode", self._pass_on)

    def _pass_on(self) -> None:
        assert self._channel is not None
        for item in self._items:
            self._channel.put(item)
        self._channel.close()

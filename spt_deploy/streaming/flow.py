"""Threads joined by bounded queues: the slowest sets the pace, the first error stops all, and nothing is left over."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from types import TracebackType
from typing import Generic, Literal, NoReturn, TypeVar

from typing_extensions import Self

T = TypeVar("T")


class Cancelled(Exception):  # noqa: N818 - no error of its own: another one is the reason
    """The flow was stopped; who hears it ends at once."""


class Empty(Enum):
    """What ``Channel.poll`` gives when it has nothing yet."""

    YET = 0


class Channel(Generic[T]):
    """A queue between threads that holds at most ``size`` items, made by `Flow.channel`.

    ``put`` waits while it is full, and iterating waits while it is empty, until it is closed and empty. Both raise
    ``Cancelled`` once the flow is cancelled; so do ``put_newest`` and ``poll``, which never wait.
    """

    def __init__(self, size: int, changed: threading.Condition | None = None) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = changed or threading.Condition()
        self._closed = self._cancelled = False

    def put(self, item: T) -> None:
        """Add an item as soon as there is room."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._size or self._cancelled)
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def put_newest(self, item: T, kind: type[object]) -> int:
        """Add an item at once; where there is no room the oldest of that kind give way, and their number is returned.

        Items of other kinds stay, even above ``size``: they are few, and must not be lost.
        """
        gone = 0
        with self._changed:
            if self._cancelled:
                raise Cancelled
            while len(self._items) >= self._size:
                oldest = next((index for index, held in enumerate(self._items) if isinstance(held, kind)), None)
                if oldest is None:
                    break
                del self._items[oldest]
                gone += 1
            self._items.append(item)
            self._changed.notify_all()
        return gone

    def poll(self) -> T | Literal[Empty.YET] | None:
        """The next item if there is one now; None when no more will come."""
        with self._changed:
            if self._cancelled:
                raise Cancelled
            if not self._items:
                return None if self._closed else Empty.YET
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    @property
    def is_ready(self) -> bool:
        """Whether ``poll`` would not come back empty-handed."""
        return bool(self._items) or self._closed or self._cancelled

    def get(self) -> T | None:
        """The next item; None when no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._closed or self._cancelled)
            if self._cancelled:
                raise Cancelled
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __iter__(self) -> Iterator[T]:
        while (item := self.get()) is not None:
            yield item

    def close(self) -> None:
        """No more items come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Wake everybody who waits, and drop what is held."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()


class _Worker(threading.Thread):
    """A thread that says when it has ended: ``is_alive`` may deny it too early, after a join that was interrupted."""

    ended = False

    def run(self) -> None:
        try:
            super().run()
        finally:
            self.ended = True


class Flow:
    """A set of threads and the channels between them, as a context manager.

    Leaving the block waits for all joined threads; when a thread failed, or the block itself, all channels are
    cancelled, who waits for a condition is woken, and after the threads have ended the first error is raised as it was.
    """

    def __init__(self) -> None:
        self._threads: list[_Worker] = []
        self._channels: list[Channel[object]] = []
        self._conditions: list[threading.Condition] = []
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def channel(self, kind: type[T], size: int, changed: threading.Condition | None = None) -> Channel[T]:
        """A channel of items of a kind; ``size`` at least 1. Who waits for any of several gives them one condition."""
        channel: Channel[T] = Channel(size, changed)
        with self._lock:
            self._channels.append(channel)  # type: ignore[arg-type]  # cancelled only
            too_late = self._error is not None
        if too_late:  # a thread made it after the end: whoever waits on it would wait for ever
            channel.cancel()
        return channel

    def condition(self) -> threading.Condition:
        """One that is notified, too, when the flow is cancelled; who waits for it looks at ``is_cancelled``."""
        condition = threading.Condition()
        with self._lock:
            self._conditions.append(condition)
        return condition

    @property
    def is_cancelled(self) -> bool:
        """Whether an error has stopped everything."""
        return self._error is not None

    def spawn(self, name: str, work: Callable[[], None], joined: bool = True) -> None:
        """Run ``work`` in a thread of that name.

        Args:
            name: of the thread.
            work: to be done.
            joined: whether the flow waits for it at the end; what listens to a silent camera may take long to notice.
        """
        thread = _Worker(target=self._run, args=(work,), name=name, daemon=True)
        thread.start()
        if joined:  # not before: one that could not be started never ends
            self._threads.append(thread)

    def cancel(self, error: BaseException) -> None:
        """Stop everything because of ``error``; only the first one counts."""
        with self._lock:
            if self._error is None:
                self._error = error
            channels, conditions = list(self._channels), list(self._conditions)
        for channel in channels:
            channel.cancel()
        for condition in conditions:
            with condition:
                condition.notify_all()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Cancelled:
            pass
        except BaseException as error:
            self.cancel(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Cancelled):
            self.cancel(error)
        try:
            for thread in self._threads:
                while not thread.ended:
                    thread.join(timeout=0.5)  # a join without limit would not hear a second Ctrl-C
                thread.join()
        except BaseException as interruption:
            self.cancel(interruption)
            for thread in self._threads:
                while not thread.ended:
                    time.sleep(0.01)
            raise
        if self._error is not None and self._error is not error:
            _raise_as_it_was(self._error)


def _raise_as_it_was(error: BaseException) -> NoReturn:
    """With its traceback, cause and context; raising alone would put the ``Cancelled`` of the caller into the last."""
    context, suppressed = error.__context__, error.__suppress_context__
    try:
        raise error
    finally:
        error.__context__, error.__suppress_context__ = context, suppressed

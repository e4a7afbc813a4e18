"""What threads share that all do the same: where their next piece of work comes from, and where its result goes.

Each takes a piece through all of its stages by itself. Where there are as many such threads as cores, none waits for a
core, as threads of stages that outnumber the cores do, and a piece stays in the cache of one core.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from spt_deploy.streaming.flow import Cancelled, Flow

T = TypeVar("T")


class Stock(Generic[T]):
    """Items that one of those who need them makes at a time, while the others live on what was made ahead.

    Without any ahead, threads fall into step and wait for each other's making again and again.

    Args:
        flow: whose threads take items.
        make: the next item; None when there are no more. Never called by two threads at a time.
        ahead: items that are made before one is taken, at least 1.
    """

    def __init__(self, flow: Flow, make: Callable[[], T | None], ahead: int) -> None:
        self._flow = flow
        self._make = make
        self._ahead = ahead
        self._made: deque[T] = deque()
        self._changed = flow.condition()
        self._making = self._ended = False
        self._waiting = 0

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for an item that is being made."""
        return self._waiting > len(self._made)

    def take(self) -> T | None:
        """The next item; None when there are no more. Raises ``Cancelled`` once the flow is cancelled."""
        while True:
            with self._changed:
                self._waiting += 1
                self._changed.wait_for(lambda: self._wants_more or self._made or self._ended or self._flow.is_cancelled)
                self._waiting -= 1
                if self._flow.is_cancelled:
                    raise Cancelled
                if not self._wants_more:
                    return self._made.popleft() if self._made else None
                self._making = True
            item = self._make()  # where it fails, the others wait until the flow is cancelled
            with self._changed:
                self._making = False
                if item is None:
                    self._ended = True
                else:
                    self._made.append(item)
                self._changed.notify_all()

    @property
    def _wants_more(self) -> bool:
        return not self._making and not self._ended and len(self._made) < self._ahead


class InOrder(Generic[T]):
    """Hands numbered items on in the order of their numbers, in whichever thread brings the one that was missing.

    Each thread takes the lowest number that nobody has; who is ``window`` numbers ahead waits for the others, so that
    no more items wait here than that, besides those in the hands of threads.

    Args:
        flow: whose threads put items.
        hand_on: gets each item, from number 0 on, and never two at a time.
        window: how far ahead of the next number one may be, at least 1.
    """

    def __init__(self, flow: Flow, hand_on: Callable[[T], None], window: int) -> None:
        self._flow = flow
        self._hand_on = hand_on
        self._window = window
        self._next = 0
        self._early: dict[int, T] = {}
        self._busy = False
        self._changed = flow.condition()

    def put(self, number: int, item: T) -> None:
        """Hand an item on, and those after it that came before; a thread that is at it already takes this one, too.

        Raises:
            Cancelled: once the flow is cancelled.
        """
        with self._changed:
            self._changed.wait_for(lambda: number < self._next + self._window or self._flow.is_cancelled)
            if self._flow.is_cancelled:
                raise Cancelled
            self._early[number] = item
            if self._busy:
                return
            self._busy = True
        while True:
            with self._changed:
                if self._next not in self._early:
                    self._busy = False
                    return
                next_item = self._early.pop(self._next)
                self._next += 1
                self._changed.notify_all()
            self._hand_on(next_item)

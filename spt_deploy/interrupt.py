"""Ctrl-C and SIGTERM as a request: finish the frame or step in hand, close what is open, then stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ECHO = 0.5  # seconds; GNU timeout sends its signal to the process and then to its whole group


class StopRequest:
    """Whether somebody has asked to stop; ``signal_number`` says by which signal, or by what is the same as one."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @property
    def made(self) -> bool:
        """Whether to stop as soon as things are in order."""
        return self.signal_number is not None

    def make(self) -> None:
        """Ask to stop as Ctrl-C does, unless somebody has; for a key in a window."""
        if not self.made:
            self.signal_number = signal.SIGINT


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM inside the block into a request; a second one raises KeyboardInterrupt.

    One that follows within half a second is the first again: ``timeout`` sends its signal twice. Outside the main
    thread, where Python allows no handlers, the request is simply never made.
    """
    request = StopRequest()
    first: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if not request.made:
            first, request.signal_number = now, number
        elif first is None or now - first > _ECHO:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C and SIGTERM as a request: finish the frame or step in hand, close what is open, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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

    Outside the main thread, where Python allows no handlers, the request is simply never made.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.signal_number = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The process that shows frames in windows; see `streaming.window`, which starts it and feeds it.

It reads frames from its standard input and writes a line to its standard output when the user wants to stop. Nothing
but OpenCV and NumPy is loaded here: beside PyAV's libraries OpenCV's windows hang (opencv/opencv#29195).
"""

from __future__ import annotations

import queue
import struct
import sys
import threading
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

HEADER = struct.Struct("<III")  # bytes of the title; height and width in pixels, 0 to close the window
STOP = b"stop\n"
STOP_KEYS = (ord("q"), 27)  # 27 is Escape

_AHEAD = 2  # frames that wait; a full queue slows the stream down to what can be shown
_PATIENCE_S = 0.02  # between two looks at the keyboard while no frame comes
_LARGEST = (1280, 720)  # width and height of a window at first; larger frames are scaled down to it

Message = tuple[str, npt.NDArray[np.uint8] | None]


def pack(title: str, image: npt.NDArray[np.uint8] | None) -> bytes:
    """A message to this process: H x W x 3 uint8, BGR, for the window of that title; None closes it."""
    name = title.encode("utf-8", "surrogateescape")
    if image is None:
        return HEADER.pack(len(name), 0, 0) + name
    return HEADER.pack(len(name), *image.shape[:2]) + name + image.tobytes()


def unpack(stream: BinaryIO) -> Message | None:
    """The next message; None at the end, also when it comes in the middle of one."""
    try:
        length, height, width = HEADER.unpack(_exactly(stream, HEADER.size))
        title = _exactly(stream, length).decode("utf-8", "replace")  # a window's title is for people
        pixels = _exactly(stream, height * width * 3)
    except EOFError:
        return None
    return title, np.frombuffer(pixels, np.uint8).reshape(height, width, 3) if pixels else None


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


class Viewer:
    """Windows by title; one thread makes one and uses it.

    Args:
        gui: OpenCV, or what stands in for it.
        out: gets ``STOP`` when the user presses q or Escape or closes a window.
    """

    def __init__(self, gui: Any, out: BinaryIO) -> None:
        self._gui, self._out = gui, out
        self._open: dict[str, bool] = {}  # whether it has been seen on the screen
        self._closed: set[str] = set()  # by the user

    def run(self, stream: BinaryIO) -> None:
        """Show what comes from ``stream``, every frame of it, until its end."""
        messages: queue.Queue[Message | None] = queue.Queue(_AHEAD)

        def read() -> None:
            while (message := unpack(stream)) is not None:
                messages.put(message)
            messages.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            with suppress(queue.Empty):
                message = messages.get(timeout=_PATIENCE_S)
                if message is None:
                    return
                self._take(*message)
            self._listen()

    def _take(self, title: str, image: npt.NDArray[np.uint8] | None) -> None:
        if image is None:
            if self._open.pop(title, None) is not None:
                with suppress(self._gui.error):  # the user was faster
                    self._gui.destroyWindow(title)
        elif title not in self._closed:
            if title not in self._open:
                self._make(title, image.shape[0], image.shape[1])
            self._gui.imshow(title, image)

    def _make(self, title: str, height: int, width: int) -> None:
        scale = min(1.0, _LARGEST[0] / width, _LARGEST[1] / height)
        flags = self._gui.WINDOW_NORMAL | self._gui.WINDOW_KEEPRATIO | self._gui.WINDOW_GUI_NORMAL  # no tool bar
        self._gui.namedWindow(title, flags)
        self._gui.resizeWindow(title, max(1, round(width * scale)), max(1, round(height * scale)))
        self._open[title] = False

    def _listen(self) -> None:
        """Let the windows live, and hear the user."""
        if not self._open:
            return
        stops = self._gui.waitKey(1) & 0xFF in STOP_KEYS
        for title, seen in list(self._open.items()):
            visible = self._gui.getWindowProperty(title, self._gui.WND_PROP_VISIBLE) >= 1
            self._open[title] = seen or visible
            if seen and not visible:
                self._closed.add(title)
                del self._open[title]
                stops = True
        if stops:
            self._out.write(STOP)
            self._out.flush()


def main() -> None:
    """Run the process."""
    import cv2

    Viewer(cv2, sys.stdout.buffer).run(sys.stdin.buffer)

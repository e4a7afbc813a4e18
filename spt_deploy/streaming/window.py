"""Windows with annotated frames, where there is a display.

They belong to a process of their own, `streaming.viewer`: OpenCV's windows hang in one that has loaded PyAV, want to be
used from one thread, on some systems from the main one, and may end their process when the display goes away.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.facts import ModelFacts
from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Prediction
from spt_deploy.streaming.frames import Frame, Image, Source
from spt_deploy.streaming.overlay import Drawing
from spt_deploy.streaming.viewer import pack

_PROBE = "import cv2; cv2.namedWindow('spt-deploy'); cv2.destroyAllWindows()"
_VIEWER = "from spt_deploy.streaming.viewer import main; main()"
_PROBE_TIMEOUT_S = 60.0  # a display may be at the other end of a slow line
_LAST_FRAMES_S = 5.0  # that a viewer has for what it was sent, once the stream is done


def check_display() -> None:
    """Try to open a window.

    Raises:
        RuntimeMissingError: when OpenCV has no windows, or there is no display for them.
    """
    try:
        done = subprocess.run(
            _python(_PROBE), capture_output=True, text=True, errors="replace", timeout=_PROBE_TIMEOUT_S
        )
        code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, said = 1, ""
    if code:
        raise RuntimeMissingError(missing_window(said))


def missing_window(said: str) -> str:
    """Why there is no window, and what to do, from what OpenCV said when it was to open one."""
    if "not implemented" in said:
        return (
            "this OpenCV was built without windows; pip uninstall opencv-python-headless, then pip install "
            "--force-reinstall opencv-python, or leave out --show"
        )
    return "there is no display for a window (DISPLAY or WAYLAND_DISPLAY); log in with one, or leave out --show"


class Window:
    """Shows every frame with its answer, a window for each source; q, Escape or closing a window asks to stop.

    Args:
        drawing: puts the answers over the frames.
        facts: of the model.
        stop: what the user makes.
    """

    def __init__(self, drawing: Drawing, facts: ModelFacts, stop: StopRequest) -> None:
        self._drawing, self._facts, self._stop = drawing, facts, stop
        # A session of its own: Ctrl-C in the terminal is for the stream, which then closes the windows.
        self._viewer = subprocess.Popen(
            _python(_VIEWER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name="window", daemon=True)
        self._listener.start()

    def prepare(self, source: Source, frame: Frame, prediction: Prediction) -> Image:
        """Draw."""
        return self._drawing.draw(frame.image, prediction, self._facts)

    def write(self, source: Source, frame: Frame, prediction: Prediction, prepared: Image) -> None:
        """Show a frame of ``source``; waits while earlier ones are being shown."""
        self._send(pack(source.name, prepared))

    def end(self, source: Source) -> None:
        """Close the window of ``source``."""
        self._send(pack(source.name, None))

    def keep(self) -> list[Path]:
        """Close all windows once they have shown what was sent; no file comes of it."""
        self._end(_LAST_FRAMES_S)
        return []

    def drop(self) -> None:
        """Close all windows."""
        self._end(0)

    def _send(self, message: bytes) -> None:
        assert self._viewer.stdin is not None
        try:
            self._viewer.stdin.write(message)
            self._viewer.stdin.flush()
        except BrokenPipeError:  # the display went away, and the windows with it: as if they had been closed
            self._stop.make()

    def _listen(self) -> None:
        assert self._viewer.stdout is not None
        for _ in self._viewer.stdout:
            self._stop.make()

    def _end(self, patience_s: float) -> None:
        assert self._viewer.stdin is not None
        assert self._viewer.stdout is not None
        with suppress(BrokenPipeError):  # it is gone already
            self._viewer.stdin.close()
        try:
            self._viewer.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._viewer.kill()
            self._viewer.wait()
        self._listener.join()
        self._viewer.stdout.close()


def _python(code: str) -> list[str]:
    """A process of this Python that finds what this one finds."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]

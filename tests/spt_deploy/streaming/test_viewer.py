"""Windows, with something in OpenCV's place that notes what is asked of it: few machines that test have a display."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Classification, Prediction
from spt_deploy.streaming.frames import Frame
from spt_deploy.streaming.overlay import Overlay
from spt_deploy.streaming.sources import open_sources
from spt_deploy.streaming.viewer import STOP, Viewer, pack, unpack
from spt_deploy.streaming.window import Window, check_display, missing_window
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner, facts_of, give, picture, write_video

# A module in the place of cv2 in the process of the windows: it notes what it is asked to do, and keys come from a
# file, one for each frame shown.
FAKE = """
import json, os, pathlib
here = pathlib.Path(__file__).parent
WINDOW_NORMAL = WINDOW_KEEPRATIO = WINDOW_GUI_NORMAL = WND_PROP_VISIBLE = 0
error = ValueError
shown = 0
def note(*what):
    with (here / "notes").open("a") as file:
        file.write(json.dumps(what) + chr(10))
def namedWindow(title, flags=0): note("open", title)
def resizeWindow(title, width, height): note("size", title, width, height)
def destroyWindow(title): note("close", title)
def destroyAllWindows(): pass
def getWindowProperty(title, which): return 1.0
def imshow(title, image):
    global shown
    shown += 1
    note("show", title, image.shape, int(image[0, 0, 0]))
    if (here / "dies").exists(): os._exit(1)
def waitKey(delay):
    keys = (here / "keys").read_text().split() if (here / "keys").exists() else []
    return int(keys[shown]) if shown < len(keys) else -1
"""


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module in OpenCV's place, for processes that are started from here."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/cv2.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "fake"


def notes_of(screen: Path) -> list[list[Any]]:
    notes = screen / "notes"
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()] if notes.exists() else []


def test_messages_arrive_as_they_were_sent() -> None:
    stream = io.BytesIO(pack("straße.mp4", picture(3)) + pack("b", None) + pack("cut", picture(1))[:-1])
    title, image = unpack(stream) or ("", None)
    assert title == "straße.mp4"
    np.testing.assert_array_equal(image, picture(3))
    assert unpack(stream) == ("b", None)
    assert unpack(stream) is None


class Gui:
    """OpenCV's names, and a screen in memory: the ``keys`` are of each look at the keyboard, and the user closes all
    windows after so many frames.
    """

    WINDOW_NORMAL = WINDOW_KEEPRATIO = WINDOW_GUI_NORMAL = WND_PROP_VISIBLE = 0
    error = ValueError

    def __init__(self, keys: tuple[int, ...] = (), hides_after: int = 10**9) -> None:
        self.keys, self.hides_after = iter(keys), hides_after
        self.sizes: dict[str, tuple[int, int]] = {}
        self.shown: list[str] = []

    def namedWindow(self, title: str, flags: int) -> None:  # noqa: N802
        self.sizes[title] = (0, 0)

    def resizeWindow(self, title: str, width: int, height: int) -> None:  # noqa: N802
        self.sizes[title] = (width, height)

    def imshow(self, title: str, image: object) -> None:
        self.shown.append(title)

    def destroyWindow(self, title: str) -> None:  # noqa: N802
        del self.sizes[title]

    def waitKey(self, delay: int) -> int:  # noqa: N802
        return next(self.keys, -1)

    def getWindowProperty(self, title: str, which: int) -> float:  # noqa: N802
        return float(len(self.shown) < self.hides_after)


def viewed(gui: Gui, *messages: bytes) -> bytes:
    out = io.BytesIO()
    Viewer(gui, out).run(io.BytesIO(b"".join(messages)))
    return out.getvalue()


def test_each_title_has_a_window_that_fits_the_screen_and_is_closed_at_its_end() -> None:
    gui = Gui()
    large = np.zeros((2160, 3840, 3), np.uint8)
    said = viewed(gui, pack("a", picture(0)), pack("b", large), pack("a", picture(1)), pack("a", None), pack("c", None))
    assert said == b""
    assert gui.shown == ["a", "b", "a"]
    assert gui.sizes == {"b": (1280, 720)}


@pytest.mark.parametrize(("key", "stops"), [(ord("q"), True), (27, True), (ord("x"), False), (-1, False)])
def test_q_and_escape_ask_to_stop(key: int, stops: bool) -> None:
    assert viewed(Gui((-1, key)), pack("a", picture(0)), pack("a", picture(1)), pack("a", picture(2))) == (
        STOP if stops else b""
    )


def test_a_window_that_the_user_closes_asks_to_stop_and_does_not_come_back() -> None:
    gui = Gui(hides_after=2)
    assert viewed(gui, *(pack("a", picture(number)) for number in range(5))) == STOP
    assert gui.shown == ["a", "a"]


def test_infer_shows_every_frame_once_in_order_and_its_files_are_the_same(screen: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", range(0, 400, 40))
    hidden = infer(["v.mp4"], ColourRunner(), batch=4, out="hidden", overlay=["none"])
    shown = infer(["v.mp4"], ColourRunner(), batch=4, out="shown", overlay=["none"], show=True)
    _, opened, size, *frames, closed = notes_of(screen)
    assert (opened, size, closed) == (["open", "v.mp4"], ["size", "v.mp4", 64, 48], ["close", "v.mp4"])
    assert [shape for _, _, shape, _ in frames] == [[48, 64, 3]] * 10
    np.testing.assert_allclose([grey for *_, grey in frames], [16 + number * 11 for number in range(10)], atol=5)
    assert shown.summary.stopped_by is None
    assert (tmp_path / "shown/predictions.jsonl").read_text() == (hidden.folder / "predictions.jsonl").read_text()


@pytest.mark.parametrize("how", ["keys", "dies"])
def test_a_key_or_the_end_of_the_display_stops_as_ctrl_c_does(how: str, screen: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", range(0, 40 * 2000, 40))
    (screen / how).write_text(f"-1 -1 {ord('q')}", encoding="utf-8")
    report = infer(["v.mp4"], ColourRunner(), batch=2, out="out", show=True, video=False)
    assert report.summary.stopped_by == signal.SIGINT
    assert "--resume --out out" in report.go_on
    assert 0 < report.summary.inferred < 2000
    assert len((tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()) == report.summary.inferred


def test_a_window_that_is_dropped_leaves_no_process(screen: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    window = Window(Overlay(), facts_of(), stop)
    (source,) = open_sources([write_video(tmp_path / "v.mp4", [0, 40])])
    give(window, source, Frame("v.mp4", 0, 0.0, picture(0)), Prediction(classes=(Classification(0, "red", 0.5),)))
    window.drop()
    assert window._viewer.poll() is not None
    assert not stop.made


def test_without_a_display_it_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "v.mp4", [0, 40])
    with pytest.raises(RuntimeMissingError, match="or leave out --show") as caught:
        infer(["v.mp4"], ColourRunner(), out="out", show=True)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_the_sentence_tells_an_opencv_without_windows_from_a_machine_without_a_display() -> None:
    headless = "cv2.error: OpenCV(5.0.0) window.cpp:1301: error: (-2) The function is not implemented. Rebuild"
    assert "pip install --force-reinstall opencv-python" in missing_window(headless)
    assert "there is no display" in missing_window("qt.qpa.xcb: could not connect to display :99\nAborted")


def test_a_display_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*arguments: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("python", 60)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(RuntimeMissingError, match="there is no display"):
        check_display()


def test_the_process_of_the_windows_does_not_load_pyav() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import cv2, spt_deploy.streaming.viewer; print('av' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

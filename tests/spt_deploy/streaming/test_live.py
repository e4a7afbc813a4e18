"""Live sources: frames are numbered and timed as they come, what is lost is tried again, nobody waits for long."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.errors import UsageError
from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Postprocessing
from spt_deploy.runtimes.base import Arrays
from spt_deploy.streaming.frames import Failure, Frame, Gap, Sampling, Source
from spt_deploy.streaming.live import Camera
from spt_deploy.streaming.network import NetworkStream
from spt_deploy.streaming.pipeline import Pipeline, Progress
from spt_deploy.streaming.summary import DECODE, StreamSummary
from spt_deploy.streaming.video import VideoFile
from spt_deploy.streaming.writers import PredictionLog
from spt_deploy.workflows.infer import UnreadableInputs, infer
from tests.spt_deploy.streaming.servers import (
    MJPEG,
    Send,
    file_server,
    http_server,
    jpegs,
    transport_stream,
)
from tests.spt_deploy.streaming.support import ColourRunner, lines_of, picture, write_video

ALL = Sampling()


def read(source: Source, sampling: Sampling = ALL) -> tuple[list[Frame], list[Gap], list[Failure]]:
    items = list(source.frames(sampling))
    return (
        [item for item in items if isinstance(item, Frame)],
        [item for item in items if isinstance(item, Gap)],
        [item for item in items if isinstance(item, Failure)],
    )


def run(
    sources: list[Source],
    out: Path,
    runner: ColourRunner | None = None,
    batch: int = 4,
    sampling: Sampling = ALL,
    stop: StopRequest | None = None,
    max_wait: float = 0.05,
) -> tuple[StreamSummary, list[dict[str, object]]]:
    log = PredictionLog(out)
    with runner or ColourRunner() as opened:
        pipeline = Pipeline(opened, Postprocessing(), log, None, batch, max_wait=max_wait)
        summary = pipeline.run(sources, sampling, stop or StopRequest())
    return summary, [json.loads(line) for line in log.keep()[0].read_text(encoding="utf-8").splitlines()]


def pictures(count: int, interval: float = 0.002) -> Callable[[Send], None]:
    return lambda send: jpegs(send, range(count), interval)


def then_silence(count: int, seconds: float) -> Callable[[Send], None]:
    def connection(send: Send) -> None:
        jpegs(send, range(count), 0.002)
        time.sleep(seconds)

    return connection


def test_frames_are_numbered_and_timed_as_they_come() -> None:
    with http_server([pictures(9)], MJPEG) as url:
        before = time.time()
        frames, gaps, _ = read(NetworkStream(url, reconnect=0))
    assert [frame.index for frame in frames] == list(range(9))
    times = [frame.time for frame in frames]
    assert times[0] == 0
    assert times == sorted(times)  # type: ignore[type-var]
    assert all(frame.taken_at is not None and before <= frame.taken_at <= time.time() for frame in frames)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == pytest.approx([16 + 11 * n for n in range(9)], abs=3)
    assert not gaps


def test_a_stream_that_hangs_up_is_connected_again_and_the_gap_is_told() -> None:
    said: list[str] = []
    with http_server([pictures(5), pictures(4)], MJPEG) as url:
        source = NetworkStream(url, reconnect=0.7)
        source.on_notice = said.append
        frames, (gap,), (failure,) = read(source)
    assert [frame.index for frame in frames] == list(range(9))
    assert gap.index == 5
    assert gap.seconds >= 0.5
    assert gap.time == frames[4].time
    assert gap.time + gap.seconds == pytest.approx(frames[5].time)
    assert failure.reason.startswith(f"{url} was lost after 9 frames (")
    assert failure.reason.endswith(") and did not come back in 0.7 s")
    lost = f"{url} was lost ({gap.reason}); trying again for 0.7 s"
    assert said == [lost, f"{url} is back after {gap.seconds:.1f} s", lost]


def test_a_stream_that_falls_silent_is_connected_again() -> None:
    with http_server([then_silence(5, 5), pictures(4)], MJPEG) as url:
        source = NetworkStream(url, reconnect=5, silence=0.4)
        frames, (gap,), failures = read(source, Sampling(max_frames=9))
    assert [frame.index for frame in frames] == list(range(9))
    assert gap.reason == "nothing came for 0.4 s"
    assert gap.time == frames[4].time
    assert gap.seconds >= 0.4
    assert not failures


def test_without_reconnect_the_end_is_the_end() -> None:
    data = transport_stream(30)
    with http_server([lambda send: send(data), pictures(4)], "video/mp2t") as url:
        frames, gaps, _ = read(NetworkStream(url, reconnect=0))
    assert len(frames) == 30
    assert not gaps


def test_nobody_at_the_address_is_told_at_once() -> None:
    frames, _, (failure,) = read(NetworkStream("http://127.0.0.1:9/stream", reconnect=60))
    assert not frames
    assert failure.reason == "http://127.0.0.1:9/stream cannot be read: Connection refused"


def test_a_host_that_nobody_knows_is_named() -> None:
    (failure,) = read(NetworkStream("rtsp://nosuch.invalid/stream", reconnect=60))[2]
    assert failure.reason == "rtsp://nosuch.invalid/stream cannot be read: there is no host nosuch.invalid"


@pytest.fixture
def folder_server(tmp_path: Path) -> Iterator[str]:
    with file_server(tmp_path) as url:
        yield url


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize("begin", [0, 5000])
def test_a_file_that_lies_elsewhere_is_a_recording(folder_server: str, tmp_path: Path, begin: int, name: str) -> None:
    ticks = [begin + tick for tick in (0, 40, 100, 180, 400)]
    path = write_video(tmp_path / name, ticks, container_options={"movflags": "+faststart"} if name == "v.mp4" else {})
    source = NetworkStream(f"{folder_server}/{name}", reconnect=60)
    frames, gaps, failures = read(source)
    ours, theirs = list(VideoFile(path).frames(ALL)), frames
    assert [(f.index, f.time) for f in theirs] == [(f.index, f.time) for f in ours if isinstance(f, Frame)]
    assert (source.live, gaps, failures) == (False, [], [])


def test_a_file_that_lies_elsewhere_and_is_lost_half_way_does_not_begin_again(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 8000, 40), container_options={"movflags": "+faststart"})
    data = video.read_bytes()

    class HangsUp(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) * 2 // 3])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HangsUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = NetworkStream(f"http://127.0.0.1:{server.server_port}/v.mp4", reconnect=2)
        frames, gaps, failures = read(source, Sampling(max_frames=300))
        server.shutdown()
    (failure,) = failures
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert 0 < len(frames) < 200
    assert frames[-1].time == pytest.approx((len(frames) - 1) * 0.04)
    assert not gaps
    assert failure.reason == f"{source.name} was lost after {len(frames)} frames (Input/output error)"


def test_the_duration_of_a_file_that_lies_elsewhere_goes_by_its_own_clock(folder_server: str, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", range(0, 4000, 40), container_options={"movflags": "+faststart"})
    frames, _, _ = read(NetworkStream(f"{folder_server}/v.mp4"), Sampling(start=10, duration=1.0))
    assert [frame.index for frame in frames] == list(range(10, 35))


def test_a_camera_that_is_not_there_is_told_of_while_another_goes_on(tmp_path: Path) -> None:
    told = threading.Event()
    lost: list[Failure] = []

    def until_it_is_told(send: Send) -> None:
        for number in range(2000):
            if told.is_set():
                return
            jpegs(send, [number % 20])

    def hear(now: Progress) -> None:
        lost.extend(now.lost)
        if lost:
            told.set()

    gone = "http://127.0.0.1:1/camera"
    with http_server([until_it_is_told], MJPEG) as url, pytest.raises(UnreadableInputs):
        infer([url, gone], ColourRunner(), out=tmp_path / "out", video=False, reconnect=0, on_progress=hear)
    assert told.is_set()
    assert lost[0].source == gone  # the other ends when this is told, and may be told of, too


def test_a_file_that_lies_elsewhere_is_resumed_where_it_was(folder_server: str, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", range(0, 800, 40), container_options={"movflags": "+faststart"})
    url, out = f"{folder_server}/v.mp4", tmp_path / "out"
    infer([url], ColourRunner(), out=out, video=False, max_frames=5)
    rest = infer([url], ColourRunner(), out=out, video=False, resume=True)
    assert (rest.summary.resumed, rest.summary.inferred) == (5, 15)
    assert not rest.summary.follows_live  # the model, or another stage, sets the pace
    assert [line["frame"] for line in lines_of(out)] == list(range(20))


def test_a_camera_gives_what_opencv_reads(tmp_path: Path) -> None:
    """OpenCV opens a file as it opens a camera; this one ends as a camera does that is unplugged."""
    video = write_video(tmp_path / "v.avi", range(0, 280, 40), codec="mpeg4")
    frames, gaps, (failure,) = read(Camera(str(video), reconnect=0), Sampling(stride=2))
    assert [frame.index for frame in frames] == [0, 2, 4, 6]
    assert frames[0].image.shape == (48, 64, 3)
    assert not gaps
    assert failure.reason == f"{video} was lost after 7 frames (the camera gives no more frames)"


def test_a_camera_that_is_not_there() -> None:
    (failure,) = read(Camera(63))[2]
    assert failure.reason == "63 cannot be read: there is no camera 63, or another program holds it"


def test_a_time_to_wait_below_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="reconnect is -1"):
        NetworkStream("rtsp://host/a", reconnect=-1)


class SlowRunner(ColourRunner):
    """As slow as a model may be."""

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        time.sleep(0.03)
        return super()._run(images, threshold)


def test_who_is_slower_than_a_live_source_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    with http_server([pictures(120, 0.002)], MJPEG) as url:
        summary, lines = run([NetworkStream(url, reconnect=0)], tmp_path, SlowRunner(), batch=1)
    indices = [line["frame"] for line in lines]
    assert indices == sorted(set(indices))  # type: ignore[type-var]
    assert indices[-1] == 119  # the newest is never the one to go
    assert summary.dropped > 0
    assert summary.read == 120 == summary.inferred + summary.dropped
    assert summary.inferred == len(lines)


def test_a_recording_drops_nothing_beside_a_live_source(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 800, 40))
    with http_server([pictures(60, 0.005)], MJPEG) as url:
        live = NetworkStream(url, reconnect=0)
        summary, lines = run([VideoFile(video), live], tmp_path / "out", SlowRunner(), batch=2)
    assert [line["frame"] for line in lines if line["source"] == str(video)] == list(range(20))
    assert sum(line["source"] == url for line in lines) == 60 - summary.dropped


def test_the_gap_is_a_line_before_the_frame_that_follows_it(tmp_path: Path) -> None:
    with http_server([pictures(5, 0.01), pictures(4, 0.01)], MJPEG) as url:
        summary, lines = run([NetworkStream(url, reconnect=5)], tmp_path, sampling=Sampling(max_frames=9))
    place = next(index for index, line in enumerate(lines) if "gap" in line)
    assert lines[place]["before_frame"] == 5
    assert lines[place - 1]["frame"] < 5 <= lines[place + 1]["frame"]  # type: ignore[operator]
    assert lines[place]["gap"] >= 0.5  # type: ignore[operator]
    assert summary.gaps == 1
    assert "taken_at" in lines[0]


def test_a_batch_does_not_wait_for_a_silent_source(tmp_path: Path) -> None:
    runner = ColourRunner()
    with http_server([then_silence(3, 1.0)], MJPEG) as url:
        summary, lines = run([NetworkStream(url, reconnect=0)], tmp_path, runner, batch=64, max_wait=0.02)
    assert lines[-1]["frame"] == 2
    assert (summary.read, summary.inferred) == (3, len(lines))
    # Waiting for frames is no work.
    assert summary.stages[DECODE].total < 0.5


def test_answers_are_there_while_the_source_is_silent(tmp_path: Path) -> None:
    stop, done = StopRequest(), threading.Event()
    with http_server([then_silence(3, 8.0)], MJPEG) as url:
        source = NetworkStream(url, reconnect=60)

        def watch() -> None:
            give_up = time.monotonic() + 7
            while time.monotonic() < give_up:
                (found,) = tmp_path.glob(".predictions.*.jsonl")
                if '"frame": 2' in found.read_text(encoding="utf-8"):
                    done.set()
                    break
                time.sleep(0.01)
            stop.signal_number = 2

        log = PredictionLog(tmp_path)
        threading.Thread(target=watch, daemon=True).start()
        start = time.monotonic()
        with ColourRunner() as runner:
            Pipeline(runner, Postprocessing(), log, None, 64).run([source], ALL, stop)
        log.keep()
    assert done.is_set()
    assert time.monotonic() - start < 6  # a stop does not wait until the silence is over


class Late(Source):
    """Its time is over after its first frame, and it goes on all the same."""

    live, prompt = True, False

    def __init__(self) -> None:
        super().__init__("late")
        self.asked_to_end, self.ended = threading.Event(), threading.Event()
        self._over = False

    @property
    def is_over(self) -> bool:
        return self._over

    def total(self) -> None:
        pass

    def stop(self) -> None:
        self.asked_to_end.set()

    def frames(self, sampling: Sampling) -> Iterator[Frame]:
        try:
            yield Frame(self.name, 0, 0.0, picture(0))
            self._over = True
            self.asked_to_end.wait(10)
            for number in range(1, 7):
                yield Frame(self.name, number, number / 25, picture(number))
        finally:
            self.ended.set()


def test_what_a_source_brings_after_its_end_is_neither_read_nor_dropped(tmp_path: Path) -> None:
    late = Late()
    summary, lines = run([late], tmp_path)
    assert late.ended.wait(10)
    assert [line["frame"] for line in lines] == [0]
    assert (summary.read, summary.inferred, summary.dropped) == (1, 1, 0)


def test_duration_ends_a_live_source_even_in_its_silence(tmp_path: Path) -> None:
    start = time.monotonic()
    with http_server([then_silence(3, 8.0)], MJPEG) as url:
        summary, lines = run([NetworkStream(url, reconnect=60)], tmp_path, sampling=Sampling(duration=0.3))
    assert time.monotonic() - start < 6
    assert lines[-1]["frame"] == 2
    assert not summary.failures


def test_duration_of_a_recording_goes_by_its_own_clock(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", range(0, 4000, 40))
    frames = [item for item in VideoFile(video).frames(Sampling(start=10, duration=1.0)) if isinstance(item, Frame)]
    assert [frame.index for frame in frames] == list(range(10, 35))

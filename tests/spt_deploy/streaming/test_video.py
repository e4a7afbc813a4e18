"""Video files: every frame, at its own time, upright; and what is missing or broken is said."""

from __future__ import annotations

import errno
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.packet import Packet
from av.video.stream import VideoStream

from spt_deploy.errors import SourceError
from spt_deploy.streaming.frames import Failure, Frame, Sampling
from spt_deploy.streaming.video import FrameClock, VideoFile
from tests.spt_deploy.streaming.support import picture, read_times, write_video

UNEVEN = [0, 40, 55, 130, 131, 400, 520, 1000, 1033]  # milliseconds


def frames_of(path: Path, sampling: Sampling | None = None) -> list[Frame]:
    items = list(VideoFile(path).frames(sampling or Sampling()))
    assert not [item for item in items if isinstance(item, Failure)]
    return [item for item in items if isinstance(item, Frame)]


def failure_of(path: Path) -> tuple[int, str]:
    """How many frames came before the failure, and its reason."""
    *frames, failure = VideoFile(path).frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.source == str(path)
    return len(frames), failure.reason


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_times_of_a_variable_frame_rate_are_the_files_own(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"v.{suffix}", UNEVEN)
    frames = frames_of(path)
    assert [frame.time for frame in frames] == [tick / 1000 for tick in UNEVEN] == read_times(path)
    assert [frame.index for frame in frames] == list(range(len(UNEVEN)))
    assert {frame.source for frame in frames} == {str(path)}


def test_the_frames_are_the_pictures_that_were_encoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(0, 1200, 40), crf=1)
    for frame in frames_of(path):
        assert frame.image.dtype == np.uint8
        difference = frame.image.astype(int) - picture(frame.index)
        assert np.abs(np.median(difference, axis=(0, 1))).max() <= 5  # neighbours differ by 11


def test_frames_and_times_equal_opencvs(vtest_video: Path) -> None:
    capture = cv2.VideoCapture(str(vtest_video))
    for frame in frames_of(vtest_video, Sampling(max_frames=20)):
        whole, image = capture.read()
        assert whole
        np.testing.assert_array_equal(frame.image, image)
        assert frame.time == pytest.approx(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    capture.release()


def test_the_clock_of_a_transport_stream_starts_at_its_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts", [tick + 9_000_000 for tick in UNEVEN])
    assert read_times(path)[0] >= 9000
    assert [frame.time for frame in frames_of(path)] == pytest.approx([tick / 1000 for tick in UNEVEN], abs=1e-4)


@pytest.mark.parametrize(
    ("has_origin", "pts", "expected"),
    [
        (True, [0, 40, 95], [0, 40, 95]),
        (True, [500, 540], [500, 540]),
        (True, [-80, -40, 0], [0, 40, 80]),  # no player shows a frame before 0
        (False, [9000, 9040], [0, 40]),
        (False, [None, 9000, 9055], [0, 40, 95]),
        (True, [None, 40, None, 30, 200], [0, 40, 80, 120, 200]),
        (True, [0, 0, 0, 500], [0, 1, 2, 500]),
        (True, [0, 40, 40, 80, 120], [0, 40, 41, 80, 120]),  # two of one time, and the later ones where they belong
        (True, [0, 40, 0, 40, 80], [0, 40, 80, 120, 160]),  # two recordings that were joined
    ],
    ids=str,
)
def test_times_are_never_negative_and_always_increase(
    has_origin: bool, pts: list[int | None], expected: list[int]
) -> None:
    clock = FrameClock(Fraction(1, 1000), Fraction(25), has_origin)
    frames = [SimpleNamespace(pts=ticks, duration=0) for ticks in pts]
    assert [clock.time_of(frame) for frame in frames] == [  # type: ignore[arg-type]
        Fraction(ticks, 1000) for ticks in expected
    ]


def test_a_video_that_has_gone_since_it_was_named_is_a_failure(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", UNEVEN)
    video = VideoFile(path)
    path.unlink()
    (failure,) = video.frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason.endswith("a video that FFmpeg can read: No such file or directory")


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx"), ("wmv", "wmv2"), ("nut", "mpeg4"), ("flv", "libx264")],
)
def test_a_video_that_starts_late_keeps_its_start_and_is_not_taken_for_a_damaged_one(
    suffix: str, codec: str, tmp_path: Path
) -> None:
    path = write_video(tmp_path / f"v.{suffix}", range(125, 175), Fraction(1, 25), codec=codec)
    frames = frames_of(path)
    assert (frames[0].time, frames[-1].time) == (5, 6.96)
    assert VideoFile(path).total() == pytest.approx(len(frames), abs=2)  # flv and nut are some milliseconds off


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_video_that_starts_late_and_is_cut_short_is_a_failure(suffix: str, tmp_path: Path) -> None:
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = write_video(tmp_path / f"v.{suffix}", range(125, 325), Fraction(1, 25), container_options=options)
    count, reason = failure_of(cut_short(path, 0.75))
    assert 0 < count < 200
    assert "damaged" in reason


def test_sampling_takes_every_nth_frame_with_its_own_number_and_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(0, 2000, 40))
    frames = frames_of(path, Sampling(start=3, stride=7, max_frames=4))
    assert [frame.index for frame in frames] == [3, 10, 17, 24]
    assert [frame.time for frame in frames] == pytest.approx([0.12, 0.4, 0.68, 0.96])


def test_a_video_of_one_frame_and_one_of_odd_size_are_read(tmp_path: Path) -> None:
    assert len(frames_of(write_video(tmp_path / "one.mp4", [0]))) == 1
    odd = write_video(tmp_path / "odd.avi", range(5), Fraction(1, 25), size=(33, 47), codec="mpeg4")
    assert frames_of(odd)[0].image.shape == (33, 47, 3)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_the_total_is_what_the_file_says(codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(0, 400, 40), codec=codec)
    assert VideoFile(path).total() == 10


def test_the_total_of_a_file_without_a_count_follows_from_its_duration(tmp_path: Path) -> None:
    assert VideoFile(write_video(tmp_path / "v.mkv", range(0, 4000, 40))).total() == 100


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_metadata_is_obeyed_as_opencv_does(degrees: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [0, 40, 80])
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + 4 + 20 + 8 + 8  # version and flags, times and id, reserved, layer to volume
    cos, sin = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    fixed = [cos << 16, sin << 16, 0, -sin * 65536, cos << 16, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = struct.pack(">9i", *fixed)
    path.write_bytes(data)
    capture = cv2.VideoCapture(str(path))
    expected = capture.read()[1]
    capture.release()
    np.testing.assert_array_equal(frames_of(path)[0].image, expected)


def cut_short(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("v.mp4", "libx264", {"movflags": "faststart"}), ("v.mkv", "libx264", {}), ("v.avi", "mpeg4", {})],
)
def test_a_video_that_is_cut_short_gives_what_it_has_and_then_the_failure(
    name: str, codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, range(200), Fraction(1, 25), codec=codec, container_options=options)
    whole = path.stat().st_size
    count, reason = failure_of(cut_short(path, 0.75))
    assert path.stat().st_size < whole
    assert 0 < count < 200
    assert "damaged" in reason


def test_a_broken_packet_is_a_failure_and_the_frames_after_it_are_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(200), Fraction(1, 25), g=10)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pos]
    victim = packets[100]
    assert victim.pos is not None
    data[victim.pos : victim.pos + victim.size] = b"\xff" * victim.size
    path.write_bytes(data)
    *frames, failure = VideoFile(path).frames(Sampling())
    assert isinstance(failure, Failure)
    assert "packet" in failure.reason
    last = frames[-1]
    assert isinstance(last, Frame)
    assert last.time == pytest.approx(199 / 25)
    assert len(frames) > 180


def test_a_file_that_cannot_be_read_any_further_gives_what_its_decoder_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.mp4", range(200), Fraction(1, 25), bf=3, g=40)
    video = VideoFile(path)

    def opened(path: Path) -> closing[Any]:
        container = av.open(str(path))

        def demux(stream: VideoStream) -> Iterator[Packet]:
            yield from islice(container.demux(stream), 80)
            raise OSError(errno.EIO, "Input/output error")

        broken = closing(container)
        vars(broken).update(streams=container.streams, demux=demux)
        return broken

    monkeypatch.setattr("spt_deploy.streaming.video._open", opened)
    *frames, failure = video.frames(Sampling())
    assert isinstance(failure, Failure)
    assert "Input/output error" in failure.reason
    assert len(frames) == 80


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return path


def garbage_frames(path: Path) -> Path:
    write_video(path, range(0, 400, 40))
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = b"\xaa" * (end - start)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("make", [no_frames, garbage_frames])
def test_a_video_without_a_frame_is_one_failure(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "v.mp4")
    try:
        video = VideoFile(path)
    except SourceError as error:
        assert "v.mp4" in str(error)  # noqa: PT017 - either is right: the header may already tell
        return
    (failure,) = video.frames(Sampling())
    assert isinstance(failure, Failure)
    assert "frame" in failure.reason


def sound(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def text(path: Path) -> None:
    path.write_text("a line of text\n" * 50, encoding="utf-8")


def image(path: Path) -> None:
    path.write_bytes(cv2.imencode(".png", picture(0))[1].tobytes())


@pytest.mark.parametrize("make", [sound, text, image, Path.touch])
@pytest.mark.parametrize("name", ["v.mp4", "v.txt", "v.bin"])
def test_what_is_no_video_is_refused_by_name(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(SourceError, match=name):
        VideoFile(path)


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", [0, 40]).rename(tmp_path / "rtsp:v.mp4")
    code = (
        "from pathlib import Path; from spt_deploy.streaming.video import VideoFile;"
        "print(VideoFile(Path('rtsp:v.mp4')).total())"
    )
    found = [str(Path(entry).absolute()) for entry in sys.path]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {found!r}; {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "2\n"


def test_a_title_that_is_not_utf_8_does_not_hide_the_video(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "name"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="bgr24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"name", b"n\xe4me"))
    assert len(frames_of(path)) == 1

"""Frames that another program writes into standard input."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from spt_deploy.errors import SourceError
from spt_deploy.streaming.frames import Failure, Frame, Sampling
from spt_deploy.streaming.sources import open_sources
from spt_deploy.streaming.standard_input import StandardInput
from spt_deploy.streaming.video import VideoFile
from tests.spt_deploy.streaming.servers import transport_stream
from tests.spt_deploy.streaming.support import picture, write_video


def indices(data: bytes, raw: tuple[int, int] | None = None, sampling: Sampling | None = None) -> list[object]:
    items = StandardInput(io.BytesIO(data), raw).frames(sampling or Sampling())
    return [item.index if isinstance(item, Frame) else item for item in items]


def jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", picture(number))[1].tobytes()


def test_jpegs_one_after_the_other() -> None:
    frames = list(StandardInput(io.BytesIO(b"".join(map(jpeg, range(7))))).frames(Sampling()))
    assert [frame.index for frame in frames if isinstance(frame, Frame)] == list(range(7))
    colours = [int(frame.image[0, 0, 0]) for frame in frames if isinstance(frame, Frame)]
    assert colours == pytest.approx([16 + 11 * number for number in range(7)], abs=3)


def test_bare_frames() -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 48, 64, 3), dtype=np.uint8)
    frames = list(StandardInput(io.BytesIO(images.tobytes()), (48, 64)).frames(Sampling()))
    for frame, image in zip(frames, images, strict=True):
        assert isinstance(frame, Frame)
        np.testing.assert_array_equal(frame.image, image)


def test_bare_frames_that_a_list_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), dtype=np.uint8)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(images.tobytes())))
    (tmp_path / "sources.txt").write_text("-\n", encoding="utf-8")
    (source,) = open_sources([tmp_path / "sources.txt"], raw=(48, 64))
    frames = [item for item in source.frames(Sampling()) if isinstance(item, Frame)]
    np.testing.assert_array_equal(np.stack([frame.image for frame in frames]), images)


def test_standard_input_that_is_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as Python has it after `<&-`
    with pytest.raises(SourceError, match="standard input is closed"):
        open_sources(["-"])


class Asked(io.BytesIO):
    """Knows whether somebody wanted more than there is, who would wait for ever at a pipe that stays open."""

    in_vain = False

    def read1(self, size: int | None = -1, /) -> bytes:
        data = super().read1(size)
        self.in_vain = self.in_vain or not data
        return data


def test_after_the_last_frame_that_is_taken_nobody_waits_for_another() -> None:
    file = Asked(b"".join(picture(number).tobytes() for number in range(5)))
    frames = list(StandardInput(file, (48, 64)).frames(Sampling(start=2, max_frames=3)))
    assert [frame.index for frame in frames if isinstance(frame, Frame)] == [2, 3, 4]
    assert not file.in_vain


def test_duration_counts_from_the_first_frame_that_is_taken() -> None:
    assert indices(transport_stream(50), sampling=Sampling(start=30, duration=0.4)) == list(range(30, 40))


@pytest.mark.parametrize(("name", "first"), [("v.ts", 0), ("v.mkv", 5)])
def test_times_are_those_of_the_same_bytes_in_a_file(tmp_path: Path, name: str, first: float) -> None:
    path = write_video(tmp_path / name, range(5000, 5200, 40))
    piped, read = (
        [frame.time for frame in source.frames(Sampling()) if isinstance(frame, Frame)]
        for source in (StandardInput(io.BytesIO(path.read_bytes())), VideoFile(path))
    )
    assert piped == read
    assert piped == pytest.approx([first + 0.04 * number for number in range(5)])  # a transport stream has no origin


@pytest.mark.parametrize("kind", ["mpegts", "matroska"])
def test_any_container_that_can_be_read_from_a_pipe(kind: str) -> None:
    data = transport_stream(20)
    if kind == "matroska":
        file = io.BytesIO()
        with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="matroska") as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    container.mux(packet)
        data = file.getvalue()
    assert indices(data, sampling=Sampling(start=1, stride=3, max_frames=4)) == [1, 4, 7, 10]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "stdin is empty"),
        (b"no video at all" * 1000, "stdin holds no video that FFmpeg can read"),
    ],
    ids=["nothing", "words"],
)
def test_what_is_no_video_is_said(data: bytes, sentence: str) -> None:
    (failure,) = indices(data)
    assert isinstance(failure, Failure)
    assert failure.reason.startswith(sentence)


def test_a_stream_that_breaks_keeps_what_came_before() -> None:
    whole = b"".join(map(jpeg, range(5)))
    assert indices(whole + jpeg(5)[:300])[:5] == list(range(5))


def test_an_mp4_whose_index_lies_at_its_end_cannot_come_through_a_pipe(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.mp4", range(0, 800, 40)).read_bytes()
    index = data.rindex(b"moov") - 4
    room = 4 << 20  # further than FFmpeg reads ahead
    (failure,) = indices(data[:index] + struct.pack(">I4s", room, b"free") + bytes(room - 8) + data[index:])
    assert isinstance(failure, Failure)
    assert "an MP4 whose index lies at its end cannot be read from a pipe: name the file instead" in failure.reason

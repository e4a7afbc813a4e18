"""Addresses: who does not answer is named, and a recording that lies elsewhere is held to what it declares."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from spt_deploy.streaming import network
from spt_deploy.streaming.frames import Failure, Frame, Gap, Sampling
from spt_deploy.streaming.network import NetworkStream, without_password
from spt_deploy.streaming.video import VideoFile
from tests.spt_deploy.streaming.servers import file_server, http_server, transport_stream
from tests.spt_deploy.streaming.support import write_video


def told(items: Iterator[Frame | Gap | Failure], name: str) -> tuple[int, list[str]]:
    """How many frames there are, and what is wrong, with the source's name left out."""
    found = list(items)
    reasons = [item.reason.replace(name, "") for item in found if isinstance(item, Failure)]
    return sum(isinstance(item, Frame) for item in found), reasons


def served(path: Path) -> tuple[int, list[str]]:
    """See ``told``: of a file that lies elsewhere."""
    with file_server(path.parent) as url:
        return told(NetworkStream(f"{url}/{path.name}", reconnect=0).frames(Sampling()), f"{url}/{path.name}")


def test_a_server_that_takes_the_call_and_says_nothing_is_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_CONNECT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/camera"
        (failure,) = NetworkStream(url, reconnect=60).frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason == f"{url} cannot be read: nothing came for 0.3 s"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "v.mp4", range(0, 8000, 40), container_options={"movflags": "faststart"}, g=10)


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_a_recording_that_lies_elsewhere_and_was_cut_short_fails_as_a_file_does(share: float, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", range(0, 8000, 40))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    count, reasons = told(VideoFile(path).frames(Sampling()), str(path))
    assert served(path) == (count, reasons)
    assert (count == 200, bool(reasons)) == (share == 1, share < 1)


def test_a_recording_that_lies_elsewhere_with_damaged_packets_fails_at_its_end(video: Path) -> None:
    data = bytearray(video.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 200] = b"\xff" * 200
    video.write_bytes(data)
    count, (reason,) = served(video)
    assert 100 < count < 200
    assert "unreadable; the rest was used" in reason


def test_a_recording_that_lies_elsewhere_without_a_frame_is_a_failure(video: Path) -> None:
    data = video.read_bytes()
    start = data.index(b"mdat") + 4
    video.write_bytes(data[:start] + b"\xaa" * (len(data) - start))
    assert served(video) == (0, [" cannot be read: it has no frame"])


def test_a_recording_whose_connection_is_lost_gives_what_its_decoder_held_back(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.mkv", range(0, 2400, 40), bf=3).read_bytes()
    # It hangs up, and never said how much comes.
    with http_server([lambda send: send(data)], "video/x-matroska") as url:
        count, (reason,) = told(NetworkStream(url, reconnect=0).frames(Sampling()), url)
    assert count == 60
    assert "was lost after 60 frames" in reason


def test_an_index_at_the_end_of_a_recording_needs_a_server_that_gives_parts_of_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(0, 8000, 40))
    data = path.read_bytes()
    index = data.rindex(b"moov") - 4
    room = 4 << 20  # further than FFmpeg reads ahead
    path.write_bytes(data[:index] + struct.pack(">I4s", room, b"free") + bytes(room - 8) + data[index:])
    count, (reason,) = served(path)
    assert count == 0
    assert "an MP4 whose index lies at its end needs a server that gives parts of it (Range)" in reason


def test_a_protocol_that_ffmpeg_was_built_without_is_named() -> None:
    (failure,) = NetworkStream("nosuch://host/x").frames(Sampling())
    assert isinstance(failure, Failure)
    assert " has no nosuch; let another FFmpeg read it and pipe it into -" in failure.reason


def test_a_transport_stream_of_a_known_size_is_a_recording_and_does_not_begin_again(tmp_path: Path) -> None:
    (tmp_path / "v.ts").write_bytes(transport_stream(30))
    with file_server(tmp_path) as url:
        source = NetworkStream(f"{url}/v.ts", reconnect=60)
        assert told(source.frames(Sampling(max_frames=50)), source.name) == (30, [])
    assert not source.live


@pytest.mark.parametrize(
    "password", ["secret", "se/cret", "se?cret", "se#cret", "s@cret", "s:cret", "12/secret", "[secret"]
)
def test_no_character_in_a_password_gives_it_away(password: str) -> None:
    assert without_password(f"rtsp://me:{password}@host:554/a") == "rtsp://me:***@host:554/a"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "http://cam/video.cgi?user=admin&pwd=a1!&resolution=32",
            "http://cam/video.cgi?user=admin&pwd=***&resolution=32",
        ),
        ("rtmp://cam/bcs/main?channel=0&user=me&password=x%20y", "rtmp://cam/bcs/main?channel=0&user=me&password=***"),
        ("https://a:b@cam/live?Token=e.y.J#t", "https://a:***@cam/live?Token=***#t"),
        ("rtsp://cam/live?profile=passport&monkey=1", "rtsp://cam/live?profile=passport&monkey=1"),
        ("shots/?password=1.jpg", "shots/?password=1.jpg"),
    ],
)
def test_a_secret_in_the_query_is_hidden_and_what_is_none_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_password_that_ends_the_address_is_told_to_be_escaped() -> None:
    (failure,) = NetworkStream("rtsp://nosuch.invalid:se/cret@host/a").frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason.endswith(
        "there is no host nosuch.invalid; in a password write / as %2F, ? as %3F and # as %23"
    )
    assert "cret" not in failure.reason

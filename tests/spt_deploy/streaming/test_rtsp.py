"""Cameras in the network: inside the connection or beside it, locked, and silent."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from spt_deploy.streaming.frames import Failure, Frame, Gap, Sampling
from spt_deploy.streaming.network import NetworkStream
from tests.spt_deploy.streaming.rtsp_camera import PASSWORD, USER, Camera

_ESCAPED = f"{USER}:{quote(PASSWORD, safe='')}"


def read(source: NetworkStream, count: int = 1000) -> tuple[list[Frame], list[Gap], list[Failure]]:
    items = list(source.frames(Sampling(max_frames=count)))
    return (
        [item for item in items if isinstance(item, Frame)],
        [item for item in items if isinstance(item, Gap)],
        [item for item in items if isinstance(item, Failure)],
    )


@pytest.mark.parametrize(("udp", "transport"), [(False, "TCP"), (True, "UDP")])
def test_frames_come_inside_the_connection_and_beside_it_only_where_a_camera_wants_that(
    udp: bool, transport: str
) -> None:
    camera = Camera(60, udp=udp)
    with camera.serve() as place:
        frames, gaps, failures = read(NetworkStream(f"rtsp://{place}", reconnect=0, silence=2), 40)
    assert camera.transports == [transport]
    assert [frame.index for frame in frames] == list(range(40))
    shades = [int(frame.image[0, 0, 0]) for frame in frames]
    assert shades == pytest.approx([16 + n * 11 % 160 for n in range(40)], abs=5)
    assert not gaps
    assert not failures


def test_a_camera_that_falls_silent_is_lost_after_one_silence() -> None:
    # A parser holds the last picture back until the next begins; tired of waiting, FFmpeg gives it and does not fail.
    with Camera(80, silences=(0.9,)).serve() as place:
        frames, (gap,), failures = read(NetworkStream(f"rtsp://{place}", reconnect=5, silence=0.6), 70)
    assert [frame.index for frame in frames] == list(range(70))
    assert gap.reason == "nothing came for 0.6 s"
    assert gap.index == 40
    assert gap.seconds >= 0.6
    assert not failures


def test_a_locked_camera_opens_to_a_password_that_nobody_gets_to_see() -> None:
    with Camera(40, is_locked=True).serve() as place:
        source = NetworkStream(f"rtsp://{_ESCAPED}@{place}", reconnect=5)
        frames, _, failures = read(source, 60)
    assert [frame.index for frame in frames] == list(range(60))
    assert not failures
    assert source.name == f"rtsp://{USER}:***@{place}"


def test_a_locked_camera_says_what_it_asks_for() -> None:
    with Camera(1, is_locked=True).serve() as place:
        reasons = []
        for user in ("", f"{USER}:wrong@"):
            (failure,) = read(NetworkStream(f"rtsp://{user}{place}", reconnect=5))[2]
            reasons.append(failure.reason)
    asks = "cannot be read: it asks for a user and a password"
    assert reasons == [
        f"rtsp://{place} {asks}; write rtsp://USER:PASSWORD@{place}",
        f"rtsp://{USER}:***@{place} {asks}; the user or the password is wrong",
    ]

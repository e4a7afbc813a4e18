"""Addresses: who does not answer is named, and a recording that lies elsewhere is held to what it declares."""

from __future__ import annotations

import socket

import pytest

from spt_deploy.streaming import network
from spt_deploy.streaming.frames import Failure, Sampling
from spt_deploy.streaming.network import NetworkStream


def test_a_server_that_takes_the_call_and_says_nothing_is_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_CONNECT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/camera"
        (failure,) = NetworkStream(url, reconnect=60).frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason == f"{url} cannot be read: nothing came for 0.3 s"

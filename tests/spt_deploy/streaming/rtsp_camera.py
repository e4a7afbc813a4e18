"""A camera on loopback that speaks RTSP (RFC 2326): H.264 in RTP (RFC 6184), inside the connection or beside it."""

from __future__ import annotations

import base64
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction

import av

from tests.spt_deploy.streaming.support import picture

USER, PASSWORD = "admin", "se/cret@1"
_MOST = 1200  # bytes of one RTP packet
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:1\r\n"
)


@dataclass
class Camera:
    """What a camera sends, and how.

    Attributes:
        count: pictures of each connection, 25 a second by their time stamps.
        interval: seconds between two.
        udp: whether it refuses to send them inside the connection.
        is_locked: whether it asks for ``USER`` and ``PASSWORD``.
        silences: seconds, of each connection, for which it says nothing after half of the pictures.
        transports: what each connection came to.
    """

    count: int
    interval: float = 0.002
    udp: bool = False
    is_locked: bool = False
    silences: Sequence[float] = ()
    transports: list[str] = field(default_factory=list)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Give the host and path of its address, to one client after the other."""
        units = _access_units(self.count)
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                while True:
                    try:
                        client, _ = listener.accept()
                    except OSError:  # the test is over
                        return
                    with client, _datagrams() as beside, suppress(OSError):  # the reader has gone
                        self._converse(client, beside, units)

            threading.Thread(target=serve, daemon=True).start()
            yield f"127.0.0.1:{listener.getsockname()[1]}/camera"

    def _converse(self, client: socket.socket, beside: socket.socket, units: list[list[bytes]]) -> None:
        waiting, port = b"", None
        while True:
            while b"\r\n\r\n" not in waiting:
                received = client.recv(4096)
                if not received:
                    return
                waiting += received
            request, _, waiting = waiting.partition(b"\r\n\r\n")
            method = request.split()[0].decode()
            status, extra, body = "200 OK", "", ""
            if method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif self.is_locked and _header(request, "Authorization") != _basic():
                status, extra = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
            elif method == "DESCRIBE":
                extra, body = f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n", _SDP
            elif method == "SETUP":
                transport = _header(request, "Transport")
                port = re.search(r"client_port=(\d+)", transport)
                if self.udp and port is None:
                    status = "461 Unsupported Transport"
                else:
                    extra = f"Session: 1\r\nTransport: {transport}\r\n"
            sequence = _header(request, "CSeq")
            client.sendall(f"RTSP/1.0 {status}\r\nCSeq: {sequence}\r\n{extra}\r\n{body}".encode())
            if method == "PLAY":
                silence = self.silences[len(self.transports)] if len(self.transports) < len(self.silences) else 0.0
                self.transports.append("TCP" if port is None else "UDP")
                if port is not None:
                    beside.connect(("127.0.0.1", int(port[1])))
                    self._play(beside.sendall, units, silence)
                else:
                    self._play(lambda rtp: client.sendall(b"$\0" + len(rtp).to_bytes(2, "big") + rtp), units, silence)
                return
            if method == "TEARDOWN":
                return

    def _play(self, send: Callable[[bytes], None], units: list[list[bytes]], silence: float) -> None:
        number = 0
        for index, unit in enumerate(units):
            for place, payload in enumerate(unit):
                marker = 0x80 if place == len(unit) - 1 else 0  # the last packet of a picture
                header = bytes([0x80, marker | 96]) + number.to_bytes(2, "big") + (index * 3600).to_bytes(4, "big")
                send(header + b"\0\0\0\1" + payload)
                number += 1
            time.sleep(silence if index == len(units) // 2 else self.interval)


def _access_units(count: int) -> list[list[bytes]]:
    """The payloads of the RTP packets of each picture."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width, encoder.pix_fmt = 48, 64, "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(25), Fraction(1, 25)
    encoder.options = {"tune": "zerolatency", "g": "5"}
    units = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(picture(number), format="bgr24")
        frame.pts = number
        data = b"".join(bytes(packet) for packet in encoder.encode(frame))
        units.append([payload for nal in re.split(rb"\0\0\0?\x01", data)[1:] for payload in _payloads(nal)])
    return units


def _payloads(nal: bytes) -> list[bytes]:
    """One NAL unit whole, or in parts (FU-A), of which the first and the last say so."""
    if len(nal) <= _MOST:
        return [nal]
    parts = [nal[start : start + _MOST] for start in range(1, len(nal), _MOST)]
    indicator, kind = nal[0] & 0xE0 | 28, nal[0] & 0x1F
    ends = [0x80, *[0] * (len(parts) - 2), 0x40]
    return [bytes([indicator, end | kind]) + part for end, part in zip(ends, parts, strict=True)]


def _header(request: bytes, name: str) -> str:
    found = re.search(rf"^{name}: *(.*?)\r?$", request.decode(), re.IGNORECASE | re.MULTILINE)
    return found[1] if found else ""


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def _datagrams() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

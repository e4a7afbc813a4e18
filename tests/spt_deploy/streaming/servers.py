"""Servers on loopback that behave as cameras do: they send, fall silent, hang up, and come back."""

from __future__ import annotations

import http.server
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import av
import cv2

from tests.spt_deploy.streaming.support import picture

Send = Callable[[bytes], None]
Connection = Callable[[Send], None]  # what the server does with one connection, until it hangs up


@contextmanager
def http_server(connections: Sequence[Connection], content_type: str) -> Iterator[str]:
    """Serve the n-th request with the n-th of ``connections``; further ones are refused. Gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for connection in connections:
                try:
                    client, _ = listener.accept()
                except OSError:  # the test is over
                    return
                with client:
                    client.recv(4096)
                    with suppress(OSError):  # the reader has gone
                        client.sendall(f"HTTP/1.0 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode())
                        connection(client.sendall)
            listener.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/stream"


@contextmanager
def file_server(folder: Path, asked: list[str] | None = None) -> Iterator[str]:
    """Serve the files in ``folder``, and note what is asked for. Gives the address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


MJPEG = "multipart/x-mixed-replace; boundary=frame"


def jpegs(send: Send, numbers: Sequence[int], interval: float = 0.01) -> None:
    """Pictures as the parts of a multipart answer, as most cameras send them."""
    for number in numbers:
        data = cv2.imencode(".jpg", picture(number))[1].tobytes()
        send(f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n")
        time.sleep(interval)


def transport_stream(count: int) -> bytes:
    """An MPEG transport stream of ``count`` pictures, 25 a second, H.264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25, options={"tune": "zerolatency", "g": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="bgr24")))
        container.mux(stream.encode(None))
    return file.getvalue()

"""Live HLS: frames come at their pace although segments come at once, and none of them twice."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import pytest

from spt_deploy.streaming import segments
from spt_deploy.streaming.frames import Failure, Frame, Gap, Sampling
from spt_deploy.streaming.network import NetworkStream
from spt_deploy.streaming.segments import Player
from tests.spt_deploy.streaming.servers import file_server
from tests.spt_deploy.streaming.support import picture

RATE = 50
PER_SEGMENT = 25  # frames


def write_segments(folder: Path, name: str, segments: int, height: int = 48, width: int = 64) -> None:
    """An MPEG transport stream in pieces ``NAME0.ts``, ..., each beginning with a key frame, and their playlist."""
    options = {
        "hls_time": str(PER_SEGMENT / RATE),
        "hls_list_size": "0",
        "hls_segment_filename": f"{folder}/{name}%d.ts",
    }
    with av.open(str(folder / f"{name}.m3u8"), "w", format="hls", options=options) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"tune": "zerolatency", "g": str(PER_SEGMENT)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(segments * PER_SEGMENT):
            frame = av.VideoFrame.from_ndarray(picture(number % 14, height, width), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class Broadcast:
    """A playlist that grows, and the segments in it, over HTTP.

    Attributes:
        visible: how many segments it names.
        is_over: whether it says that no more will come.
        is_broken: whether the server refuses every answer.
    """

    def __init__(self, folder: Path, segments: int) -> None:
        self.visible, self.is_over, self.is_broken = 3, False, False
        self._folder, self._segments = folder, segments
        write_segments(folder, "s", segments)

    def follow(self, frames: int) -> None:
        """So many frames were read: as many have been recorded since."""
        if not self.is_broken:
            self.visible = min(self._segments, max(self.visible, 3 + frames // PER_SEGMENT))
            self.is_over = frames >= (self._segments - 3) * PER_SEGMENT

    def answer(self, name: str) -> bytes:
        if name != "live.m3u8":
            return (self._folder / name).read_bytes()
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", "#EXT-X-MEDIA-SEQUENCE:0"]
        for number in range(self.visible):
            lines += [f"#EXTINF:{PER_SEGMENT / RATE},", f"s{number}.ts"]
        return "\n".join([*lines, "#EXT-X-ENDLIST" if self.is_over else "", ""]).encode()

    @contextmanager
    def served(self) -> Iterator[str]:
        broadcast = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if broadcast.is_broken:
                    self.send_error(503)
                    return
                data = broadcast.answer(self.path.lstrip("/"))
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/live.m3u8"
            server.shutdown()


def watched(
    broadcast: Broadcast, source: NetworkStream, after: Callable[[int], None] = lambda count: None
) -> tuple[list[Frame], list[Gap], list[Failure]]:
    """Everything that comes, while the broadcast goes on; ``after`` hears of the frames that have come."""
    frames: list[Frame] = []
    others: list[Gap | Failure] = []
    for item in source.frames(Sampling()):
        if isinstance(item, Frame):
            frames.append(item)
            broadcast.follow(len(frames))
            after(len(frames))
        else:
            others.append(item)
    return frames, [o for o in others if isinstance(o, Gap)], [o for o in others if isinstance(o, Failure)]


def numbers(frames: list[Frame]) -> list[int]:
    """Of the pictures, modulo 14, as they were drawn."""
    return [round((int(frame.image[0, 0, 0]) - 16) / 11) for frame in frames]


def test_frames_come_at_their_pace_until_the_playlist_says_that_it_has_ended(tmp_path: Path) -> None:
    broadcast = Broadcast(tmp_path, 6)
    with broadcast.served() as url:
        source = NetworkStream(url, reconnect=60)
        frames, gaps, failures = watched(broadcast, source)
    assert source.live
    assert numbers(frames) == [number % 14 for number in range(150)]
    assert [frame.index for frame in frames] == list(range(150))
    assert all(frame.time >= n / RATE - 0.01 for n, frame in enumerate(frames) if frame.time is not None)
    assert not gaps
    assert not failures


def test_what_a_new_connection_begins_with_again_is_left_out(tmp_path: Path) -> None:
    broadcast = Broadcast(tmp_path, 6)

    def breaks(count: int) -> None:
        broadcast.is_broken = broadcast.is_broken or count == 40

    def is_back(sentence: str) -> None:
        broadcast.is_broken = False

    with broadcast.served() as url:
        source = NetworkStream(url, reconnect=10)
        source.on_notice = is_back
        frames, (gap,), failures = watched(broadcast, source, breaks)
    assert numbers(frames) == [number % 14 for number in range(150)]
    assert 40 <= gap.index < 100
    assert gap.reason == "the stream ended"
    assert not failures


def test_a_stream_that_ended_while_it_was_lost_is_not_read_from_its_begin(tmp_path: Path) -> None:
    broadcast = Broadcast(tmp_path, 6)

    def breaks(count: int) -> None:
        broadcast.is_broken = broadcast.is_broken or count == 10

    def has_ended(sentence: str) -> None:
        broadcast.is_broken, broadcast.is_over = False, True

    with broadcast.served() as url:
        source = NetworkStream(url, reconnect=10)
        source.on_notice = has_ended
        frames, gaps, (failure,) = watched(broadcast, source, breaks)
    assert numbers(frames) == [number % 14 for number in range(len(frames))]
    assert 10 < len(frames) < 150
    assert not gaps
    assert failure.reason == f"{url} was lost after {len(frames)} frames (the stream ended) and has ended since"


class Stream:
    """What a player asks of one."""

    time_base = Fraction(1, 1000)
    average_rate = base_rate = guessed_rate = Fraction(25)


def frame_at(milliseconds: int) -> av.VideoFrame:
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.pts, frame.time_base = milliseconds, Stream.time_base
    return frame


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    """One whose clock goes only while it waits."""
    now = [100.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(segments.time, "monotonic", lambda: now[0])
    player = Player(wait)
    player.connect(Stream())  # type: ignore[arg-type]
    return player


def held(player: Player, times: Iterable[int], waited: float = 0.0) -> list[float]:
    """For how long each new frame was held, in milliseconds."""
    frames = [frame_at(time) for time in times]
    return [round(1000 * player.hold(frame), 3) for frame in frames if player.is_new(frame, waited)]


def test_a_clock_that_goes_back_or_far_ahead_begins_anew(player: Player) -> None:
    assert held(player, range(0, 200, 20)) == [0] + [20] * 9
    assert held(player, range(90_000, 90_100, 20)) == [0] + [20] * 4
    assert held(player, range(500, 600, 20)) == [0] + [20] * 4  # another encoder, of another rate than it says
    assert held(player, [620, 600, 660]) == [40, 1, 39]  # doubled and swapped timestamps are no other clock


def test_an_encoder_that_began_again_is_not_taken_for_what_was_shown(player: Player) -> None:
    assert len(held(player, range(0, 30_000, 100))) == 300
    player.connect(Stream())  # type: ignore[arg-type]
    assert held(player, range(27_000, 31_000, 100)) == [0] + [100] * 9
    player.connect(Stream())  # type: ignore[arg-type]
    assert held(player, range(0, 3000, 100)) == []  # could be either
    assert len(held(player, [3000], waited=2.0)) == 1
    assert len(held(player, range(3100, 6000, 100))) == 29
    player.connect(Stream())  # type: ignore[arg-type]
    assert len(held(player, range(100_000, 103_000, 100))) == 30


def test_of_several_sizes_the_largest_is_read_and_no_other_fetched(tmp_path: Path) -> None:
    write_segments(tmp_path, "small", 20)
    write_segments(tmp_path, "large", 20, 96, 128)
    lines = ["#EXTM3U"]
    for name, size in (("small", "64x48"), ("large", "128x96")):
        lines += [f"#EXT-X-STREAM-INF:BANDWIDTH=100000,RESOLUTION={size}", f"{name}.m3u8"]
    (tmp_path / "all.m3u8").write_text("\n".join([*lines, ""]))
    asked: list[str] = []
    with file_server(tmp_path, asked) as url:
        frames = [item for item in NetworkStream(f"{url}/all.m3u8").frames(Sampling()) if isinstance(item, Frame)]
    assert len(frames) == 500
    assert {frame.image.shape for frame in frames} == {(96, 128, 3)}
    fetched = Counter(path.strip("/").rstrip("0123456789.ts") for path in asked if path.endswith(".ts"))
    assert fetched["large"] == 20
    assert fetched["small"] <= 2  # while FFmpeg looks what there is


def test_dash_which_ffmpeg_was_built_without_is_named(tmp_path: Path) -> None:
    (tmp_path / "live.mpd").write_text("<MPD/>")
    with file_server(tmp_path) as url:
        (failure,) = NetworkStream(f"{url}/live.mpd").frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason == (
        f"{url}/live.mpd cannot be read: the FFmpeg inside PyAV has no DASH; give the HLS address (.m3u8), or let "
        "another FFmpeg read it and pipe it into -"
    )

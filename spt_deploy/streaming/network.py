"""Streams from the network, RTSP, HTTP and the like, through FFmpeg."""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from spt_deploy.errors import SourceError
from spt_deploy.streaming.frames import Failure, Frame, Gap, Sampling
from spt_deploy.streaming.live import RECONNECT, Arrival, LiveSource
from spt_deploy.streaming.segments import Player, is_segmented, largest_of
from spt_deploy.streaming.video import (
    FrameClock,
    cut_short,
    declared_end,
    has_origin,
    held_back,
    rate_of,
    unreadable,
    upright,
)

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_CONNECT = 10.0  # seconds until a host that does not answer counts as not there
_SILENCE = 10.0  # seconds without a byte until a stream counts as lost
_PIPE = "let another FFmpeg read it and pipe it into -"
_SECRETS = re.compile(
    r"([?&;](?:password|passwd|pass|pwd|token|access_token|api_?key|key|secret|auth|sig|signature)=)[^&;#]+",
    re.IGNORECASE,
)


def is_url(name: str) -> bool:
    """Whether a source is named by its address."""
    scheme, colon, _ = name.partition("://")
    return bool(colon) and scheme.lower() in SCHEMES


def without_password(url: str) -> str:
    """The address as it may be shown and written down; another name stays as it is.

    Hidden is all between the first colon and the last ``@``: a password may hold ``/``, ``?`` and ``#`` as they are.
    Such an address cannot be opened, and the sentence that says so shall not give it away. Hidden, too, is what
    cameras take as ``password=`` or ``token=`` behind a ``?``.
    """
    if is_url(url):
        url = _SECRETS.sub(r"\1***", url)
    scheme, colon, rest = url.partition("://")
    who, at, place = rest.rpartition("@")
    user, secret, _ = who.partition(":")
    return f"{scheme}{colon}{user}:***{at}{place}" if colon and secret else url


class NetworkStream(LiveSource):
    """What an address gives: live, unless it states how long it lasts; then it is a file that lies elsewhere.

    So is a transport stream that states its size: how long one lasts it never does.

    A live stream in segments is read as a player does (see ``segments``), and has ended when its playlist says so.
    RTSP comes inside its TCP connection, which loses no packets; over UDP from a camera that refuses that.

    Args:
        url: with one of ``SCHEMES``.
        reconnect: see ``LiveSource``; a file that lies elsewhere is not tried again.
        silence: seconds without a byte until it counts as lost.

    Raises:
        SourceError: when it is no address.
    """

    def __init__(self, url: str, reconnect: float = RECONNECT, silence: float = _SILENCE) -> None:
        super().__init__(without_password(url), reconnect)
        try:
            self._host, self._has_user = urlsplit(url).hostname, "@" in urlsplit(url).netloc
        except ValueError as error:
            place = url.rpartition("@")[2]  # without a password
            raise SourceError(f"{place} is no address: {error}; expected one such as rtsp://host:554/stream") from error
        self._url = url
        self._silence = silence
        self._player = Player(self._stopped.wait)

    def frames(self, sampling: Sampling) -> Iterator[Frame | Gap | Failure]:
        """See ``LiveSource``."""
        self._player = Player(self._stopped.wait)
        return super().frames(sampling)

    def _arrivals(self) -> Iterator[Arrival | Failure]:
        import av
        from av.video.reformatter import VideoReformatter

        start = time.perf_counter()
        try:
            container = self._open()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(self._reason(error, start, _CONNECT)) from error
        with container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise SourceError("there is no video in it that FFmpeg can decode")
            stream = largest_of(container) if is_segmented(container) else container.streams.video[0]
            is_recording = bool(container.duration or _is_whole(container))
            if is_recording and self._player.has_begun:
                self._has_ended = True
                return
            self.live = not is_recording
            player = self._player if self.live and is_segmented(container) else None
            stream.thread_type = "SLICE" if self.live else "AUTO"  # a thread a frame holds frames back
            self.rate = rate_of(stream)
            clock, count, broken = None, 0, 0
            if not self.live:
                end = declared_end(container, stream, self.rate)
                clock = FrameClock(Fraction(stream.time_base or self.time_base), self.rate, has_origin(container))
            elif player:
                player.connect(stream)
            converter = VideoReformatter()

            def arrival(frame: VideoFrame, waited: float = 0.0) -> Arrival:
                return Arrival(
                    waited, lambda: upright(frame, converter), None if clock is None else float(clock.time_of(frame))
                )

            packets = container.demux(stream)
            while True:
                start = time.perf_counter()
                try:
                    packet = next(packets, None)
                except (av.FFmpegError, OSError) as error:
                    remedy = "" if self.live or count else self._remedy(error)
                    lost = SourceError(self._reason(error, start, self._silence) + remedy)
                    # Those of a live stream are older than the silence that it ended in, and have no time of their own.
                    yield from map(arrival, [] if clock is None else held_back(stream))
                    raise lost from error
                waited = time.perf_counter() - start
                if packet is None:
                    break
                if self.live and waited >= self._silence:  # instead of failing, FFmpeg gave what it had held back
                    raise SourceError(_nothing_for(self._silence))
                try:
                    frames: list[VideoFrame] = packet.decode()
                except (av.FFmpegError, OSError):  # a packet that was damaged on its way; the next may be whole
                    broken += 1
                    continue
                count += len(frames)
                for frame in frames:
                    if player is None:
                        yield arrival(frame, waited)
                    elif player.is_new(frame, waited):
                        yield arrival(frame, waited + player.hold(frame))
                    waited = 0.0
            self._has_ended = player is not None and self._is_complete()
            if clock is None or not count:
                return
            if broken:
                yield Failure(self.name, f"{self.name} is damaged: {unreadable(broken)}; the rest was used")
            elif failure := cut_short(self.name, clock.end, end, self.rate):
                yield failure

    def _open(self) -> InputContainer:
        import av

        options = {"rtsp_flags": "prefer_tcp"} if self._url.lower().startswith("rtsp") else {}
        return av.open(self._url, options=options, timeout=(_CONNECT, self._silence), metadata_errors="replace")

    def _is_complete(self) -> bool:
        """Whether a stream that was live states by now how long it lasts: then it has ended."""
        import av

        try:
            with self._open() as container:
                return bool(container.duration)
        except (av.FFmpegError, OSError, ValueError):
            return False

    def _reason(self, error: Exception, start: float, limit: float) -> str:
        import av

        # FFmpeg's RTSP calls an answer that did not come in time invalid data.
        if isinstance(error, av.error.ExitError) or time.perf_counter() - start >= limit:
            return _nothing_for(limit)
        if isinstance(error, av.error.HTTPUnauthorizedError):
            who = "the user or the password is wrong" if self._has_user else f"write {_with_user(self.name)}"
            return f"it asks for a user and a password; {who}"
        if isinstance(error, av.error.ProtocolNotFoundError):
            scheme = urlsplit(self._url).scheme
            return f"the FFmpeg inside PyAV has no {scheme}; {_PIPE}"
        if isinstance(error, av.error.InvalidDataError) and urlsplit(self._url).path.lower().endswith(".mpd"):
            return f"the FFmpeg inside PyAV has no DASH; give the HLS address (.m3u8), or {_PIPE}"
        if self._host and not _is_known(self._host):
            is_cut = "@" in self._url and not self._has_user
            hint = "; in a password write / as %2F, ? as %3F and # as %23" if is_cut else ""
            return f"there is no host {self._host}{hint}"
        text = getattr(error, "strerror", None) or str(error)
        return text.replace(self._url, self.name)

    def _remedy(self, error: Exception) -> str:
        # What FFmpeg says when it has come to the index at the end of a file and cannot go back to the frames.
        if getattr(error, "errno", None) != errno.EIO or not self._url.lower().startswith("http"):
            return ""
        return (
            "; an MP4 whose index lies at its end needs a server that gives parts of it (Range), which Python's "
            "http.server does not: download it first, or move the index with ffmpeg -movflags +faststart"
        )


def _nothing_for(seconds: float) -> str:
    return f"nothing came for {seconds:g} s"


def _with_user(url: str) -> str:
    scheme, mark, place = url.partition("://")
    return f"{scheme}{mark}USER:PASSWORD@{place}"


def _is_whole(container: InputContainer) -> bool:
    """Whether it is a transport stream of a known size: how long it lasts is written nowhere in it."""
    return container.format.name == "mpegts" and container.size > 0


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True

"""An annotated video: H.264 in MP4 that plays everywhere, every frame at the time its source showed it."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from spt_deploy.atomic import output_error
from spt_deploy.errors import OutputError
from spt_deploy.streaming.frames import Image, VideoSource

if TYPE_CHECKING:
    from av import VideoFrame

# A third of the time of x264's default for about the same size; 23 is x264's own idea of good enough.
_X264 = {"preset": "veryfast", "crf": "23"}
# A gap between two frames has 32 bits in an MP4 file, in ticks of the source or, where those are coarse, of 1/20,000 s
# at the finest. So have the few gaps together that a frame is stored before it is shown.
_GAP_TICKS, _COARSE_RATE = 1 << 28, 20_000
_FINEST, _COARSEST = Fraction(1, 1_000_000), Fraction(1)  # seconds; no camera needs more, and MP4 cannot hold all
_LARGEST_SIDE = 16_384  # of x264
_BT709 = 1  # code of its matrix, primaries and transfer alike; players guess by the size where a file does not say
_ACCURATE_ROUNDING = 1 << 18  # libswscale's SWS_ACCURATE_RND, which PyAV 17 has no name for


class VideoEncoder:
    """Writes one MP4 file; the first frame decides its size, up to 16,384 pixels a side.

    Timestamps are the source's, in its own time base, so a variable frame rate stays as it is; only a gap too long for
    the format (50 minutes in ticks of 1/90,000 s) becomes the longest it can hold. yuv420p halves both sides, so an odd
    one gets a last row or column twice.

    Args:
        path: of the file.
        source: gives the time base and the rate.
        final: what errors call it, where ``path`` is a temporary name.
        threads: that encode; 0 leaves it to x264, which takes more than there are cores.
    """

    def __init__(self, path: Path, source: VideoSource, final: Path | None = None, threads: int = 0) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

        self._to = {
            "dst_colorspace": Colorspace.ITU709.value,
            "dst_color_range": ColorRange.MPEG.value,
            # Accurate rounding costs nothing here; without, every picture comes out two grey levels darker.
            "interpolation": Interpolation.AREA.value | _ACCURATE_ROUNDING,
        }
        self._final = final or path
        self._threads = threads
        self._converter = VideoReformatter()
        self._time_base = min(max(source.time_base, _FINEST), _COARSEST)
        self._longest_gap = int(_GAP_TICKS / max(Fraction(1), _COARSE_RATE * self._time_base))  # in ticks
        self._gap_cut = 0  # ticks that later frames are earlier for gaps that were too long
        self._last: int | None = None
        self._size: tuple[int, int] | None = None  # height, width
        try:
            # The index goes to the front: a browser then plays without reading the whole file first.
            self._container = av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
        except (av.FFmpegError, OSError) as error:
            raise self._error(error) from error
        # Each packet says that it lasts as long as one frame of this rate.
        rate = max(source.rate, 1 / (self._longest_gap * self._time_base))
        self._stream = self._container.add_stream("libx264", rate=rate, options=_X264)
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.thread_count = threads
        context.colorspace = context.color_primaries = context.color_trc = _BT709  # so that it says it
        context.color_range = ColorRange.MPEG.value

    def write(self, image: Image, time: float) -> None:
        """Add a frame.

        Args:
            image: H x W x 3 uint8, BGR. One of another size than the first is scaled to it.
            time: in seconds, later than the last.

        Raises:
            OutputError: when the file cannot be written.
        """
        import av
        import cv2

        if self._size is None:
            shrunk = max(1.0, max(image.shape) / _LARGEST_SIDE)
            rows, columns = (max(1, int(side / shrunk)) for side in image.shape[:2])
            self._size = rows + rows % 2, columns + columns % 2
            self._stream.height, self._stream.width = self._size
        height, width = self._size
        below, right = height - image.shape[0], width - image.shape[1]
        if (below, right) != (0, 0):
            if below in (0, 1) and right in (0, 1):
                image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
            else:
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        frame = self._converter.reformat(
            av.VideoFrame.from_ndarray(image, format="bgr24"), format="yuv420p", threads=self._threads, **self._to
        )
        frame.pts = self._ticks(time)
        frame.time_base = self._time_base
        self._encode(frame)

    def _ticks(self, time: float) -> int:
        """Of the next frame: always later than the last, and never by more than the format can hold."""
        ticks = round(Fraction(time) / self._time_base) - self._gap_cut
        if self._last is not None:
            gap = max(1, min(self._longest_gap, ticks - self._last))
            self._gap_cut += max(0, ticks - self._last - gap)
            ticks = self._last + gap
        self._last = ticks
        return ticks

    def close(self) -> None:
        """Write what the encoder still holds, and the index.

        Raises:
            OutputError: when the file cannot be written; it is closed then too.
        """
        import av

        try:
            if self._size is not None:
                self._encode(None)
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise self._error(error) from error
        except OutputError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close the file without caring whether it plays."""
        with suppress(Exception):  # it is to be deleted, whatever is wrong with it
            self._container.close()

    def _encode(self, frame: VideoFrame | None) -> None:
        import av

        try:
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> OutputError:
        number = getattr(error, "errno", None)
        return output_error(self._final, OSError(number, getattr(error, "strerror", None) or str(error)))

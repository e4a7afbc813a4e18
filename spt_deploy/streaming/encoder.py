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
_BT709 = 1  # code of its matrix, primaries and transfer alike; players guess by the size where a file does not say


class VideoEncoder:
    """Writes one MP4 file; the first frame decides its size.

    Timestamps are the source's, in its own time base, so a variable frame rate stays as it is. yuv420p halves both
    sides, so an odd one gets a last row or column twice.

    Args:
        path: of the file.
        source: gives the time base and the rate.
        final: what errors call it, where ``path`` is a temporary name.
    """

    def __init__(self, path: Path, source: VideoSource, final: Path | None = None) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

        self._to = {
            "dst_colorspace": Colorspace.ITU709.value,
            "dst_color_range": ColorRange.MPEG.value,
            # Accurate rounding costs nothing here; without, every picture comes out two grey levels darker.
            "interpolation": int(Interpolation.AREA | Interpolation.ACCURATE_RND),
        }
        self._final = final or path
        self._converter = VideoReformatter()
        self._time_base = source.time_base
        self._size: tuple[int, int] | None = None  # height, width
        try:
            # The index goes to the front: a browser then plays without reading the whole file first.
            self._container = av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
        except (av.FFmpegError, OSError) as error:
            raise self._error(error) from error
        self._stream = self._container.add_stream("libx264", rate=source.rate, options=_X264)
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = source.time_base
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
            self._size = image.shape[0] + image.shape[0] % 2, image.shape[1] + image.shape[1] % 2
            self._stream.height, self._stream.width = self._size
        height, width = self._size
        below, right = height - image.shape[0], width - image.shape[1]
        if (below, right) != (0, 0):
            if below in (0, 1) and right in (0, 1):
                image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
            else:
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        frame = self._converter.reformat(
            av.VideoFrame.from_ndarray(image, format="bgr24"), format="yuv420p", **self._to
        )
        frame.pts = round(Fraction(time) / self._time_base)
        frame.time_base = self._time_base
        self._encode(frame)

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

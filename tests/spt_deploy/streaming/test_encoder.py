"""Annotated videos: H.264 that plays, with every frame at its own time and in its own colours."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.errors import OutputError
from spt_deploy.streaming.encoder import VideoEncoder
from spt_deploy.streaming.frames import VideoSource
from tests.spt_deploy.streaming.support import picture, read_times

UNEVEN = [0, 40, 55, 130, 131, 400, 520, 1000, 1033]


class Clock(VideoSource):
    """A video source of which only the clock is asked."""

    def __init__(self, time_base: Fraction, rate: Fraction = Fraction(25)) -> None:
        super().__init__("clock")
        self.time_base, self.rate = time_base, rate

    def frames(self, sampling: object) -> object:  # type: ignore[override]
        raise NotImplementedError

    def total(self) -> int | None:
        raise NotImplementedError


def encode(path: Path, time_base: Fraction, ticks: list[int], size: tuple[int, int] = (48, 64)) -> Path:
    encoder = VideoEncoder(path, Clock(time_base))
    for number, tick in enumerate(ticks):
        encoder.write(picture(number, *size), float(tick * time_base))
    encoder.close()
    return path


def decode(path: Path) -> list[npt.NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [np.asarray(f.to_ndarray(format="bgr24"), dtype=np.uint8) for f in container.decode(video=0)]


@pytest.mark.parametrize(
    "time_base",
    [Fraction(1, 1000), Fraction(1, 25), Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 1_000_000)],
    ids=str,
)
def test_every_frame_keeps_its_exact_time_in_the_time_base_of_the_source(time_base: Fraction, tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", time_base, UNEVEN)
    assert read_times(path) == pytest.approx([float(tick * time_base) for tick in UNEVEN], abs=1e-9)


@pytest.mark.parametrize(
    ("time_base", "seconds"),
    [
        (Fraction(1, 1000), [0, 2_000_000, 2_000_001, 9_000_000]),  # a camera that was off for weeks
        (Fraction(1, 90_000), [0, 50_000, 50_001, 100_000, 200_000, 300_000]),
        (Fraction(1, 90_000), [0, 2**45, 2**45 + 1, 2**46]),  # of a damaged file
        (Fraction(1, 10**9), [0, 1, 5, 6]),
        (Fraction(10**9), [0, 10**9, 5 * 10**9]),
    ],
    ids=str,
)
def test_gaps_and_clocks_that_the_format_cannot_hold_lose_no_frame(
    time_base: Fraction, seconds: list[int], tmp_path: Path
) -> None:
    encoder = VideoEncoder(tmp_path / "v.mp4", Clock(time_base))
    for number, second in enumerate(seconds):
        encoder.write(picture(number), float(second))
    encoder.close()
    times = read_times(tmp_path / "v.mp4")
    assert len(times) == len(seconds)
    for (before, after), (given_before, given_after) in zip(pairwise(times), pairwise(seconds), strict=True):
        given = given_after - given_before
        assert after - before == pytest.approx(given) if given <= 2900 else 2900 < after - before <= given


def test_a_rate_of_hours_a_frame_loses_no_frame(tmp_path: Path) -> None:
    source = Clock(Fraction(8_388_609, 25), Fraction(25, 8_388_609))  # of an AVI whose header was damaged
    encoder = VideoEncoder(tmp_path / "v.mp4", source)
    for number in range(12):
        encoder.write(picture(number), float(number * source.time_base))
    encoder.close()
    assert len(read_times(tmp_path / "v.mp4")) == 12


def test_times_that_do_not_increase_are_moved_on_by_a_tick(tmp_path: Path) -> None:
    encoder = VideoEncoder(tmp_path / "v.mp4", Clock(Fraction(1, 1000)))
    for number, time in enumerate([0.0, 0.04, 0.04, 0.0404, 0.08]):
        encoder.write(picture(number), time)
    encoder.close()
    assert read_times(tmp_path / "v.mp4") == pytest.approx([0.0, 0.04, 0.041, 0.042, 0.08])


@pytest.mark.parametrize(("height", "width"), [(4, 20_000), (16_386, 3)])
def test_a_frame_larger_than_h264_allows_is_scaled_down(height: int, width: int, tmp_path: Path) -> None:
    encoder = VideoEncoder(tmp_path / "v.mp4", Clock(Fraction(1, 25)))
    encoder.write(picture(0, height, width), 0.0)
    encoder.close()
    (frame,) = decode(tmp_path / "v.mp4")
    assert max(frame.shape) == 16_384


def test_it_is_h264_in_yuv420p_with_its_index_in_front(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", Fraction(1, 25), list(range(30)))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.video[0].frames == 30
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    capture = cv2.VideoCapture(str(path))
    assert sum(iter(lambda: capture.read()[0], False)) == 30
    capture.release()


@pytest.mark.parametrize("size", [(48, 64), (33, 64), (48, 47), (33, 47), (2, 2), (1, 1)])
def test_a_side_that_is_odd_gets_one_more_pixel_and_no_frame_is_lost(size: tuple[int, int], tmp_path: Path) -> None:
    frames = decode(encode(tmp_path / "v.mp4", Fraction(1, 25), list(range(7)), size))
    assert len(frames) == 7
    assert frames[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)


def test_colours_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    encoder = VideoEncoder(path, Clock(Fraction(1, 25)))
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    image = blocks.repeat(32, axis=0).repeat(32, axis=1)
    encoder.write(image, 0.0)
    encoder.close()
    decoded = decode(path)[0][16::32, 16::32].astype(int)
    assert np.abs(decoded - blocks).max() <= 8  # of 255: 8 bits, limited range, crf 23; a wrong matrix gives 30


def test_a_frame_of_another_size_is_scaled_to_the_first(tmp_path: Path) -> None:
    encoder = VideoEncoder(tmp_path / "v.mp4", Clock(Fraction(1, 25)))
    for number, size in enumerate([(48, 64), (96, 128), (30, 30), (48, 64)]):
        encoder.write(picture(number, *size), number / 25)
    encoder.close()
    assert [frame.shape for frame in decode(tmp_path / "v.mp4")] == [(48, 64, 3)] * 4


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    encoder = VideoEncoder(tmp_path / "none/v.mp4", Clock(Fraction(1, 25)))
    with pytest.raises(OutputError, match=r"v.mp4 cannot be written: No such file"):
        encode_all(encoder)


def encode_all(encoder: VideoEncoder) -> None:
    encoder.write(picture(0), 0.0)
    encoder.close()


@pytest.mark.parametrize("limit", [2_000, 100_000])
def test_a_file_that_cannot_grow_is_an_output_error_that_names_it(limit: int, tmp_path: Path) -> None:
    # The smaller limit strikes while closing, the larger one while writing. A limit on the size of files stands in
    # for a full disk, which a test cannot have.
    code = f"""
import resource, sys
sys.path[:0] = {[str(Path(entry).absolute()) for entry in sys.path]!r}
from fractions import Fraction
from pathlib import Path
import numpy as np
from spt_deploy.errors import OutputError
from spt_deploy.streaming.encoder import VideoEncoder
from tests.spt_deploy.streaming.test_encoder import Clock
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
noise = np.random.default_rng(0)
encoder = VideoEncoder(Path("tmp.mp4"), Clock(Fraction(1, 25)), final=Path("final.mp4"))
try:
    for number in range(60 if {limit} > 10_000 else 2):
        encoder.write(noise.integers(0, 256, (96, 128, 3)).astype(np.uint8), number / 25)
    encoder.close()
except OutputError as error:
    encoder.abandon()
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.startswith("final.mp4 cannot be written: File too large; "), run.stderr

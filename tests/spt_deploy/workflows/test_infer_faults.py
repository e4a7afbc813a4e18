"""infer when an input or the model breaks. What it says is true, and what it leaves is whole."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import Result

from spt_deploy.runtimes.base import Arrays
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import (
    ColourRunner,
    files_in,
    lines_of,
    picture,
    read_times,
    wait_for_lines,
    write_video,
)

pytestmark = pytest.mark.usefixtures("inside")

FRAME = Fraction(1, 25)


# Inputs


def changing_video(path: Path, codec: str, pixels: str) -> Path:
    """Ten frames each of three sizes, by three encoders, in one stream."""
    sizes = [(48, 64), (96, 128), (30, 40)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        (stream.height, stream.width), stream.pix_fmt = sizes[0], pixels
        stream.codec_context.time_base = FRAME
        for part, size in enumerate(sizes):
            encoder: Any = av.CodecContext.create(codec, "w")
            (encoder.height, encoder.width), encoder.pix_fmt = size, pixels
            encoder.time_base, encoder.framerate, encoder.options = FRAME, Fraction(25), {"bf": "0"}
            packets = []
            for number in range(10 * part, 10 * part + 10):
                frame = av.VideoFrame.from_ndarray(picture(number, *size), format="bgr24").reformat(format=pixels)
                frame.pts, frame.time_base = number, FRAME
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode(None):
                packet.stream, packet.time_base = stream, FRAME
                container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("v.mp4", "libx264", "yuv420p"),
        ("v.mkv", "libx264", "yuv420p"),
        ("v.ts", "libx264", "yuv420p"),
        ("v.avi", "mjpeg", "yuvj420p"),
        ("v.webm", "libvpx-vp9", "yuv420p"),
    ],
)
def test_frames_whose_size_changes_each_have_a_line_and_the_annotated_video_plays(
    name: str, codec: str, pixels: str, inside: Path
) -> None:
    path = changing_video(inside / name, codec, pixels)
    report = infer([path], ColourRunner(), out="out", batch=4)
    lines = lines_of(report.folder)
    assert [line["frame"] for line in lines] == list(range(30))
    times = [line["time"] for line in lines]
    assert times == pytest.approx([float(number * FRAME) for number in range(30)], abs=1e-3)
    assert read_times(report.folder / "annotated.mp4") == pytest.approx(times, abs=1e-3)


def cut_short(path: Path) -> Path:
    video = write_video(path, range(200), FRAME, container_options={"movflags": "faststart"})
    video.write_bytes(video.read_bytes()[: int(video.stat().st_size * 0.7)])
    return video


def broken_packet(path: Path) -> Path:
    video = write_video(path, range(200), FRAME, g=10)
    with av.open(str(video)) as container:
        victim = [packet for packet in container.demux(video=0) if packet.pos][100]
    assert victim.pos is not None
    data = bytearray(video.read_bytes())
    data[victim.pos : victim.pos + victim.size] = b"\xff" * victim.size
    video.write_bytes(data)
    return video


@pytest.mark.parametrize(("make", "last"), [(cut_short, None), (broken_packet, 199 / 25)])
def test_a_damaged_video_is_used_as_far_as_it_goes_and_named_with_exit_code_1(
    make: Callable[[Path], Path], last: float | None, call: Callable[..., Result], inside: Path
) -> None:
    make(inside / "v.mp4")
    result = call("v.mp4")
    assert result.exit_code == 1
    assert re.search("error: 1 input could not be read: v.mp4 (is damaged: |breaks off at)", result.stderr)
    lines = lines_of(inside / "out")
    assert 100 < len(lines) < 200
    assert read_times(inside / "out/annotated.mp4") == pytest.approx([line["time"] for line in lines])
    if last is not None:  # what comes after the packet
        assert lines[-1]["time"] == pytest.approx(last)


def test_an_mp4_without_its_index_is_refused_with_exit_code_2(call: Callable[..., Result], inside: Path) -> None:
    video = write_video(inside / "v.mp4", range(50), FRAME)
    video.write_bytes(video.read_bytes()[:-400])  # as a recorder leaves it whose power went
    result = call("v.mp4")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        "error: v.mp4 is neither an image nor a video that FFmpeg can read"
    )
    assert files_in(inside) == ["v.mp4"]


def test_of_four_sources_one_ends_early_and_one_breaks_and_the_others_are_whole(
    call: Callable[..., Result], inside: Path
) -> None:
    for name, count in (("a", 60), ("b", 61), ("early", 7)):
        write_video(inside / f"{name}.mp4", range(count), FRAME)
    broken = write_video(inside / "broken.mkv", range(100), FRAME, g=5)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    before = set(threading.enumerate())
    result = call("a.mp4", "broken.mkv", "b.mp4", "early.mp4", "--json")
    assert result.exit_code == 1
    assert set(threading.enumerate()) <= before
    assert "error: 1 input could not be read: broken.mkv " in result.stderr
    assert [failure["source"] for failure in json.loads(result.stdout)["failures"]] == ["broken.mkv"]
    lines = lines_of(inside / "out")
    for name, count in (("a.mp4", 60), ("b.mp4", 61), ("early.mp4", 7)):
        assert [line["frame"] for line in lines if line["source"] == name] == list(range(count))
        assert len(read_times(inside / "out" / f"{name[:-4]}.annotated.mp4")) == count
    of_broken = [line["frame"] for line in lines if line["source"] == "broken.mkv"]
    assert 0 < len(of_broken) < 100
    assert len(read_times(inside / "out/broken.annotated.mp4")) == len(of_broken)


# The model


class Broken(ColourRunner):
    """Fails on its third batch."""

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        if len(self.batches) == 2:
            wait_for_lines(Path("out"), 8)
            raise ZeroDivisionError("of the third batch")
        return super()._run(images, threshold)


def test_a_model_that_fails_in_mid_stream_shows_its_error_and_leaves_no_thread_and_no_half_file(
    call: Callable[..., Result], inside: Path
) -> None:
    videos = ["a.mp4", "b.mp4", "c.mp4"]
    for name in videos:
        write_video(inside / name, range(200), FRAME)
    before = set(threading.enumerate())
    result = call(*videos, "--batch", "4", runner=Broken)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: unexpected ZeroDivisionError: of the third batch; run again with --debug" in result.stderr
    assert "the lines in out/predictions.jsonl are whole; go on with the same command and --resume" in result.stderr
    assert set(threading.enumerate()) <= before
    assert files_in(inside) == [*videos, "out/.infer.json", "out/predictions.jsonl"]
    assert len(lines_of(inside / "out")) == 8


class FolderRemoved(ColourRunner):
    """Its folder of results is gone with its third batch."""

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        if len(self.batches) == 2:
            shutil.rmtree("out")
        return super()._run(images, threshold)


def test_a_folder_that_is_removed_meanwhile_is_not_said_to_hold_lines(
    call: Callable[..., Result], inside: Path
) -> None:
    write_video(inside / "a.mp4", range(20), FRAME)
    result = call("a.mp4", "--batch", "4", "--no-video", runner=FolderRemoved)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: out/predictions.jsonl cannot be written: ")


class Diverged(ColourRunner):
    """Answers its second batch with a logit that is no number."""

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        out = super()._run(images, threshold)
        if len(self.batches) == 2:
            out["logits"][0, 1] = np.nan
        return out


def test_answers_that_are_no_numbers_are_counted_and_said(call: Callable[..., Result], inside: Path) -> None:
    write_video(inside / "v.mp4", range(10), FRAME)
    result = call("v.mp4", "--batch", "4", "--json", runner=Diverged)
    assert result.exit_code == 1
    assert "error: the model's answers to 1 of 10 frames are no numbers (NaN or infinite)" in result.stderr
    assert json.loads(result.stdout)["frames"]["not_finite"] == 1
    assert len(lines_of(inside / "out")) == 10


def test_a_model_that_fails_in_a_resumed_run_loses_no_line_of_the_one_before(inside: Path) -> None:
    write_video(inside / "v.mp4", range(40), FRAME)
    infer(["v.mp4"], ColourRunner(), out="out", max_frames=10, video=False)
    with pytest.raises(ZeroDivisionError, match="of the third batch"):
        infer(["v.mp4"], Broken(), out="out", batch=4, video=False, resume=True)
    frames = [line["frame"] for line in lines_of(inside / "out")]
    assert frames == list(range(len(frames)))
    assert 10 <= len(frames) <= 18

"""infer when something breaks: an input, the disk, the model. What it says is true, and what it leaves is whole."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from spt_deploy.cli import main
from spt_deploy.runtimes.base import Arrays
from spt_deploy.workflows import infer as workflow
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner, picture, read_times, write_video

FRAME = Fraction(1, 25)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command with a runner that computes something simple, into ``out`` unless told otherwise."""

    def run(*arguments: str | Path, runner: type[ColourRunner] = ColourRunner) -> Result:
        monkeypatch.setattr(workflow, "_runner", lambda *given: (runner(), ""))
        out = () if "--out" in arguments else ("--out", "out")
        return CliRunner().invoke(main, ["infer", *map(str, arguments), *out])

    return run


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def child(body: str) -> subprocess.CompletedProcess[str]:
    """A Python process that sees what this one sees, in the same folder; what it says, and that it ended well."""
    found = [str(Path(entry).absolute()) for entry in sys.path]
    head = f"""
import sys; sys.path[:0] = {found!r}
import os, resource, signal
from pathlib import Path
from spt_deploy.errors import SptError
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner
"""
    return subprocess.run([sys.executable, "-c", head + body], capture_output=True, text=True, timeout=120, check=False)


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
    before = threading.active_count()
    result = call("a.mp4", "broken.mkv", "b.mp4", "early.mp4", "--json")
    assert result.exit_code == 1
    assert threading.active_count() == before
    assert "error: 1 input could not be read: broken.mkv " in result.stderr
    assert [failure["source"] for failure in json.loads(result.stdout)["failures"]] == ["broken.mkv"]
    lines = lines_of(inside / "out")
    for name, count in (("a.mp4", 60), ("b.mp4", 61), ("early.mp4", 7)):
        assert [line["frame"] for line in lines if line["source"] == name] == list(range(count))
        assert len(read_times(inside / "out" / f"{name[:-4]}.annotated.mp4")) == count
    of_broken = [line["frame"] for line in lines if line["source"] == "broken.mkv"]
    assert 0 < len(of_broken) < 100
    assert len(read_times(inside / "out/broken.annotated.mp4")) == len(of_broken)


# The disk


@pytest.fixture
def small_disk(inside: Path) -> Any:
    """Mounts a file system of so many bytes as ``disk``; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        disk = inside / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize(
    ("frames", "options", "name"),
    [
        (300, ["--no-video"], "predictions.jsonl"),
        (40, [], "annotated.mp4"),
        (12, ["--no-video"], "summary.json"),
    ],
)
def test_a_full_disk_is_one_sentence_exit_code_2_and_no_half_file_has_its_name(
    frames: int, options: list[str], name: str, call: Callable[..., Result], small_disk: Any, inside: Path
) -> None:
    size = (48, 64) if name != "annotated.mp4" else (480, 640)
    write_noise(inside / "v.mp4", frames, size)
    disk = small_disk({"predictions.jsonl": 32 << 10, "annotated.mp4": 256 << 10, "summary.json": 8 << 10}[name])
    result = call("v.mp4", "--out", disk / "out", *options)
    assert result.exit_code == 2, result.output
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert sentence.startswith(f"error: disk full while writing {disk}/out/{name}; free some space")
    assert [each for each in files_in(disk) if not each.startswith("out/.infer")] == (
        ["out/predictions.jsonl"] if name == "summary.json" else []
    )
    if name == "summary.json":
        assert len(lines_of(disk / "out")) == frames


def write_noise(path: Path, frames: int, size: tuple[int, int]) -> Path:
    """A video that does not become small when it is encoded again."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "30"})
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        for _ in range(frames):
            image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def test_a_resumed_run_that_finds_the_disk_full_keeps_the_lines_of_the_one_before(inside: Path) -> None:
    write_video(inside / "v.mp4", range(400), FRAME)
    killed = child("""
end = lambda now: now.done >= 100 and os.kill(os.getpid(), signal.SIGKILL)
infer(["v.mp4"], ColourRunner(), out="out", batch=2, video=False, on_progress=end)
""")
    assert killed.returncode == -signal.SIGKILL
    full = child("""
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # stands in for a full disk
try:
    infer(["v.mp4"], ColourRunner(), out="out", video=False, resume=True)
except SptError as error:
    print(error)
""")
    assert full.stdout.startswith("out/predictions.jsonl cannot be written: File too large; "), full.stderr
    assert 29_000 < (inside / "out/predictions.jsonl").stat().st_size <= 30_000
    kept = [line["frame"] for line in lines_of(inside / "out")]  # whole lines, every one
    assert len(kept) > 100
    report = infer(["v.mp4"], ColourRunner(), out="out", video=False, resume=True)
    assert report.summary.resumed == len(kept)
    assert [line["frame"] for line in lines_of(inside / "out")] == list(range(400))


def test_a_folder_without_write_permission_is_one_sentence_whoever_asks(inside: Path) -> None:
    cv2.imwrite("x.png", picture(0))
    (inside / "locked").mkdir(mode=0o555)
    inside.chmod(0o755)
    said = child("""
import av, cv2
import spt_deploy.streaming.encoder
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)  # root may write anywhere
try:
    infer(["x.png"], ColourRunner(), out="locked/out")
except SptError as error:
    print(type(error).__name__, error.exit_code, error)
""")
    expected = "locked/out/predictions.jsonl cannot be written: Permission denied; choose a place that you may write to"
    assert said.stdout.strip() == f"OutputError 2 {expected}", said.stderr
    assert files_in(inside) == ["x.png"]


@pytest.mark.parametrize("made", [False, True])
def test_names_too_long_for_the_disk_are_one_sentence(made: bool, call: Callable[..., Result], inside: Path) -> None:
    write_video(inside / "v.mp4", range(3), FRAME)
    if made:
        (inside / "list.txt").write_text("x" * 300 + "\n", encoding="utf-8")
    for arguments in (["list.txt" if made else "x" * 300], ["v.mp4", "--out", "y" * 300]):
        result = call(*arguments)
        assert result.exit_code == 2, result.stderr
        assert "File name too long" in result.stderr
        assert "unexpected" not in result.stderr


def test_inputs_with_the_longest_names_there_are_get_their_annotations(inside: Path) -> None:
    name = "ü" * 125  # 250 bytes, and four of the suffix
    for folder in ("a", "b"):
        Path(folder).mkdir()
        write_video(Path(folder, "v.mp4"), range(3), FRAME).rename(Path(folder, f"{name}.mp4"))
    cv2.imwrite("x.png", picture(0))
    Path("x.png").rename(f"{name}.png")
    report = infer([f"a/{name}.mp4", f"b/{name}.mp4", f"{name}.png"], ColourRunner(), out="out")
    videos = [path for path in report.files if path.suffix == ".mp4"]
    assert len(videos) == 2
    assert all(len(read_times(path)) == 3 and path.name.endswith(".mp4") for path in videos)
    assert [path.name for path in (inside / "out/annotated").iterdir()] == [f"{name}.png"]


# The model


class Broken(ColourRunner):
    """Fails on its third batch."""

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        if len(self.batches) == 2:
            raise ZeroDivisionError("of the third batch")
        return super()._run(images, threshold)


def test_a_model_that_fails_in_mid_stream_shows_its_error_and_leaves_no_thread_and_no_file(
    call: Callable[..., Result], inside: Path
) -> None:
    for name in ("a", "b", "c"):
        write_video(inside / f"{name}.mp4", range(200), FRAME)
    before = threading.active_count()
    result = call("a.mp4", "b.mp4", "c.mp4", "--batch", "4", runner=Broken)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: unexpected ZeroDivisionError: of the third batch; run again with --debug" in result.stderr
    assert threading.active_count() == before
    assert files_in(inside) == ["a.mp4", "b.mp4", "c.mp4"]
    assert not (inside / "out").exists()


def test_a_model_that_fails_in_a_resumed_run_loses_no_line_of_the_one_before(inside: Path) -> None:
    write_video(inside / "v.mp4", range(40), FRAME)
    infer(["v.mp4"], ColourRunner(), out="out", max_frames=10, video=False)
    with pytest.raises(ZeroDivisionError, match="of the third batch"):
        infer(["v.mp4"], Broken(), out="out", batch=4, video=False, resume=True)
    frames = [line["frame"] for line in lines_of(inside / "out")]
    assert frames == list(range(len(frames)))
    assert 10 <= len(frames) <= 18

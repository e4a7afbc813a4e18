"""infer and the disk: full, locked, names too long. It says one sentence, and no half file has a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from click.testing import Result

from spt_deploy.errors import OutputError, SourceError
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import (
    ColourRunner,
    files_in,
    lines_of,
    picture,
    python_command,
    read_times,
    write_video,
)

pytestmark = pytest.mark.usefixtures("inside")

FRAME = Fraction(1, 25)


def child(body: str) -> subprocess.CompletedProcess[str]:
    """A Python process in the same folder; what it says, and that it ended well."""
    head = """
import os, resource, signal
from pathlib import Path
from spt_deploy.errors import SptError
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner
"""
    return subprocess.run(python_command(head + body), capture_output=True, text=True, timeout=120, check=False)


def test_an_out_that_is_a_file_is_an_output_error(inside: Path) -> None:
    (inside / "out").touch()
    with pytest.raises(OutputError, match="out"):
        infer([write_video(inside / "v.mp4", [0, 40])], ColourRunner(), out="out")


def test_a_full_disk_is_one_sentence_and_the_lines_that_are_whole_can_be_gone_on_with(inside: Path) -> None:
    # A limit on the size of files stands in for a full disk, which a test cannot have.
    write_video(inside / "v.mp4", range(0, 40 * 200, 40))
    done = child("""
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    infer(["v.mp4"], ColourRunner(), out="out")
except SptError as error:
    print(type(error).__name__, error)
""")
    assert done.stdout.startswith("OutputError out/predictions.jsonl cannot be written: File too large; ")
    assert done.stderr == ""
    assert files_in(inside) == ["out/.infer.json", "out/predictions.jsonl", "v.mp4"]
    kept = lines_of(inside / "out")
    assert len(kept) > 10
    report = infer(["v.mp4"], ColourRunner(), out="out", resume=True)
    assert report.summary.resumed == len(kept)
    assert [line["frame"] for line in lines_of(inside / "out")] == list(range(200))


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
    assert [each for each in files_in(disk) if not each.startswith("out/.infer")] == ["out/predictions.jsonl"]
    kept = [line["frame"] for line in lines_of(disk / "out")]
    assert kept == list(range(frames if name == "summary.json" else len(kept)))


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
    expected = "locked/out cannot be written: Permission denied; choose a place that you may write to"
    assert said.stdout.strip() == f"OutputError 2 {expected}", said.stderr
    assert files_in(inside) == ["x.png"]


@pytest.mark.parametrize("made", [False, True])
def test_names_too_long_for_the_disk_are_one_sentence(made: bool, call: Callable[..., Result], inside: Path) -> None:
    write_video(inside / "v.mp4", range(3), FRAME)
    if made:
        (inside / "list.txt").write_text("x" * 300 + "\n", encoding="utf-8")
    for arguments in (
        ["list.txt" if made else "x" * 300],
        ["v.mp4", "--out", "y" * 300],
        ["v.mp4", "--out", "y" * 300, "--resume"],
    ):
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


def test_a_run_that_reads_nothing_leaves_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(SourceError):
        infer([tmp_path / "a.png"], ColourRunner(), out=tmp_path / "new/runs/a")
    assert not (tmp_path / "new").exists()

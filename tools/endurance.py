"""Ten thousand frames through ``infer``, with and without an annotated video: none is lost, and memory stays flat.

    python tools/endurance.py [--frames N] [--model MODEL.onnx]

Makes a small video (160 x 120, 25 frames a second, H.264), exports an ``spt_micro`` with random weights unless a model
is named, and runs the command in a process of its own, whose resident memory is sampled four times a second. Then:

- there is a line for every frame, in order, once each, at times that increase; the annotated video plays as many;
- the median of memory over the last fifth of the run is at most a twentieth and 8 MiB above that over the second fifth:
  in the first fifth pools and caches still fill.

Exit code 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

_EVERY = 0.25  # seconds between two samples
_GROWTH, _SLACK = 1.05, 8.0  # factor, and MiB for what an allocator rounds up
_REPOSITORY = Path(__file__).resolve().parents[1]


def make_video(path: Path, frames: int) -> Path:
    """A bright square that runs over noise which repeats."""
    random = np.random.default_rng(0)
    grounds = random.integers(0, 128, (16, 120, 160, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(frames):
            image = grounds[number % len(grounds)].copy()
            left = number % 128
            image[40:72, left : left + 32] = (40, 200, 250)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def make_model(folder: Path) -> Path:
    """An exported ``spt_micro`` for images of 128 x 128."""
    maker = _REPOSITORY / "tools/random_checkpoints.py"
    subprocess.run([sys.executable, str(maker), str(folder), "--imgsz", "128", "spt_micro"], check=True)
    export = [sys.executable, "-m", "spt_deploy", "export", str(folder / "spt_micro.pt")]
    subprocess.run(export, check=True, capture_output=True)
    return folder / "spt_micro.onnx"


def memory_of(command: list[str]) -> list[float]:
    """Resident memory of a process while it runs, in MiB, sample by sample.

    Raises:
        subprocess.CalledProcessError: when it does not end with exit code 0.
    """
    samples = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
            if pages:  # none once it has ended
                samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            time.sleep(_EVERY)
        said.seek(0)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, said.read())
    return samples


def problems(out: Path, frames: int, with_video: bool) -> list[str]:
    """What does not hold of the results in ``out``."""
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    found = []
    if [line["frame"] for line in lines] != list(range(frames)):
        found.append(f"{len(lines)} lines, which are not those of frames 0 to {frames - 1} once each in order")
    if not all(earlier["time"] < later["time"] for earlier, later in pairwise(lines)):
        found.append("times do not increase")
    if with_video:
        with av.open(str(out / "annotated.mp4")) as container:
            played = sum(1 for _ in container.decode(video=0))
        if played != frames:
            found.append(f"the annotated video plays {played} frames")
    return found


def run(model: Path, video: Path, frames: int, out: Path, with_video: bool) -> list[str]:
    """Run the command, print its figures, and return what does not hold."""
    command = [sys.executable, "-m", "spt_deploy", "infer", str(video), "--model", str(model), "--out", str(out)]
    samples = memory_of(command + ([] if with_video else ["--no-video"]))
    fifth = len(samples) // 5
    if fifth < 4:
        return [f"only {len(samples)} samples of memory; take more --frames"]
    early, late = statistics.median(samples[fifth : 2 * fifth]), statistics.median(samples[-fifth:])
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    print(
        f"{'with' if with_video else 'without'} video: {summary['frames']['inferred']} frames in "
        f"{summary['wall_s']:.0f} s, {summary['fps']:.0f} a second, slowest stage {summary['limiting_stage']}; memory "
        f"{early:.0f} MiB early, {late:.0f} MiB late, {max(samples):.0f} MiB at most"
    )
    found = problems(out, frames, with_video)
    if late > early * _GROWTH + _SLACK:
        found.append(f"memory grew from {early:.0f} to {late:.0f} MiB")
    return found


def main() -> int:
    """Make what is needed, run both ways, and say what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--model", type=Path, help="an exported model or a checkpoint")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = make_video(folder / "video.mp4", given.frames)
        model = given.model or make_model(folder)
        found = [
            problem
            for with_video in (False, True)
            for problem in run(model, video, given.frames, folder / f"out-{with_video}", with_video)
        ]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    print("memory is flat and every frame is there" if not found else f"{len(found)} things do not hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

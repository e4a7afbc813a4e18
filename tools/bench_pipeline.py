"""How near `infer` comes to the speed of its slowest part, and what a loop written by hand makes of the same video.

    python tools/bench_pipeline.py MODEL.onnx VIDEO [--video-out] [--frames N] [--times N] [--rounds N]

The bound is the smaller of the slowest stage alone and cores / (CPU seconds that all stages together need for a frame):
on a CPU the stages share the cores. These seconds are of a stage that runs on every core at once: a core beside busy
ones is slower than beside idle ones. The model counts as it is best, one batch on all cores or several at a time, and
so does the encoder, with x264's choice of threads or one. Runners are open and have run when a clock starts.
Stages alone, pipeline and loop take turns in every round; medians are printed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from spt_deploy.postprocess import Postprocessing
from spt_deploy.runtimes import Runner, open_runner
from spt_deploy.streaming.annotations import Annotations
from spt_deploy.streaming.frames import Frame, Sampling
from spt_deploy.streaming.overlay import Overlay
from spt_deploy.streaming.video import VideoFile
from spt_deploy.streaming.writers import PredictionLog
from spt_deploy.workflows.infer import infer


class Cost(NamedTuple):
    """Of one frame, in seconds: on the clock, and of processor time over all threads."""

    wall: float
    cpu: float


def timed(work: Callable[[], int]) -> Cost:
    """``work`` does so many frames."""
    wall, cpu = time.perf_counter(), time.process_time()
    frames = work()
    return Cost((time.perf_counter() - wall) / frames, (time.process_time() - cpu) / frames)


def timed_alone_and_busy(work: Callable[[], int]) -> Cost:
    """The clock of ``work`` alone, and its processor time with every core at such work."""
    cores = os.cpu_count() or 1
    alone = timed(work)
    with ThreadPoolExecutor(cores) as pool:
        busy = timed(lambda: sum(pool.map(lambda _: work(), range(cores))))
    return Cost(alone.wall, busy.cpu)


def repeat(video: Path, out: Path, times: int) -> None:
    """The packets of a video so many times over, as they are, in one file."""
    begin = 0
    with av.open(out, "w") as to:
        stream = None
        for _ in range(times):
            with av.open(video) as container:
                played = container.streams.video[0]
                stream = to.add_stream_from_template(played) if stream is None else stream
                end = begin
                for packet in container.demux(played):
                    if packet.dts is None:
                        continue
                    packet.stream = stream
                    packet.dts += begin
                    packet.pts = None if packet.pts is None else packet.pts + begin
                    end = max(end, packet.dts + max(1, packet.duration or 1))
                    to.mux(packet)
                begin = end


def by_hand(runner: Runner, video: Path, frames: int) -> int:
    """What one writes first: a capture, one frame at a time, a list of answers."""
    capture = cv2.VideoCapture(str(video))
    answers = []
    while len(answers) < frames:
        found, image = capture.read()
        if not found:
            break
        answers.append(runner.infer(runner.facts.image_input.prepare(image)[None]))  # type: ignore[arg-type]
    capture.release()
    return len(answers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--video-out", action="store_true", help="draw and encode too")
    parser.add_argument("--frames", type=int, default=400, help="of the video, each time")
    parser.add_argument(
        "--times", type=int, default=1, help="play the video so often: a long recording out of a short one"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runtime", default="auto", help="of infer; the loop by hand is ONNX Runtime's")
    given = parser.parse_args()
    sampling = Sampling(max_frames=given.frames * given.times)
    costs: dict[str, list[Cost]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_runner(given.model, given.runtime, "cpu") as runner,
        open_runner(given.model, given.runtime, "cpu", throughput=True) as sharing,
        open_runner(given.model, "onnxruntime", "cpu") as hand,
    ):
        for opened in (runner, sharing):
            opened.expect(given.batch)
        video = given.video
        if given.times > 1:
            video = Path(folder) / f"long{given.video.suffix}"
            repeat(given.video, video, given.times)
        source = VideoFile(video)
        frames = [item for item in source.frames(Sampling(max_frames=64)) if isinstance(item, Frame)]
        taken = runner.facts.image_input
        batch = np.stack([taken.prepare(frame.image) for frame in frames[: given.batch]])
        sizes = [(frame.image.shape[0], frame.image.shape[1]) for frame in frames[: given.batch]]

        def warm(opened: Runner) -> None:
            """The first run of each lane is slower."""
            with ThreadPoolExecutor(opened.lanes) as pool:
                list(pool.map(opened.infer, [batch] * 2 * opened.lanes))

        warm(sharing)
        arrays = runner.infer(batch)
        answers = Postprocessing().apply(arrays, runner.facts, sizes)
        turns = itertools.count()

        def draw(threads: int) -> int:
            place = Path(folder) / str(next(turns))
            annotations = Annotations(place, [source], Overlay(), runner.facts, threads=threads)
            for index, frame in enumerate(frames):
                answer = answers[index % len(answers)]
                annotations.write(source, frame, answer, annotations.prepare(source, frame, answer))
            annotations.keep()
            return len(frames)

        def write() -> int:
            log = PredictionLog(Path(folder) / str(next(turns)))
            for start in range(0, len(frames), given.batch):
                part = frames[start : start + given.batch]
                found = Postprocessing().apply(arrays, runner.facts, sizes)
                for frame, prediction in zip(part, found, strict=False):
                    log.write(frame, prediction)
            log.keep()
            return len(frames)

        def end_to_end() -> int:
            out = Path(folder) / f"infer-{next(turns)}"
            with open_runner(given.model, given.runtime, "cpu", throughput=True) as fresh:
                fresh.expect(given.batch)
                warm(fresh)
                start, cpu = time.perf_counter(), time.process_time()
                done = infer(
                    [video],
                    fresh,
                    batch=given.batch,
                    out=out,
                    max_frames=sampling.max_frames,
                    video=given.video_out,
                )
                count = done.summary.inferred
                whole.append(Cost((time.perf_counter() - start) / count, (time.process_time() - cpu) / count))
            return count

        def decode() -> int:
            return sum(isinstance(item, Frame) for item in source.frames(sampling))

        def prepare() -> int:
            place = taken.empty(1)[0]
            for frame in frames:
                taken.prepare(frame.image, out=place)
            return len(frames)

        def model(opened: Runner) -> int:
            for _ in range(max(1, 64 // given.batch)):
                opened.infer(batch)
            return max(1, 64 // given.batch) * len(batch)

        def lanes() -> int:
            with ThreadPoolExecutor(sharing.lanes) as pool:
                return sum(pool.map(model, [sharing] * sharing.lanes))

        def best(*costs: Cost) -> Cost:
            return Cost(min(cost.wall for cost in costs), min(cost.cpu for cost in costs))

        whole: list[Cost] = []
        stages: dict[str, Callable[[], Cost]] = {
            "decode": lambda: timed_alone_and_busy(decode),
            "preprocess": lambda: timed_alone_and_busy(prepare),
            "model": lambda: best(timed(lambda: model(runner)), timed(lanes)),
            "postprocess and write": lambda: timed_alone_and_busy(write),
        }
        if given.video_out:
            by_threads = [partial(draw, threads) for threads in (0, 1)]
            stages["draw and encode"] = lambda: best(*map(timed_alone_and_busy, by_threads))
        for _ in range(given.rounds):
            for name, measure in stages.items():
                costs.setdefault(name, []).append(measure())
            end_to_end()
            costs.setdefault("by hand", []).append(timed(lambda: by_hand(hand, video, min(200, given.frames))))
    rounds = range(given.rounds)
    cores = os.cpu_count() or 1
    bounds = []
    for r in rounds:
        alone = [costs[name][r] for name in stages]
        bounds.append(1 / max(max(cost.wall for cost in alone), sum(cost.cpu for cost in alone) / cores))
    for name in (*stages, "by hand"):
        wall, cpu = (statistics.median(cost[i] for cost in costs[name]) for i in range(2))
        print(f"{name:22} {1 / wall:8.1f} frames/s alone, {1e3 * cpu:7.2f} ms of processor time a frame")
    print(f"{'bound':22} {statistics.median(bounds):8.1f} frames/s on {cores} cores")
    rate, cpu = statistics.median(1 / cost.wall for cost in whole), statistics.median(cost.cpu for cost in whole)
    print(f"{'infer':22} {rate:8.1f} frames/s      , {1e3 * cpu:7.2f} ms of processor time a frame")
    efficiency = statistics.median(1 / whole[r].wall / bounds[r] for r in rounds)
    ratio = statistics.median(costs["by hand"][r].wall / whole[r].wall for r in rounds)
    print(f"efficiency {efficiency:.1%} of the bound; {ratio:.2f} times the loop by hand")


if __name__ == "__main__":
    main()

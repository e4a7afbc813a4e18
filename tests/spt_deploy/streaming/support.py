"""What the tests of streams share: a runner that computes something simple from the pixels, and videos to feed it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import numpy.typing as npt

from spt_deploy.config import BackboneConfig, ModelConfig, Task
from spt_deploy.facts import ModelFacts
from spt_deploy.postprocess import Prediction
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes.base import Arrays, Runner
from spt_deploy.streaming.frames import Failure, Frame, Sampling, Source
from spt_deploy.streaming.writers import FrameWriter

COLOURS = ("red", "green", "blue")


def facts_of(task: Task = "classify", size: tuple[int, int] = (64, 64), names: tuple[str, ...] = COLOURS) -> ModelFacts:
    """Of a model that need not exist."""
    model = ModelConfig(backbone=BackboneConfig.from_name("spt_micro"), task=task, class_names=names)
    return ModelFacts(model=model, preprocessing=Preprocessing.for_task(task, size), tool_version="0")


class Recording(Source):
    """So many grey frames; notes the thread that reads each."""

    def __init__(self, name: str, count: int = 30, pause: float = 0.0) -> None:
        super().__init__(name)
        self.readers: list[str] = []
        self._count = count
        self._pause = pause

    def frames(self, sampling: Sampling) -> Iterator[Frame | Failure]:
        for index in range(self._count):
            self.readers.append(threading.current_thread().name)
            time.sleep(self._pause)
            yield Frame(self.name, index, index / 25, np.full((48, 64, 3), index, dtype=np.uint8))

    def total(self) -> int | None:
        return self._count


class ColourRunner(Runner):
    """The mean of each colour as logits, the bright tokens as selection; as a detector, a box about the bright tokens.

    It counts the images of each batch in ``batches``.
    """

    runtime: ClassVar[str] = "test"

    def __init__(self, facts: ModelFacts | None = None) -> None:
        super().__init__(Path("colour.model"), facts or facts_of())
        self.batches: list[int] = []

    def _open(self) -> None:
        pass

    def _close(self) -> None:
        pass

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        self.batches.append(len(images))
        b, _, height, width = images.shape
        tokens = images.mean(axis=1).reshape(b, height // 16, 16, width // 16, 16).mean(axis=(2, 4))
        bright = tokens > tokens.mean(axis=(1, 2), keepdims=True)
        selection = (bright + (tokens > 0.5)).astype(np.float32) / 2
        out: Arrays = {
            "selection": selection,
            "select_ratio": np.stack([bright.mean(axis=(1, 2)), tokens.mean(axis=(1, 2)) > 0], 1).astype(np.float32),
        }
        if self.facts.model.task != "detect":
            return out | {"logits": images.mean(axis=(2, 3))}
        boxes = np.zeros((b, 3, 4), dtype=np.float32)
        for row, mask in enumerate(bright):
            ys, xs = np.nonzero(mask) if mask.any() else (np.array([0]), np.array([0]))
            boxes[row] = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * 16
            boxes[row, 1] += 1  # all but the same box: NMS takes it away
        scores = np.tile(np.array([0.9, 0.8, 0.6], np.float32), (b, 1))
        return out | {"boxes": boxes, "scores": scores, "labels": np.tile(np.array([0, 0, 1]), (b, 1))}


class ExpectingRunner(ColourRunner):
    """Notes which sizes of batch it is told to expect."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[int | None] = []

    def expect(self, batch: int | None) -> None:
        self.expected.append(batch)


class StoppingRunner(ColourRunner):
    """Sends this process a signal before its second batch."""

    def __init__(self, facts: ModelFacts | None = None, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(facts)
        self._number = number

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        if len(self.batches) == 1:
            os.kill(os.getpid(), self._number)
        return super()._run(images, threshold)


def python_command(body: str) -> list[str]:
    """A Python process that finds what this one finds."""
    found = [str(Path(entry).absolute()) for entry in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {found!r}\n{body}"]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """What ``predictions.jsonl`` in a folder says."""
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def files_in(folder: Path) -> list[str]:
    """Every file in a folder and below it, by its path from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def picture(number: int, height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    """H x W x 3 uint8 BGR: a ground whose grey says the number, with a bright square."""
    image = np.full((height, width, 3), 16 + number * 11 % 160, dtype=np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = (60, 90, 250)
    return image


def write_video(
    path: Path,
    ticks: Iterable[int],
    time_base: Fraction = Fraction(1, 1000),
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    container_options: dict[str, str] | None = None,
    **codec_options: Any,
) -> Path:
    """A video whose frame ``i`` shows ``picture(i)`` at the ``i``-th of ``ticks``."""
    options = {key: str(value) for key, value in codec_options.items()}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="bgr24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_times(path: Path) -> list[float]:
    """The presentation time of every frame, in seconds."""
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def wait_for_lines(folder: Path, count: int) -> None:
    """Until a run that writes into ``folder`` has written so many lines."""
    deadline = time.monotonic() + 20
    while sum(path.read_bytes().count(b"\n") for path in folder.glob(".predictions.*.jsonl")) < count:
        assert time.monotonic() < deadline, f"no {count} lines in {folder}"
        time.sleep(0.01)


def give(writer: FrameWriter, source: Source, frame: Frame, prediction: Prediction) -> None:
    """A frame with its answer to a writer, as the pipeline does it."""
    prepared = writer.prepare(source, frame, prediction)
    writer.write(source, frame.without_picture(), prediction, prepared)

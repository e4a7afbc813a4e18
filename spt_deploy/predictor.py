"""A model that answers from Python: one image, a batch, or a stream.

with Predictor("best.onnx") as model:
    print(model.predict("street.jpg").to_dict())
    for frame, prediction in model.stream("street.mp4"):
        ...
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from spt_deploy.errors import InputError, SourceError, UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.images import read_image
from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Postprocessing, Prediction
from spt_deploy.runtimes import Runner, open_runner
from spt_deploy.streaming.batches import MAX_WAIT
from spt_deploy.streaming.flow import Flow
from spt_deploy.streaming.frames import Frame, Sampling, Source
from spt_deploy.streaming.sources import open_sources
from spt_deploy.streaming.summary import StageClock, StreamSummary
from spt_deploy.streaming.turns import Turns, closing_sources
from spt_deploy.workflows.artefacts import find_runnable

Picture = str | Path | npt.NDArray[np.uint8]


class Predictor:
    """A model ready to answer. It is open from the start; use it in a ``with`` statement, or ``close`` it.

    Threads may share one: they are answered one after the other.

    Args:
        model: a checkpoint, an exported file or an engine; of a folder the newest one in it that this machine can run;
            the newest one here or under ``runs/`` if None. Or a runner, which is entered here: one that is open stays
            open.
        runtime: ``auto``, or one that takes the model; see `runtimes.open_runner`.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32`` or ``bf16``, which openvino computes in; None is the model's own.
        batch: images that the model gets at once, no more than an engine takes.
        conf: least score of a detection or of a multilabel class, in [0, 1].
        iou: boxes of one class that overlap more than this are one object, in [0, 1].
        threshold: of the score, in (0, 1), above which SPA blocks keep a token, in place of the model's own: of
            checkpoints, and of files that were exported with ``--runtime-threshold``.

    Raises:
        InputError: when the model is not there, cannot be used, or takes no threshold.
        RuntimeMissingError: when the runtime or device is not there.
        UsageError: when an argument is out of range.
    """

    def __init__(
        self,
        model: str | Path | Runner | None = None,
        *,
        runtime: str = "auto",
        device: str = "auto",
        precision: str | None = None,
        batch: int = 8,
        conf: float = 0.25,
        iou: float = 0.5,
        threshold: float | None = None,
    ) -> None:
        if batch < 1:
            raise UsageError(f"batch is {batch}; expected 1 or more")
        self._postprocessing = Postprocessing(conf, iou)
        if not isinstance(model, Runner):
            path = find_runnable(None if model is None else Path(model)).path
            model = open_runner(path, runtime, device, precision=precision)
        if threshold is not None:
            model.check_threshold(threshold)
        self._threshold = threshold
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(model)
        self._batch = min(batch, model.max_batch or batch)
        self._buffer = self.facts.image_input.empty(self._batch)

    @property
    def facts(self) -> ModelFacts:
        """What the model says of itself: task, classes, preprocessing."""
        return self._runner.facts

    def predict(self, image: Picture, threshold: float | None = None) -> Prediction:
        """The answer to one image.

        Args:
            image: a file, or H x W x 3 uint8, BGR as OpenCV reads it.
            threshold: in place of that of the ``Predictor``; None keeps it.

        Raises:
            SourceError: when the file cannot be read.
            InputError: when ``image`` is neither, or the model takes no threshold.
            UsageError: when the threshold is not in (0, 1).
        """
        return self.predict_batch([image], threshold)[0]

    def predict_batch(self, images: Sequence[Picture], threshold: float | None = None) -> list[Prediction]:
        """The answers to any number of images of any sizes; arguments and errors as for ``predict``."""
        if isinstance(images, str | Path):
            raise InputError(f"images is {str(images)!r}, one file; expected a list of images, or give it to predict")
        answers: list[Prediction] = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            answers += self._answers([_pixels(each) for each in part], threshold)
        return answers

    def stream(
        self,
        *sources: str | Path,
        start: int = 0,
        stride: int = 1,
        max_frames: int | None = None,
        duration: float | None = None,
        threshold: float | None = None,
    ) -> Iterator[tuple[Frame, Prediction]]:
        """Frames of anything that the command ``infer`` takes with their answers, as they come; decoded ahead.

        Args:
            sources: to be read; several take turns, and live ones drop what there is no time for.
            start: number of the first frame of each, counted from 0.
            stride: every how many-th frame from there on.
            max_frames: at most so many of each.
            duration: so many seconds of each video or live source.
            threshold: see ``predict``.

        Raises:
            InputError: at once when a threshold is given and the model takes none.
            SourceError: at once when a source is not there; after the last frame when some could not be read.
            UsageError: at once when a number is out of range, or standard input is named twice.
        """
        if threshold is not None:
            self._runner.check_threshold(threshold)
        return self._stream(open_sources(sources), Sampling(start, stride, max_frames, duration), threshold)

    def _stream(
        self, opened: Sequence[Source], sampling: Sampling, threshold: float | None
    ) -> Iterator[tuple[Frame, Prediction]]:
        summary = StreamSummary()
        with closing_sources(opened), Flow() as flow:
            turns = Turns(flow, opened, sampling, StopRequest(), StageClock(), summary)
            waiting: list[Frame] = []
            due: float | None = None  # when those that wait are answered, whoever else may come
            while (turn := turns.take(None if due is None else max(0.0, due - time.monotonic()))) is not None:
                if isinstance(turn.item, Frame):
                    waiting.append(turn.item)
                if due is None and waiting and turns.may_wait:
                    due = time.monotonic() + MAX_WAIT
                if len(waiting) == self._batch or turn.source is None:
                    yield from zip(waiting, self._answers([each.image for each in waiting], threshold), strict=True)
                    waiting, due = [], None
            yield from zip(waiting, self._answers([each.image for each in waiting], threshold), strict=True)
        if summary.failures:
            raise SourceError("; ".join(failure.reason for failure in summary.failures))

    def close(self) -> None:
        """Give back what the runtime took; again is no harm."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self, images: Sequence[npt.NDArray[np.uint8]], threshold: float | None) -> list[Prediction]:
        if not images:
            return []
        with self._lock:
            for place, image in enumerate(images):
                self.facts.image_input.prepare(image, out=self._buffer[place])
            if len(images) == self._batch:
                self._runner.expect(self._batch)
            chosen = self._threshold if threshold is None else threshold
            arrays = self._runner.infer(self._buffer[: len(images)], chosen)
            sizes = [(image.shape[0], image.shape[1]) for image in images]
            return self._postprocessing.apply(arrays, self.facts, sizes)


def _pixels(image: Picture) -> npt.NDArray[np.uint8]:
    """H x W x 3 uint8, BGR."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray):
        hint = "cv2.imread gives None for a file that it cannot read: give the file's name, and the error says why"
        if image is not None:
            hint = "of a picture in RGB, as Pillow's, give numpy.asarray(picture)[..., ::-1]"
        raise InputError(
            f"an image of type {type(image).__name__}; expected a file's name, or a NumPy array H x W x 3 uint8, BGR; "
            f"{hint}"
        )
    return image

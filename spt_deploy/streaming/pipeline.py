"""From sources through a model to the writers, one batch at a time.

Each stage is one method that takes what the stage before gives, so that they can become threads joined by queues.
Nothing here grows with a video: the batch buffer is reused, and no more frames are held than a batch has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Postprocessing, Prediction
from spt_deploy.runtimes.base import Runner
from spt_deploy.streaming import summary as stages
from spt_deploy.streaming.frames import Failure, Frame, Sampling, Source, VideoSource
from spt_deploy.streaming.summary import StageClock, StreamSummary
from spt_deploy.streaming.writers import Annotations, PredictionLog


@dataclass(frozen=True)
class Progress:
    """How far a stream is.

    Attributes:
        done: frames with an answer.
        total: of all sources, as far as they say; None when one does not.
        mean_select_ratio: so far, over frames and SPA blocks; None without SPA blocks.
    """

    done: int
    total: int | None
    mean_select_ratio: float | None


class Pipeline:
    """Runs a model over sources and hands the answers on in order.

    Args:
        runner: open.
        postprocessing: thresholds of the answers.
        log: gets every answer.
        annotations: gets every answer with its frame; None draws nothing.
        batch: images in a full batch. Batches fill across sources; the last one runs with what there is.
        on_progress: called after every batch.
    """

    def __init__(
        self,
        runner: Runner,
        postprocessing: Postprocessing,
        log: PredictionLog,
        annotations: Annotations | None,
        batch: int,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._runner = runner
        self._postprocessing = postprocessing
        self._log = log
        self._annotations = annotations
        self._on_progress = on_progress
        # Filled in place by the preprocessing, sliced by the model, and the same memory for every batch.
        self._buffer = np.empty((batch, 3, *runner.facts.preprocessing.size), dtype=np.float32)
        self._waiting: list[tuple[Source, Frame]] = []  # the frames in the buffer
        self._ended: list[Source] = []  # sources whose last frame is in the buffer
        self._total: int | None = None
        self._ratios = (0.0, 0)  # sum of the mean select ratios, and how many
        self._clock = StageClock()
        self._summary = StreamSummary()

    def run(self, sources: Sequence[Source], sampling: Sampling, stop: StopRequest) -> StreamSummary:
        """Every frame of every source, until the end or until ``stop`` is made: then what was read is finished.

        The writers are left open, for whoever made them to keep or to drop.

        Raises:
            SptError: whatever a stage raises; files that cannot be read are failures in the summary instead.
        """
        self._clock = StageClock()
        self._summary = StreamSummary(busy_s=self._clock.busy)
        totals = [source.total() for source in sources]
        self._total = None if None in totals else sum(sampling.count(total) for total in totals if total is not None)
        for source in sources:
            for frame in self._frames(source, sampling, stop):
                self._take(source, frame)
            if isinstance(source, VideoSource):
                self._ended.append(source)
                if not self._waiting:
                    self._end_sources()
            if stop.made:
                break
        self._flush()
        self._end_sources()
        self._summary.stopped_by = stop.signal_number
        self._summary.mean_select_ratio = self._mean_select_ratio
        self._summary.wall_s = self._clock.wall
        return self._summary

    def _frames(self, source: Source, sampling: Sampling, stop: StopRequest) -> Iterator[Frame]:
        """Decode: the frames that can be read; the failures are noted."""
        items = iter(source.frames(sampling))
        while not stop.made:
            with self._clock.stage(stages.DECODE):
                item = next(items, None)
            if item is None:
                return
            if isinstance(item, Failure):
                self._summary.failures.append(item)
            else:
                self._summary.read += 1
                yield item

    def _take(self, source: Source, frame: Frame) -> None:
        """Preprocess into the next place of the batch, and run the batch when that was the last."""
        with self._clock.stage(stages.PREPROCESS):
            self._runner.facts.preprocessing.apply(frame.image, out=self._buffer[len(self._waiting)])
        self._waiting.append((source, frame))
        if len(self._waiting) == len(self._buffer):
            self._flush()

    def _flush(self) -> None:
        """Run the frames that wait, however many, and hand their answers on."""
        if not self._waiting:
            return
        with self._clock.stage(stages.MODEL):
            arrays = self._runner.infer(self._buffer[: len(self._waiting)])
        with self._clock.stage(stages.POSTPROCESS):
            sizes = [(frame.image.shape[0], frame.image.shape[1]) for _, frame in self._waiting]
            predictions = self._postprocessing.apply(arrays, self._runner.facts, sizes)
        for (source, frame), prediction in zip(self._waiting, predictions, strict=True):
            self._hand_on(source, frame, prediction)
        self._waiting.clear()
        self._end_sources()
        if self._on_progress:
            self._on_progress(Progress(self._summary.inferred, self._total, self._mean_select_ratio))

    def _hand_on(self, source: Source, frame: Frame, prediction: Prediction) -> None:
        """To the writers."""
        if self._annotations is not None:
            with self._clock.stage(stages.DRAW_ENCODE):
                self._annotations.write(source, frame, prediction)
        with self._clock.stage(stages.WRITE):
            self._log.write(frame, prediction)
        self._summary.inferred += 1
        self._summary.overflowed += any(prediction.overflow)
        self._summary.last = (frame.source, frame.index)
        ratio = prediction.mean_select_ratio
        if ratio is not None:
            self._ratios = (self._ratios[0] + ratio, self._ratios[1] + 1)

    def _end_sources(self) -> None:
        """Close the outputs of sources whose last frame has been handed on."""
        if self._annotations is not None:
            with self._clock.stage(stages.DRAW_ENCODE):
                for source in self._ended:
                    self._annotations.end(source)
        self._ended.clear()

    @property
    def _mean_select_ratio(self) -> float | None:
        total, count = self._ratios
        return total / count if count else None

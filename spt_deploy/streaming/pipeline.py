"""From sources through a model to the writers.

    decode (see turns.py) -> preprocess (batches.py) -> model -> postprocess, draw -> encode, write

Beside a model that runs one batch at a time, each stage has a thread, drawing some, and bounded queues join them: the
slowest stage sets the pace and the rest hide behind it. A model that runs several at a time, each on its share of the
cores, has as many threads, a few more where there are more cores, and each takes a batch through all of its stages
(sharing.py): more threads than cores would only take the cores from each other. There recordings are decoded by who
preprocesses, frame by frame, while a frame is in its cache, until the model keeps waiting for it; elsewhere ahead, each
in a thread of its own. The model runs in the caller's thread, where signals are heard, and in those of its other lanes.
Nothing grows with a video: the batch buffers go round, and no more frames are held than there is room for; where
nothing is made of the pictures, none is held once it is in its batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spt_deploy.errors import UsageError
from spt_deploy.image_input import Images
from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Postprocessing, Prediction
from spt_deploy.runtimes.base import Runner, usable_cores
from spt_deploy.streaming import summary as stages
from spt_deploy.streaming.batches import MAX_WAIT, Batch, Filler
from spt_deploy.streaming.budget import Budget
from spt_deploy.streaming.flow import Channel, Flow
from spt_deploy.streaming.frames import Failure, Frame, Sampling, Source, VideoSource, expected_frames
from spt_deploy.streaming.sharing import InOrder, Stock
from spt_deploy.streaming.summary import StageClock, StreamSummary
from spt_deploy.streaming.turns import DECODERS, Turns, closing_sources
from spt_deploy.streaming.writers import FrameWriter, PredictionLog

READY = 3  # filled batches that may wait for the model; a large one alone
_STOCK = 2  # likewise of a model of several lanes
_LARGE = 32 << 20  # bytes of a batch
_DRAWERS = 2  # threads that draw beside a model that runs one batch at a time; each holds one more
_SPARE = 2  # threads beside those in the model, where there are cores for them
_OFTEN = 8  # batches in a row that the model waited for, when it is time to decode ahead


@dataclass(frozen=True)
class Progress:
    """How far a stream is.

    Attributes:
        done: frames with an answer.
        total: of all sources, as far as they say; None when one does not.
        mean_select_ratio: so far, over frames and SPA blocks; None without SPA blocks.
        batch_select_ratio: likewise, of the last batch alone.
        lost: live sources that were given up since the last call, while others go on.
    """

    done: int
    total: int | None
    mean_select_ratio: float | None
    batch_select_ratio: float | None = None
    lost: tuple[Failure, ...] = ()


class Pipeline:
    """Runs a model over sources and hands the answers on in order.

    Args:
        runner: open.
        postprocessing: thresholds of the answers.
        log: gets every answer.
        annotations: gets every answer with its frame; None makes nothing of frames.
        batch: images in a full batch. Batches fill across sources; the last one runs with what there is.
        on_progress: called after every batch, from a thread of the pipeline.
        done: see ``Turns``.
        max_wait: seconds after which a batch that waits for a live source, or for a pipe, runs with what there is.
        threshold: of the selection, or a budget that chooses it batch by batch; None is the model's own.

    Raises:
        UsageError: when ``max_wait`` is below 0.
    """

    def __init__(
        self,
        runner: Runner,
        postprocessing: Postprocessing,
        log: PredictionLog,
        annotations: FrameWriter | None,
        batch: int,
        on_progress: Callable[[Progress], None] | None = None,
        done: Mapping[tuple[str, int], int] | None = None,
        max_wait: float = MAX_WAIT,
        threshold: float | Budget | None = None,
    ) -> None:
        if not max_wait >= 0:
            raise UsageError(f"max_wait is {max_wait} s; expected 0 or more")
        self._done = done
        self._max_wait = max_wait
        self._threshold = threshold
        self._runner = runner
        self._postprocessing = postprocessing
        self._log = log
        self._annotations = annotations
        self._on_progress = on_progress
        self._batch = batch
        self._total: int | None = None
        self._live: set[str] = set()  # names of live sources
        self._told = 0  # failures that progress has passed
        self._ratios = (0.0, 0)  # sum of the mean select ratios, and how many
        self._lanes = self._workers = 1  # in the model, and beside it
        self._clock = StageClock()
        self._summary = StreamSummary()

    def run(self, sources: Sequence[Source], sampling: Sampling, stop: StopRequest) -> StreamSummary:
        """Every frame of every source, until the end or until ``stop`` is made: then what was read is finished.

        The writers are left open, for whoever made them to keep or to drop.

        Raises:
            SptError: whatever a stage raises, the first of them; files that cannot be read are failures in the summary
                instead.
        """
        live = sum(source.live for source in sources)
        # A budget moves the threshold from batch to batch, by how long the last one took: one at a time.
        self._lanes = 1 if isinstance(self._threshold, Budget) else self._runner.lanes
        decoders = max(1, live + min(DECODERS, len(sources) - live))
        if self._lanes > 1:
            self._workers = self._lanes + (_SPARE if usable_cores() > self._lanes else 0)
        else:  # what a live source shows is to be young
            several = self._annotations is not None and not live and usable_cores() >= 2 * _DRAWERS
            self._workers = _DRAWERS if several else 1
        workers = {stages.DECODE: decoders, stages.MODEL: self._lanes}
        self._clock = StageClock(workers | dict.fromkeys((stages.POSTPROCESS, stages.DRAW), self._workers))
        self._summary = StreamSummary(stages=self._clock.stages)
        self._live = {source.name for source in sources if source.live}
        self._total = expected_frames(sources, sampling)
        with closing_sources(sources), Flow() as flow:
            # A model with lanes shares the cores with the decoders.
            turns = Turns(flow, sources, sampling, stop, self._clock, self._summary, self._done, self._lanes == 1)
            image_input, drawn = self._runner.facts.image_input, self._annotations is not None
            filler = Filler(turns, image_input, self._clock, self._summary, self._max_wait, drawn)
            ready = READY if self._buffer().nbytes <= _LARGE else 1
            if self._lanes == 1:
                self._run_by_stages(flow, filler, ready)
            else:
                self._run_by_batches(flow, filler, ready, turns)
        self._summary.read += self._summary.dropped
        self._summary.follows_live = all(source.live for source in sources)  # as they turned out to be
        self._summary.stopped_by = stop.signal_number
        self._summary.mean_select_ratio = self._mean_select_ratio
        self._summary.wall_s = self._clock.wall
        self._summary.budget = self._threshold.report() if isinstance(self._threshold, Budget) else None
        return self._summary

    def _run_by_stages(self, flow: Flow, filler: Filler, ready: int) -> None:
        """A thread for each stage: the model keeps its device busy, and the others work beside it."""
        free: Channel[Images] = flow.channel(np.ndarray, ready + 2)
        filled, answered = flow.channel(Batch, ready), flow.channel(Batch, 1)
        for _ in range(ready + 2):  # and the one that is being filled, and the one in the model
            free.put(self._buffer())

        def fill() -> None:
            for buffer in free:  # it is never closed
                if (batch := filler.fill(buffer)) is None:
                    break
                filled.put(batch)
            filled.close()

        def answer() -> None:
            for batch in answered:
                self._answer(batch)
                in_order.put(batch.number, batch)

        in_order: InOrder[Batch] = InOrder(flow, self._hand_on, 1)
        flow.spawn("preprocess", fill)
        for _ in range(self._workers):
            flow.spawn("postprocess", answer)
        for batch in filled:
            self._infer(batch)
            free.put(batch.buffer)
            answered.put(batch)
        answered.close()

    def _run_by_batches(self, flow: Flow, filler: Filler, ready: int, turns: Turns) -> None:
        """A thread for each lane of the model, and a few for spare cores, take batches through all stages."""
        ahead = min(ready, _STOCK)
        free = deque(self._buffer() for _ in range(self._workers + ahead))
        lanes = threading.BoundedSemaphore(self._lanes)
        waits = 0

        def fill() -> Batch | None:
            nonlocal waits
            batch = filler.fill(free.popleft())
            waits = waits + 1 if stock.is_awaited else 0
            if waits == _OFTEN:
                turns.read_ahead()
            return batch

        def work() -> None:
            while (batch := stock.take()) is not None:
                with lanes:
                    self._infer(batch)
                free.append(batch.buffer)
                self._answer(batch)
                in_order.put(batch.number, batch)

        stock: Stock[Batch] = Stock(flow, fill, ahead)
        in_order: InOrder[Batch] = InOrder(flow, self._hand_on, self._workers)
        for _ in range(self._workers - 1):
            flow.spawn("lane", work)
        work()

    def _buffer(self) -> Images:
        try:
            return self._runner.facts.image_input.empty(self._batch)
        except (MemoryError, ValueError) as error:  # NumPy's for more than can be addressed
            raise UsageError(f"batch is {self._batch}, for which there is no memory; choose a smaller one") from error

    def _infer(self, batch: Batch) -> None:
        """The model's answers to a batch; a budget hears how long they took."""
        if not batch.frames:
            return
        chosen = self._threshold
        batch.threshold = chosen.threshold if isinstance(chosen, Budget) else chosen
        start = time.perf_counter()
        with self._clock.stage(stages.MODEL, len(batch.frames)):
            batch.arrays = self._runner.infer(batch.buffer[: len(batch.frames)], batch.threshold)
        if isinstance(chosen, Budget):
            chosen.observe(len(batch.frames), time.perf_counter() - start)

    def _answer(self, batch: Batch) -> None:
        """What the arrays of a batch say, and what the writers need of its pictures: all that takes no order."""
        if not batch.frames:
            return
        with self._clock.stage(stages.POSTPROCESS, len(batch.frames)):
            sizes = [(frame.image.shape[0], frame.image.shape[1]) for _, frame in batch.frames]
            batch.predictions = self._postprocessing.apply(batch.arrays, self._runner.facts, sizes)
        batch.arrays = {}
        if self._annotations is not None:
            for place, (source, frame) in enumerate(batch.frames):
                with self._clock.stage(stages.DRAW):
                    batch.prepared.append(self._annotations.prepare(source, frame, batch.predictions[place]))
                batch.frames[place] = source, frame.without_picture()

    def _hand_on(self, batch: Batch) -> None:
        """The answers of a batch to the writers."""
        for place, ((source, frame), prediction) in enumerate(zip(batch.frames, batch.predictions, strict=True)):
            self._write_gaps(batch, place)
            if self._annotations is not None:
                with self._clock.stage(stages.ENCODE):
                    self._annotations.write(source, frame, prediction, batch.prepared[place])
            self._write(frame, prediction, batch.threshold)
        self._write_gaps(batch, len(batch.frames))
        self._end(batch.ended)
        if batch.frames and self._on_progress:
            done = self._summary.resumed + self._summary.inferred
            ratios = [each.mean_select_ratio for each in batch.predictions if each.mean_select_ratio is not None]
            of_batch = sum(ratios) / len(ratios) if ratios else None
            failures = self._summary.failures[self._told :]
            self._told += len(failures)
            lost = tuple(failure for failure in failures if failure.source in self._live)
            self._on_progress(Progress(done, self._total, self._mean_select_ratio, of_batch, lost))

    def _write(self, frame: Frame, prediction: Prediction, threshold: float | None) -> None:
        with self._clock.stage(stages.WRITE):
            self._log.write(frame, prediction, threshold)
        self._summary.inferred += 1
        self._summary.overflowed += any(prediction.overflow)
        self._summary.not_finite += not prediction.is_finite
        self._summary.last = (frame.source, frame.index)
        ratio = prediction.mean_select_ratio
        if ratio is not None:
            self._ratios = (self._ratios[0] + ratio, self._ratios[1] + 1)

    def _write_gaps(self, batch: Batch, place: int) -> None:
        """Those that come right before the frame in that place of the batch."""
        for before, gap in batch.gaps:
            if before == place:
                self._log.write_gap(gap)
                self._summary.gaps += 1

    def _end(self, sources: Sequence[Source]) -> None:
        """Close the outputs of sources whose last frame has been handed on."""
        if self._annotations is not None:
            for source in sources:
                if isinstance(source, VideoSource):
                    with self._clock.stage(stages.ENCODE):
                        self._annotations.end(source)

    @property
    def _mean_select_ratio(self) -> float | None:
        total, count = self._ratios
        return total / count if count else None

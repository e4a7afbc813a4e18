"""From sources through a model to the writers: stages that work at the same time, joined by bounded queues.

    decode (see turns.py) -> preprocess -> model -> postprocess, draw, encode, write

The slowest stage sets the pace and the rest hide behind it. The model runs in the caller's thread, where signals are
heard, and, where the runner has several lanes, in as many threads as it has. Recordings are decoded ahead, each in a
thread of its own. Beside a model of several lanes, which has every core, the thread that preprocesses decodes them
instead, frame by frame, while a frame is in its cache, until the model keeps waiting for it. Batches fill across
sources, and do not wait long for live ones. Nothing grows with a video: the batch buffers go round, and no more frames
are held than the queues have room for; where nothing is made of the pictures, none is held once it is in its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from spt_deploy.errors import UsageError
from spt_deploy.image_input import Images
from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Postprocessing, Prediction
from spt_deploy.runtimes.base import Arrays, Runner
from spt_deploy.streaming import summary as stages
from spt_deploy.streaming.budget import Budget
from spt_deploy.streaming.flow import Channel, Flow, InOrder
from spt_deploy.streaming.frames import Frame, Gap, Sampling, Source, VideoSource, expected_frames
from spt_deploy.streaming.summary import StageClock, StreamSummary
from spt_deploy.streaming.turns import DECODERS, Turns, closing_sources
from spt_deploy.streaming.writers import FrameWriter, PredictionLog

READY = 3  # filled batches that may wait for the model; a large one alone
_LARGE = 32 << 20  # bytes of a batch
_OFTEN = 8  # batches in a row that the model waited for, when it is time to decode ahead
MAX_WAIT = 0.05  # seconds; a camera's frames are some 0.03 apart


@dataclass(frozen=True)
class Progress:
    """How far a stream is.

    Attributes:
        done: frames with an answer.
        total: of all sources, as far as they say; None when one does not.
        mean_select_ratio: so far, over frames and SPA blocks; None without SPA blocks.
        batch_select_ratio: likewise, of the last batch alone.
    """

    done: int
    total: int | None
    mean_select_ratio: float | None
    batch_select_ratio: float | None = None


@dataclass
class _Batch:
    """Frames on their way through the model.

    Attributes:
        buffer: N images as the model takes them, of which the first ``len(frames)`` are filled.
        number: of the batch, counted from 0.
        frames: in the buffer, each with its source.
        gaps: each with the number of frames in the buffer that come before it.
        ended: sources whose last frame is in this batch or an earlier one.
        arrays: what the model made of it.
        threshold: that its tokens were selected by; None is the model's own.
    """

    buffer: Images
    number: int = 0
    frames: list[tuple[Source, Frame]] = field(default_factory=list)
    gaps: list[tuple[int, Gap]] = field(default_factory=list)
    ended: list[Source] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    threshold: float | None = None


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
        self._ratios = (0.0, 0)  # sum of the mean select ratios, and how many
        self._lanes = 1
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
        self._clock = StageClock({stages.DECODE: decoders, stages.MODEL: self._lanes})
        self._summary = StreamSummary(stages=self._clock.stages, follows_live=live == len(sources))
        self._total = expected_frames(sources, sampling)
        with closing_sources(sources), Flow() as flow:
            image_input = self._runner.facts.image_input
            ready = READY if image_input.empty(self._batch).nbytes <= _LARGE else 1
            buffers = self._lanes + ready + 1  # and the one that is being filled
            free = flow.channel(_Batch, buffers)
            filled, answered = flow.channel(_Batch, ready), flow.channel(_Batch, 1)
            for _ in range(buffers):
                free.put(_Batch(image_input.empty(self._batch)))
            ahead = self._lanes == 1  # a model with lanes shares the cores with the decoders
            turns = Turns(flow, sources, sampling, stop, self._clock, self._summary, self._done, ahead)
            flow.spawn("preprocess", lambda: self._preprocess(turns, free, filled))
            flow.spawn("postprocess", lambda: self._hand_on(answered))
            in_order = InOrder(answered, self._lanes)
            for _ in range(self._lanes - 1):
                flow.spawn("model", lambda: self._run_model(filled, in_order, free))
            self._run_model(filled, in_order, free)
        self._summary.read += self._summary.dropped
        self._summary.stopped_by = stop.signal_number
        self._summary.mean_select_ratio = self._mean_select_ratio
        self._summary.wall_s = self._clock.wall
        self._summary.budget = self._threshold.report() if isinstance(self._threshold, Budget) else None
        return self._summary

    def _run_model(self, filled: Channel[_Batch], answered: InOrder[_Batch], free: Channel[_Batch]) -> None:
        """Batches through the model, in one of its lanes; their buffers go back as soon as it has read them."""
        for batch in filled:
            with self._clock.stage(stages.MODEL, len(batch.frames) or 1):
                self._infer(batch)
            free.put(_Batch(batch.buffer))
            answered.put(batch.number, batch)
        answered.close()

    def _infer(self, batch: _Batch) -> None:
        """The model's answers to a batch; a budget hears how long they took."""
        if not batch.frames:
            return
        chosen = self._threshold
        batch.threshold = chosen.threshold if isinstance(chosen, Budget) else chosen
        start = time.perf_counter()
        batch.arrays = self._runner.infer(batch.buffer[: len(batch.frames)], batch.threshold)
        if isinstance(chosen, Budget):
            chosen.observe(len(batch.frames), time.perf_counter() - start)

    def _preprocess(self, turns: Turns, free: Channel[_Batch], filled: Channel[_Batch]) -> None:
        """Each frame into the next place of the batch in hand; a batch that is full, or has waited long, goes on."""
        batch, due, awaited = _next_of(free, 0), None, 0
        while (came := self._take(turns, batch, due)) is not None:
            if due is None and turns.may_wait:
                due = time.monotonic() + self._max_wait
            if not came or len(batch.frames) == len(batch.buffer):
                awaited = awaited + 1 if filled.is_awaited else 0
                if awaited == _OFTEN:
                    turns.read_ahead()
                filled.put(batch)
                batch, due = _next_of(free, batch.number + 1), None
        filled.put(batch)
        filled.close()

    def _take(self, turns: Turns, batch: _Batch, due: float | None) -> bool | None:
        """What comes next, into the batch; false when nothing came until ``due``, None when nothing will any more.

        A method of its own, for a decoded picture ends with it, and the next one gets its memory.
        """
        turn = turns.take(None if due is None else max(0.0, due - time.monotonic()))
        if turn is None or turn.source is None:
            return None if turn is None else False
        if isinstance(turn.item, Frame):
            self._summary.read += 1
            with self._clock.stage(stages.PREPROCESS):
                self._runner.facts.image_input.prepare(turn.item.image, out=batch.buffer[len(batch.frames)])
            shown = self._annotations is not None
            batch.frames.append((turn.source, turn.item if shown else turn.item.without_picture()))
        elif turn.item is not None:
            batch.gaps.append((len(batch.frames), turn.item))
        else:
            batch.ended.append(turn.source)
        return True

    def _hand_on(self, answered: Channel[_Batch]) -> None:
        """Answers of each batch to the writers."""
        for batch in answered:
            if batch.frames:
                with self._clock.stage(stages.POSTPROCESS, len(batch.frames)):
                    sizes = [(frame.image.shape[0], frame.image.shape[1]) for _, frame in batch.frames]
                    predictions = self._postprocessing.apply(batch.arrays, self._runner.facts, sizes)
                for place, ((source, frame), prediction) in enumerate(zip(batch.frames, predictions, strict=True)):
                    self._write_gaps(batch, place)
                    self._write(source, frame, prediction, batch.threshold)
            self._write_gaps(batch, len(batch.frames))
            self._end(batch.ended)
            if batch.frames and self._on_progress:
                done = self._summary.resumed + self._summary.inferred
                ratios = [each.mean_select_ratio for each in predictions if each.mean_select_ratio is not None]
                of_batch = sum(ratios) / len(ratios) if ratios else None
                self._on_progress(Progress(done, self._total, self._mean_select_ratio, of_batch))

    def _write(self, source: Source, frame: Frame, prediction: Prediction, threshold: float | None) -> None:
        if self._annotations is not None:
            with self._clock.stage(stages.DRAW_ENCODE):
                self._annotations.write(source, frame, prediction)
        with self._clock.stage(stages.WRITE):
            self._log.write(frame, prediction, threshold)
        self._summary.inferred += 1
        self._summary.overflowed += any(prediction.overflow)
        self._summary.last = (frame.source, frame.index)
        ratio = prediction.mean_select_ratio
        if ratio is not None:
            self._ratios = (self._ratios[0] + ratio, self._ratios[1] + 1)

    def _write_gaps(self, batch: _Batch, place: int) -> None:
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
                    with self._clock.stage(stages.DRAW_ENCODE):
                        self._annotations.end(source)

    @property
    def _mean_select_ratio(self) -> float | None:
        total, count = self._ratios
        return total / count if count else None


def _next_of(free: Channel[_Batch], number: int) -> _Batch:
    batch = free.get()
    assert batch is not None  # it is never closed
    batch.number = number
    return batch

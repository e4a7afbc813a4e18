"""From sources through a model to the writers: stages that work at the same time, joined by bounded queues.

    decode (a thread each of up to DECODERS sources) -> preprocess -> model -> postprocess, draw, encode, write

The slowest stage sets the pace and the rest hide behind it. The model runs in the caller's thread, where signals are
heard. Frames of several sources take turns, one of each, so that what is in a batch, and the order of the answers, do
not depend on how threads happen to run. Nothing grows with a video: the batch buffers go round, and no more frames are
held than the queues have room for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Postprocessing, Prediction
from spt_deploy.runtimes.base import Arrays, Runner
from spt_deploy.streaming import summary as stages
from spt_deploy.streaming.flow import Channel, Flow
from spt_deploy.streaming.frames import Failure, Frame, Sampling, Source, VideoSource
from spt_deploy.streaming.summary import StageClock, StreamSummary
from spt_deploy.streaming.writers import Annotations, PredictionLog

DECODERS = 4  # sources that are read at a time
BUFFERS = 3  # batches: one being filled, one in the model, one between
_AHEAD = 8  # decoded frames of a source that wait


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


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What a decoder hands on."""

    item: Frame | Failure


@dataclass
class _Batch:
    """Frames on their way through the model.

    Attributes:
        buffer: N x 3 x H x W float32, of which the first ``len(frames)`` are filled.
        frames: in the buffer, each with its source.
        ended: sources whose last frame is in this batch or an earlier one.
        arrays: what the model made of it.
    """

    buffer: npt.NDArray[np.float32]
    frames: list[tuple[Source, Frame]] = field(default_factory=list)
    ended: list[Source] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)


class Pipeline:
    """Runs a model over sources and hands the answers on in order.

    Args:
        runner: open.
        postprocessing: thresholds of the answers.
        log: gets every answer.
        annotations: gets every answer with its frame; None draws nothing.
        batch: images in a full batch. Batches fill across sources; the last one runs with what there is.
        on_progress: called after every batch, from a thread of the pipeline.
        done: source and frame of what an earlier run has answered, and how often: so often it is passed over.
    """

    def __init__(
        self,
        runner: Runner,
        postprocessing: Postprocessing,
        log: PredictionLog,
        annotations: Annotations | None,
        batch: int,
        on_progress: Callable[[Progress], None] | None = None,
        done: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self._done = Counter(done or {})
        self._runner = runner
        self._postprocessing = postprocessing
        self._log = log
        self._annotations = annotations
        self._on_progress = on_progress
        self._shape = (batch, 3, *runner.facts.preprocessing.size)
        self._total: int | None = None
        self._ratios = (0.0, 0)  # sum of the mean select ratios, and how many
        self._clock = StageClock()
        self._summary = StreamSummary()

    def run(self, sources: Sequence[Source], sampling: Sampling, stop: StopRequest) -> StreamSummary:
        """Every frame of every source, until the end or until ``stop`` is made: then what was read is finished.

        The writers are left open, for whoever made them to keep or to drop.

        Raises:
            SptError: whatever a stage raises, the first of them; files that cannot be read are failures in the summary
                instead.
        """
        self._clock = StageClock(max(1, min(DECODERS, len(sources))))
        self._summary = StreamSummary(stages=self._clock.stages)
        totals = [source.total() for source in sources]
        self._total = None if None in totals else sum(sampling.count(total) for total in totals if total is not None)
        with Flow() as flow:
            free = flow.channel(_Batch, BUFFERS)
            filled, answered = flow.channel(_Batch, 1), flow.channel(_Batch, 1)
            for _ in range(BUFFERS):
                free.put(_Batch(np.empty(self._shape, dtype=np.float32)))
            frames = self._decoders(flow, sources, sampling, stop)
            flow.spawn("preprocess", lambda: self._preprocess(frames, free, filled))
            flow.spawn("postprocess", lambda: self._hand_on(answered, free))
            for batch in filled:
                with self._clock.stage(stages.MODEL, len(batch.frames) or 1):
                    batch.arrays = self._runner.infer(batch.buffer[: len(batch.frames)]) if batch.frames else {}
                answered.put(batch)
            answered.close()
        self._summary.stopped_by = stop.signal_number
        self._summary.mean_select_ratio = self._mean_select_ratio
        self._summary.wall_s = self._clock.wall
        return self._summary

    def _decoders(
        self, flow: Flow, sources: Sequence[Source], sampling: Sampling, stop: StopRequest
    ) -> Iterator[tuple[Source, Frame | None]]:
        """Frames of all sources in turn, then None for each source that has ended.

        Failures, and frames that an earlier run has answered, take no turn; they are counted here, by one thread, so
        that neither their number nor their order depends on which decoder is faster.
        """
        waiting = deque((source, flow.channel(_Decoded, _AHEAD)) for source in sources)
        reading: deque[tuple[Source, Channel[_Decoded]]] = deque()
        while waiting or reading:
            while waiting and len(reading) < DECODERS:
                source, channel = waiting.popleft()
                flow.spawn("decode", lambda s=source, c=channel: self._decode(s, sampling, stop, c))  # type: ignore[misc]
                reading.append((source, channel))
            source, channel = reading.popleft()
            frame = self._next_frame(channel)
            yield source, frame
            if frame is not None:
                reading.append((source, channel))

    def _next_frame(self, channel: Channel[_Decoded]) -> Frame | None:
        """The next that needs an answer; None at the end."""
        for decoded in channel:
            item = decoded.item
            if isinstance(item, Failure):
                self._summary.failures.append(item)
            elif self._done[item.source, item.index] > 0:
                self._done[item.source, item.index] -= 1
                self._summary.resumed += 1
            else:
                return item
        return None

    def _decode(self, source: Source, sampling: Sampling, stop: StopRequest, channel: Channel[_Decoded]) -> None:
        """What a source yields, into its channel."""
        items = iter(source.frames(sampling))
        while not stop.made:
            with self._clock.stage(stages.DECODE):
                item = next(items, None)
            if item is None:
                break
            channel.put(_Decoded(item))
        channel.close()

    def _preprocess(
        self, frames: Iterator[tuple[Source, Frame | None]], free: Channel[_Batch], filled: Channel[_Batch]
    ) -> None:
        """Each frame into the next place of the batch in hand; a full batch goes on."""
        batch = free.get()
        assert batch is not None
        for source, frame in frames:
            if frame is None:
                batch.ended.append(source)
                continue
            self._summary.read += 1
            with self._clock.stage(stages.PREPROCESS):
                self._runner.facts.preprocessing.apply(frame.image, out=batch.buffer[len(batch.frames)])
            batch.frames.append((source, frame))
            if len(batch.frames) == len(batch.buffer):
                filled.put(batch)
                batch = free.get()
                assert batch is not None
        filled.put(batch)
        filled.close()

    def _hand_on(self, answered: Channel[_Batch], free: Channel[_Batch]) -> None:
        """Answers of each batch to the writers, then its buffer back."""
        for batch in answered:
            if batch.frames:
                with self._clock.stage(stages.POSTPROCESS, len(batch.frames)):
                    sizes = [(frame.image.shape[0], frame.image.shape[1]) for _, frame in batch.frames]
                    predictions = self._postprocessing.apply(batch.arrays, self._runner.facts, sizes)
                for (source, frame), prediction in zip(batch.frames, predictions, strict=True):
                    self._write(source, frame, prediction)
            self._end(batch.ended)
            if batch.frames and self._on_progress:
                done = self._summary.resumed + self._summary.inferred
                self._on_progress(Progress(done, self._total, self._mean_select_ratio))
            free.put(_Batch(batch.buffer))

    def _write(self, source: Source, frame: Frame, prediction: Prediction) -> None:
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

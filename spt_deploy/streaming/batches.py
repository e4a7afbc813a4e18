"""Frames become batches as the model takes them: across sources, and without waiting long for live ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spt_deploy.image_input import ImageInput, Images
from spt_deploy.postprocess import Prediction
from spt_deploy.runtimes.base import Arrays
from spt_deploy.streaming.frames import Frame, Gap, Source
from spt_deploy.streaming.summary import PREPROCESS, StageClock, StreamSummary
from spt_deploy.streaming.turns import Turns

MAX_WAIT = 0.05  # seconds; a camera's frames are some 0.03 apart


@dataclass
class Batch:
    """Frames on their way through the model.

    Attributes:
        buffer: N images as the model takes them, of which the first ``len(frames)`` are filled.
        number: of the batch, counted from 0.
        frames: in the buffer, each with its source.
        gaps: each with the number of frames in the buffer that come before it.
        ended: sources whose last frame is in this batch or an earlier one.
        arrays: what the model made of it.
        threshold: that its tokens were selected by; None is the model's own.
        predictions: for each frame.
        prepared: what the writers of frames need of each picture.
    """

    buffer: Images
    number: int = 0
    frames: list[tuple[Source, Frame]] = field(default_factory=list)
    gaps: list[tuple[int, Gap]] = field(default_factory=list)
    ended: list[Source] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    threshold: float | None = None
    predictions: Sequence[Prediction] = ()
    prepared: list[Any] = field(default_factory=list)


class Filler:
    """Puts each frame into the next place of a batch, for one thread at a time.

    Args:
        turns: gives the frames.
        image_input: what the model takes.
        clock: told how long preprocessing takes.
        summary: frames that were read are counted there.
        max_wait: seconds after which a batch that waits for a live source, or for a pipe, goes on with what there is.
        keep_pictures: whether something is made of the frames; else a picture is dropped once it is in its batch.
    """

    def __init__(
        self,
        turns: Turns,
        image_input: ImageInput,
        clock: StageClock,
        summary: StreamSummary,
        max_wait: float = MAX_WAIT,
        keep_pictures: bool = True,
    ) -> None:
        self._turns = turns
        self._image_input = image_input
        self._clock = clock
        self._summary = summary
        self._max_wait = max_wait
        self._keep_pictures = keep_pictures
        self._next = 0
        self._ended = False

    def fill(self, buffer: Images) -> Batch | None:
        """The next batch, full, or with what there is when it has waited long or nothing more comes; None at the end.

        A batch without frames may come: it has gaps, or the ends of sources.
        """
        if self._ended:
            return None
        batch, due = Batch(buffer, self._next), None
        self._next += 1
        while (came := self._take(batch, due)) is not None:
            if due is None and self._turns.may_wait:
                due = time.monotonic() + self._max_wait
            if not came or len(batch.frames) == len(buffer):
                return batch
        self._ended = True
        return batch

    def _take(self, batch: Batch, due: float | None) -> bool | None:
        """What comes next, into the batch; false when nothing came until ``due``, None when nothing will any more.

        A method of its own, for a decoded picture ends with it, and the next one gets its memory.
        """
        turn = self._turns.take(None if due is None else max(0.0, due - time.monotonic()))
        if turn is None or turn.source is None:
            return None if turn is None else False
        if isinstance(turn.item, Frame):
            self._summary.read += 1
            with self._clock.stage(PREPROCESS):
                self._image_input.prepare(turn.item.image, out=batch.buffer[len(batch.frames)])
            batch.frames.append((turn.source, turn.item if self._keep_pictures else turn.item.without_picture()))
        elif turn.item is not None:
            batch.gaps.append((len(batch.frames), turn.item))
        else:
            batch.ended.append(turn.source)
        return True

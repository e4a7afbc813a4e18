"""All that a run writes and shows: asked for, checked against the model, and kept or dropped together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from spt_deploy.errors import ArtefactError, add_note
from spt_deploy.interrupt import StopRequest
from spt_deploy.postprocess import Prediction
from spt_deploy.runtimes.base import Runner, usable_cores
from spt_deploy.streaming.annotations import Annotations
from spt_deploy.streaming.crops import Crops, check_crops
from spt_deploy.streaming.formats import check_formats, write_formats
from spt_deploy.streaming.frames import Frame, Source
from spt_deploy.streaming.overlay import DrawnOnce, Overlay
from spt_deploy.streaming.resume import BEGUN, Begun, Earlier
from spt_deploy.streaming.stale import check_sources, remove_stale
from spt_deploy.streaming.window import Window
from spt_deploy.streaming.writers import FrameWriter, PredictionLog


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside ``predictions.jsonl`` and ``summary.json``.

    Attributes:
        overlay: what is drawn, where something is.
        video: annotated videos and images.
        crops: the boxes as files.
        show: a window.
        formats: see `streaming.formats`.
    """

    overlay: Overlay
    video: bool = True
    crops: bool = False
    show: bool = False
    formats: tuple[str, ...] = ("jsonl",)

    def check(self, runner: Runner, earlier: Earlier) -> None:
        """Whether a model can give it; from then on the runner gives the masks that are drawn.

        Args:
            runner: open.
            earlier: the run that is resumed.

        Raises:
            UsageError: when the model's task or blocks do not fit.
            ArtefactError: when the file does not say what is to be drawn.
        """
        check_formats(self.formats, runner.facts.model, earlier.sized)
        if self.crops:
            check_crops(runner.facts.model)
        self.overlay.check(runner.facts.model.backbone)
        if self.overlay.block is not None and not runner.with_masks():
            raise ArtefactError(
                f"{runner.path} does not say what its block {self.overlay.block} kept; export it with --selection all, "
                "or run the checkpoint"
            )

        if self.overlay.is_selection_alone and runner.lacks_selection:
            raise ArtefactError(
                f"{runner.path} does not say what its blocks kept, and overlay is selection; export it without "
                "--selection none, run the checkpoint, or use boxes, or none"
            )

    @property
    def masks(self) -> tuple[str, ...]:
        """SPA blocks whose masks are drawn."""
        return () if self.overlay.block is None else (self.overlay.block,)


class Outputs:
    """The writers of a run, as a context manager: what ``keep`` has not kept is dropped, with the folders that are new.

    Args:
        folder: to write in; made if need be.
        sources: all that will come.
        wanted: checked.
        runner: whose answers they are.
        begun: what the run is begun with, which is noted.
        earlier: the run that is resumed, if it has lines; its leftovers are tidied up in any case.
        stop: what a key in a window makes.

    Attributes:
        log: gets every answer.
        frames: gets every answer with its frame; None where nothing is made of frames.

    Raises:
        OutputError: when the folder cannot be written.
        UsageError: when a source lies where the results would replace or remove it.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        wanted: Wanted,
        runner: Runner,
        begun: Begun,
        earlier: Earlier,
        stop: StopRequest,
    ) -> None:
        check_sources(folder, sources, wanted.video)
        self._folder = folder
        self._wanted, self._model = wanted, runner.facts.model
        self.log = PredictionLog(folder, earlier)
        try:
            begun.note(self.log.path)  # first: until then the note of the run before names its lines
        except BaseException:
            self.log.drop()
            raise
        earlier.tidy()
        self._resumes, self._earlier_files = earlier.whole > 0, earlier.files
        drawing = DrawnOnce(wanted.overlay)
        writers: list[FrameWriter] = []
        self.frames = _Together(writers) if wanted.video or wanted.crops or wanted.show else None
        self._kept = False
        try:
            if wanted.video:
                # One thread, or few, encodes where every core has a lane of the model already: more take from these.
                threads = max(1, usable_cores() // runner.lanes) if runner.lanes > 1 else 0
                writers.append(Annotations(folder, sources, drawing, runner.facts, self._resumes, threads))
            if wanted.crops:
                writers.append(Crops(folder, runner.facts.model, sources, self._resumes))
            if wanted.show:
                writers.append(Window(drawing, runner.facts, stop))
        except BaseException as error:
            self._clear_up(error)
            raise

    def __enter__(self) -> Outputs:
        return self

    def keep(self) -> list[Path]:
        """Close everything, give it its names, make the other formats, and say what there is.

        What a run that is resumed wrote is there, too; what one that is replaced left and this one does not write is
        removed.

        Raises:
            OutputError: when one cannot be written; what has its name by then keeps it.
        """
        files = self.frames.keep() if self.frames else []
        predictions = self.log.keep()
        self._kept = True
        written = [*predictions, *write_formats(self._folder, self._wanted.formats, self._model), *files]
        if self._resumes:
            return [*written, *(path for path in self._earlier_files if path not in written)]
        remove_stale(self._folder, written, self._wanted.crops)
        return written

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            self._clear_up(error)

    def _clear_up(self, error: BaseException | None) -> None:
        if self.frames:
            self.frames.drop()
        if self._resumes or not self.log.is_empty:  # whatever went wrong: the work of hours is not to be lost
            lines = self.log.rescue()[0]
            if error and lines.is_file():  # not where somebody has removed the folder
                go_on = f"go on with the same command and --resume --out {self._folder}"
                add_note(error, f"the lines in {lines} are whole; {go_on}")
            return
        self.log.drop()
        with suppress(OSError):
            (self._folder / BEGUN).unlink()


class _Together:
    """Several writers of frames as one."""

    def __init__(self, writers: Sequence[FrameWriter]) -> None:
        self._writers = writers

    def prepare(self, source: Source, frame: Frame, prediction: Prediction) -> list[Any]:
        return [writer.prepare(source, frame, prediction) for writer in self._writers]

    def write(self, source: Source, frame: Frame, prediction: Prediction, prepared: list[Any]) -> None:
        for writer, its in zip(self._writers, prepared, strict=True):
            writer.write(source, frame, prediction, its)

    def end(self, source: Source) -> None:
        for writer in self._writers:
            writer.end(source)

    def keep(self) -> list[Path]:
        return [path for writer in self._writers for path in writer.keep()]

    def drop(self) -> None:
        for writer in self._writers:
            writer.drop()

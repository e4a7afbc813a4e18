"""Run a model over images, folders and videos, and leave its answers in a folder."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spt_deploy.digest import sha256_of
from spt_deploy.errors import ResultError, SourceError, UsageError
from spt_deploy.interrupt import stop_on_signals
from spt_deploy.postprocess import Postprocessing
from spt_deploy.runtimes import Runner, open_runner
from spt_deploy.streaming.batches import MAX_WAIT
from spt_deploy.streaming.budget import chosen_threshold
from spt_deploy.streaming.formats import formats_in, known_formats
from spt_deploy.streaming.frames import Sampling, Source, expected_frames
from spt_deploy.streaming.live import RECONNECT, LiveSource
from spt_deploy.streaming.network import without_password
from spt_deploy.streaming.outputs import Outputs, Wanted
from spt_deploy.streaming.overlay import PARTS, Overlay
from spt_deploy.streaming.pipeline import Pipeline, Progress
from spt_deploy.streaming.resume import BEGUN, BEGUN_WITH, SUMMARY, Begun, earlier_run
from spt_deploy.streaming.sources import open_sources, quieten_decoders
from spt_deploy.streaming.standard_input import StandardInput
from spt_deploy.streaming.summary import StreamSummary
from spt_deploy.streaming.window import check_display
from spt_deploy.streaming.writers import write_summary
from spt_deploy.version import __version__
from spt_deploy.workflows.artefacts import find_runnable
from spt_deploy.workflows.result_folder import fresh_folder, only_run_in

if TYPE_CHECKING:
    from spt_deploy.facts import ModelFacts

_LONG = 4  # batches, from which on several run at a time
_NAMED_FAILURES = 5  # in an error sentence; all of them are in summary.json


@dataclass(frozen=True)
class InferReport:
    """What ``infer`` did.

    Attributes:
        folder: that holds the results.
        files: the results in it.
        model: file that was run.
        facts: of the model.
        runtime: that ran it; ``device`` and ``precision`` likewise.
        batch: images in a full batch.
        threshold: of the selection, where one was given; None is the model's own, or a budget's (see the summary).
        sources: as they were named.
        summary: counts and times.
        begun: what the answers depend on beside the sources; a run that is resumed must have the same.
        go_on: a sentence on how to go on; empty when everything was done.
    """

    folder: Path
    files: tuple[Path, ...]
    model: Path
    facts: ModelFacts
    runtime: str
    device: str
    precision: str
    batch: int
    threshold: float | None
    sources: tuple[str, ...]
    summary: StreamSummary
    begun: Begun
    go_on: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the document of ``summary.json`` and of ``--json``."""
        return {
            "sources": list(self.sources),
            "folder": str(self.folder),
            "files": [str(path) for path in self.files],
            "model": str(self.model),
            "task": self.facts.model.task,
            "runtime": self.runtime,
            "device": self.device,
            "precision": self.precision,
            "batch": self.batch,
            "threshold": self.threshold,
            **self.summary.to_dict(),
            BEGUN_WITH: asdict(self.begun),
            "tool_version": __version__,
        }


class BadResults(ResultError):  # noqa: N818 - says what is the matter, as the errors it derives from do
    """Something was the matter with a run that went through; ``report`` tells of it, and its results are in place."""

    def __init__(self, message: str, report: InferReport) -> None:
        super().__init__(message)
        self.report = report


class UnreadableInputs(BadResults):
    """Some inputs could not be read."""


class NoNumbers(BadResults):
    """Some of the model's answers are no numbers."""


def infer(
    sources: Sequence[str | Path],
    model: str | Path | Runner | None = None,
    *,
    runtime: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    batch: int = 8,
    out: str | Path | None = None,
    overlay: Sequence[str] = PARTS,
    conf: float = 0.25,
    iou: float = 0.5,
    start: int = 0,
    stride: int = 1,
    max_frames: int | None = None,
    duration: float | None = None,
    raw: tuple[int, int] | None = None,
    reconnect: float = RECONNECT,
    max_wait: float = MAX_WAIT,
    video: bool = True,
    formats: Sequence[str] = (),
    save_crops: bool = False,
    show: bool = False,
    resume: bool = False,
    threshold: float | None = None,
    target_fps: float | None = None,
    threshold_range: tuple[float, float] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_model: Callable[[Runner, str], None] | None = None,
    on_resume: Callable[[Path, int], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> InferReport:
    """Run a model over ``sources`` and write ``predictions.jsonl``, annotated videos or images, and ``summary.json``.

    SIGINT and SIGTERM end it early and in order: what was read is finished, the files are closed and get their names,
    and the report says how to go on.

    Args:
        sources: images, folders, globs, videos, lists, cameras, addresses, or ``-``
            (`streaming.sources.open_sources`).
        model: a checkpoint, an exported file or an engine; of a folder the newest one in it that this machine can run;
            the newest one here or under ``runs/`` if None. Or a runner, which is entered here: one that is open stays
            open, for the next run.
        runtime: see `runtimes.open_runner`; so ``device``.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32`` or ``bf16``, which openvino computes in; None is the artefact's own.
        batch: images that the model gets at once, no more than an engine takes; the last batch is what is left.
        out: folder for the results, where files of the same names are replaced, and what else an earlier run left is
            removed, but for annotated images, unless it is resumed; ``runs/infer/NAME``, or ``NAME-2`` ..., if None.
        overlay: ``boxes`` and ``selection``, either, or none; ``selection:3.5`` is that of block 3.5 alone, which a
            file says only if it was exported with ``--selection all``.
        conf: least score of a detection or of a multilabel class, in [0, 1].
        iou: boxes of one class that overlap more than this are one object, in [0, 1].
        start: number of the first frame of each source, counted from 0; a folder's frames are its images.
        stride: every how many-th frame from there on.
        max_frames: at most so many of each source.
        duration: so many seconds of each video or live source; None for all.
        raw: height and width when standard input holds bare BGR frames.
        reconnect: seconds for which a live source that was lost is tried again; 0 for never.
        max_wait: seconds after which a batch that waits for a live source, or for a pipe, runs with what there is.
        video: write annotated videos and images; without, the answers only, which is faster.
        formats: ``csv`` and ``coco`` write ``predictions.csv`` and ``predictions.coco.json`` too, see
            `streaming.formats`; the lines of JSON are always written.
        save_crops: write the boxes of a detector to ``crops/CLASS/STEM-FRAME-NUMBER.jpg``.
        show: a window with the annotated frames of each source; q or Escape there, or closing it, ends the run early
            and in order.
        resume: go on with the run in ``out`` that was stopped or killed: its lines stay, and frames that have one are
            passed over; where there is none, begin it. The rest of an annotated video becomes a file of its own, and
            other formats that are there are written anew.
        threshold: of the score, in (0, 1), above which SPA blocks keep a token; None is the model's own. Checkpoints
            take it, and files that were exported with ``runtime_threshold``.
        target_fps: frames a second that the model shall make: the threshold is moved to hold them (`streaming.budget`).
        threshold_range: bounds of it, in (0, 1); from the model's own to 0.9 if None.
        on_progress: called after every batch.
        on_model: called once the model is open, with its runner and, when the model was not named but found, the
            reason for the choice.
        on_resume: called with ``resume``, before the first frame: the folder, and how many frames have a line in it.
        on_notice: called with a sentence when a live source is lost and when it is back, in a thread of its own.

    Raises:
        UsageError: when an argument is out of range, standard input is named twice, results would replace a source, or
            another run writes to ``out``.
        SourceError: when a source is not there, or none of them can be read; nothing is written then.
        InputError: when the model is not there, cannot be used, takes no threshold, or does not say what is to be
            drawn; nothing is written then.
        RuntimeMissingError: when the runtime or device is not there, or no window can be opened.
        OutputError: when a result cannot be written. Then, and whatever else goes wrong, videos that are not whole are
            removed; lines that are stay, and the run can be resumed.
        UnreadableInputs: when some inputs could not be read; the results of the others are in place.
        NoNumbers: when some of the model's answers are none; all the lines are in place.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}; expected 1 or more")
    if not sources:
        raise UsageError("no source was named; name an image, a folder, a glob, a video, a camera or an address")
    if resume and out is None:
        raise UsageError("there is no telling which run to resume; name its folder with --out")
    if not reconnect >= 0:
        raise UsageError(f"reconnect is {reconnect}; expected seconds, 0 for never")
    sampling = Sampling(start, stride, max_frames, duration)
    wanted = Wanted(Overlay.of(overlay), video, save_crops, show, known_formats(formats))
    postprocessing = Postprocessing(conf, iou, wanted.masks)
    quieten_decoders()
    opened = open_sources(sources, reconnect, raw)
    live = [source for source in opened if isinstance(source, LiveSource)]
    for source in live:
        source.on_notice = on_notice or source.on_notice
    if raw is not None and not any(isinstance(source, StandardInput) for source in opened):
        raise UsageError("raw is the size of frames from standard input, and no source is -; name it, or leave raw out")
    if show:
        check_display()
    with stop_on_signals() as stop:
        several_at_a_time = target_fps is None and _is_long(opened, sampling, batch)
        runner, why = _runner(model, runtime, device, precision, several_at_a_time)
        chosen = chosen_threshold(runner, threshold, target_fps, threshold_range)
        batch = min(batch, runner.max_batch or batch)
        runner.expect(_batch_to_expect(opened, sampling, batch))
        with runner, ExitStack() as in_folder:
            if on_model:
                on_model(runner, why)
            model_sha256 = sha256_of(runner.path) if runner.path.is_file() else ""
            begun = Begun(
                model_sha256, conf, iou, start, stride, threshold, target_fps, threshold_range, runner.computes_in
            )
            folder = fresh_folder(opened[0].name) if out is None else Path(out)
            in_folder.enter_context(only_run_in(folder, is_fresh=out is None))
            earlier = earlier_run(folder, resume)
            if resume:
                begun.check(folder)
                left = formats_in(folder, runner.facts.model)
                wanted = replace(wanted, formats=known_formats([*wanted.formats, *left]))
                if on_resume:
                    on_resume(folder, sum(earlier.done.values()))
                for source in live:
                    source.first_index = earlier.next_index(source.name)
            wanted.check(runner, earlier)
            with Outputs(folder, opened, wanted, runner, begun, earlier, stop) as outputs:
                pipeline = Pipeline(
                    runner,
                    postprocessing,
                    outputs.log,
                    outputs.frames,
                    batch,
                    on_progress,
                    earlier.done,
                    max_wait,
                    chosen,
                )
                summary = pipeline.run(opened, sampling, stop)
                has_lines = bool(summary.inferred or summary.resumed)
                if not has_lines and not stop.made:
                    raise _nothing_read(summary, sampling)
                files = (*outputs.keep(), folder / SUMMARY) if has_lines else ()  # what was there stays
            report = InferReport(
                folder=folder,
                files=files,
                model=runner.path,
                facts=runner.facts,
                runtime=runner.runtime,
                device=runner.device,
                precision=runner.precision,
                batch=batch,
                threshold=threshold,
                sources=tuple(without_password(str(source)) for source in sources),
                summary=summary,
                begun=begun,
                go_on=_go_on(summary, folder),
            )
            if files:
                write_summary(folder, report.to_dict())
            if summary.stopped_by is None:  # a signal that comes later stops nothing
                (folder / BEGUN).unlink(missing_ok=True)
    if summary.not_finite:
        raise NoNumbers(_no_numbers(report), report)
    if summary.failures:
        raise UnreadableInputs(_unreadable(summary, folder), report)
    return report


def _runner(
    model: str | Path | Runner | None, runtime: str, device: str, precision: str | None, throughput: bool
) -> tuple[Runner, str]:
    if isinstance(model, Runner):
        return model, ""
    found = find_runnable(None if model is None else Path(model))
    return open_runner(found.path, runtime, device, throughput=throughput, precision=precision), found.why


def _is_long(sources: Sequence[Source], sampling: Sampling, batch: int) -> bool:
    """Whether so many frames lie there that they fill several batches at a time; nobody waits for a certain one."""
    if not all(source.prompt for source in sources):
        return False
    total = expected_frames(sources, sampling)
    return total is None or total >= _LONG * batch


def _batch_to_expect(sources: Sequence[Source], sampling: Sampling, batch: int) -> int | None:
    """The size of the batches to come; None where they have any: of a camera, or where not one is full."""
    total = expected_frames(sources, sampling)
    if batch == 1 or total == 1:
        return 1
    fills = total is None or total >= batch
    return batch if fills and all(source.prompt for source in sources) else None


def _nothing_read(summary: StreamSummary, sampling: Sampling) -> SourceError:
    if not summary.failures:
        return SourceError(f"no source has a frame {sampling.start}; start lower")
    first, more = summary.failures[0].reason, len(summary.failures) - 1
    return SourceError(first + (f" (nor can {more} more be used)" if more else ""))


def _unreadable(summary: StreamSummary, folder: Path) -> str:
    count = len(summary.failures)
    reasons = "; ".join(failure.reason for failure in summary.failures[:_NAMED_FAILURES])
    more = f"; and {count - _NAMED_FAILURES} more" if count > _NAMED_FAILURES else ""
    return f"{count} input{'s' if count > 1 else ''} could not be read: {reasons}{more}; the rest is in {folder}"


def _no_numbers(report: InferReport) -> str:
    summary = report.summary
    sentence = (
        f"the model's answers to {summary.not_finite} of {summary.inferred} frames are no numbers (NaN or infinite): "
        f"the weights of {report.model} are damaged, or too large for {report.precision}; use another file"
    )
    return f"{sentence}; {_unreadable(summary, report.folder)}" if summary.failures else sentence


def _go_on(summary: StreamSummary, folder: Path) -> str:
    if summary.stopped_by is None:
        return ""
    name = signal.Signals(summary.stopped_by).name
    if summary.last is None:
        return f"stopped by {name} before the first frame; run the command again"
    source, index = summary.last
    done = f"stopped by {name} after frame {index} of {source}; the files in {folder} are whole up to there"
    return f"{done}; go on with the same command and --resume --out {folder}"

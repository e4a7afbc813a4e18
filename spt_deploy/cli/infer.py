"""``spt-deploy infer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.options import FILE, device_option, json_option, model_option, precision_option

if TYPE_CHECKING:
    from spt_deploy.workflows.infer import InferReport


@click.command("infer")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@model_option
@click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="What runs the model.",
)
@device_option
@precision_option
@click.option("--batch", type=int, default=8, show_default=True, help="Images that the model gets at once.")
@click.option("--out", type=FILE, help="Folder for the results.  [default: runs/infer/NAME]")
@click.option(
    "--overlay",
    default="boxes,selection",
    show_default=True,
    help="What to draw: boxes, selection, both with a comma, or none; selection:3.5 is what block 3.5 kept.",
)
@click.option(
    "--conf",
    type=float,
    default=0.25,
    show_default=True,
    help="Least score of a detection or multilabel class; a classifier always gives its best five.",
)
@click.option(
    "--iou", type=float, default=0.5, show_default=True, help="Overlap from which two boxes of a class are one."
)
@click.option("--start", type=int, default=0, show_default=True, help="First frame of each source, counted from 0.")
@click.option("--max-frames", type=int, metavar="N", help="At most N frames of each source.")
@click.option("--stride", type=int, default=1, show_default=True, help="Every how many-th frame.")
@click.option("--duration", type=float, metavar="SECONDS", help="At most so much of each video or live source.")
@click.option(
    "--reconnect",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try again when a live source is lost; 0 for never.",
)
@click.option(
    "--max-wait",
    type=click.FloatRange(min=0),
    default=50.0,
    show_default=True,
    metavar="MS",
    help="How long a batch waits for live sources before it runs with what there is.",
)
@click.option("--raw", metavar="WIDTHxHEIGHT", help="Standard input holds bare BGR frames of that size.")
@click.option("--no-video", is_flag=True, help="Write no annotated videos or images: faster.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="FORMAT",
    help="csv, coco, or both with a comma or one by one: predictions.csv, predictions.coco.json. predictions.jsonl is "
    "always written.",
)
@click.option("--save-crops", is_flag=True, help="Write each box as crops/CLASS/STEM-FRAME-NUMBER.jpg.")
@click.option("--show", is_flag=True, help="Show the annotated frames in a window; q or Escape stops as Ctrl-C does.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out that was stopped or killed; begin it where there is none.",
)
@click.option("--threshold", type=float, metavar="X", help="Score above which a token is kept.  [default: the model's]")
@click.option(
    "--target-fps", type=float, metavar="X", help="Move the threshold so that the model makes X frames a second."
)
@click.option(
    "--threshold-range", metavar="LOW:HIGH", help="Bounds for --target-fps.  [default: from the model's own to 0.9]"
)
@json_option
def command(
    sources: tuple[str, ...],
    model: Path | None,
    runtime: str,
    device: str,
    precision: str | None,
    batch: int,
    out: Path | None,
    overlay: str,
    conf: float,
    iou: float,
    start: int,
    max_frames: int | None,
    stride: int,
    duration: float | None,
    reconnect: float,
    max_wait: float,
    raw: str | None,
    no_video: bool,
    formats: tuple[str, ...],
    save_crops: bool,
    show: bool,
    resume: bool,
    threshold: float | None,
    target_fps: float | None,
    threshold_range: str | None,
    as_json: bool,
) -> None:
    """Run a model on images, folders, globs, videos, cameras and network streams.

    A SOURCE is an image, a folder (the images in it and in the folders below), a quoted glob, a video, a text file that
    names sources, the number of a camera, an address (rtsp://, http://), or - for frames from standard input. Several
    are run at once. Into --out go predictions.jsonl (a line a frame), annotated.mp4 or a folder of annotated images,
    and summary.json; with --format and --save-crops more. Of files every frame is answered; a live source drops its
    oldest frames where the model is slower.

    A higher threshold keeps fewer tokens and takes less time. --threshold and --target-fps need a checkpoint, or a file
    exported with --runtime-threshold; each line of predictions.jsonl then says its threshold.

    \b
    Examples:
      spt-deploy infer street.mp4
      spt-deploy infer photos/ --model runs/street/best.onnx --conf 0.4
      spt-deploy infer 'night/**/*.jpg' --overlay selection --out night-results
      spt-deploy infer 0 rtsp://camera.local/stream --duration 3600 --no-video
      spt-deploy infer street.mp4 --target-fps 30 --threshold-range 0.01:0.5
      ffmpeg -i in.mkv -f mjpeg - | spt-deploy infer - --out piped
      spt-deploy infer street.mp4 --no-video --format csv,coco --save-crops
    """
    from spt_deploy.cli.console import Sparkline, progress, status
    from spt_deploy.runtimes import Runner
    from spt_deploy.streaming.budget import parse_threshold_range
    from spt_deploy.streaming.pipeline import Progress
    from spt_deploy.workflows.infer import BadResults, infer

    def on_model(runner: Runner, why: str) -> None:
        if why:
            status(why)
        if runtime == "auto":
            status(f"running it in {runner.runtime} on {runner.device}, {runner.precision}")
        reporter.begin()

    def on_resume(folder: Path, done: int) -> None:
        frames = "1 frame has" if done == 1 else f"{done} frames have"
        status(
            f"going on in {folder}: {frames} a line" if done else f"no run to go on with in {folder}: a new one begins"
        )

    with progress("infer", unit="frames") as reporter:
        sparkline = Sparkline()

        def on_progress(now: Progress) -> None:
            kept = "" if now.mean_select_ratio is None else f"{now.mean_select_ratio:.0%} of tokens kept"
            if now.batch_select_ratio is not None:
                sparkline.add(now.batch_select_ratio)
            reporter.update(now.done, text=f"{sparkline} {kept}".lstrip(), total=now.total)
            for failure in now.lost:  # told now, for the others may go on for days
                status(failure.reason)

        try:
            report = infer(
                sources,
                model,
                runtime=runtime,
                device=device,
                precision=precision,
                batch=batch,
                out=out,
                overlay=_parts(overlay),
                conf=conf,
                iou=iou,
                start=start,
                stride=stride,
                max_frames=max_frames,
                duration=duration,
                raw=None if raw is None else _size(raw),
                reconnect=reconnect,
                max_wait=max_wait / 1000,
                video=not no_video,
                formats=[name for value in formats for name in _parts(value)],
                save_crops=save_crops,
                show=show,
                resume=resume,
                threshold=threshold,
                target_fps=target_fps,
                threshold_range=None if threshold_range is None else parse_threshold_range(threshold_range),
                on_progress=on_progress,
                on_model=on_model,
                on_resume=on_resume,
                on_notice=status,
            )
            bad = None
        except BadResults as error:  # the job ran: its result is printed like any other, then the error
            report, bad = error.report, error
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else _human(report))
    if report.go_on:
        status(report.go_on)
    if bad is not None:
        raise bad
    if report.summary.stopped_by is not None:
        raise click.exceptions.Exit(128 + report.summary.stopped_by)  # as shells report a signal


def _size(text: str) -> tuple[int, int]:
    """Height and width of ``640x480``, which is width by height as everywhere on the command line of cameras."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise click.BadParameter(f"{text!r} is no size; expected WIDTHxHEIGHT, such as 640x480", param_hint="--raw")
    return int(height), int(width)


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


def _human(report: InferReport) -> str:
    done = report.summary
    share = f"{done.utilisation(done.limiting_stage):.0%}"
    frames = f"{done.inferred} frame" if done.inferred == 1 else f"{done.inferred} frames"
    lines = [
        f"{frames} in {done.wall_s:.1f} s: {done.fps:.1f} frames/s with {report.model} "
        f"({report.runtime} {report.device} {report.precision}, batch {report.batch})"
    ]
    if done.inferred:  # not where a run that is resumed had nothing left to do
        lines.append(f"slowest stage: {done.limiting_stage}, {share} of the time; {done.hint}")
    if done.mean_select_ratio is not None:
        lines.append(f"kept {done.mean_select_ratio:.0%} of the tokens in the SPA blocks")
    if done.dropped:
        lines.append(f"{done.dropped} of {done.read} frames came too fast and were dropped")
    if done.gaps:
        lines.append(f"connections lost and found again: {done.gaps}")
    if done.budget is not None:
        lines.append(done.budget.verdict)
    if done.overflowed:
        lines.append(
            f"in {done.overflowed} of them some block had no room for all it selected: export a larger --capacity"
        )
    lines += [str(path) for path in report.files]
    return "\n".join(lines)

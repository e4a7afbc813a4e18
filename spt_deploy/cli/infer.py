"""``spt-deploy infer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.options import device_option, json_option, model_option

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
@click.option("--batch", type=int, default=8, show_default=True, help="Images that the model gets at once.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: runs/infer/NAME]")
@click.option(
    "--overlay", default="boxes,selection", show_default=True, help="What to draw: boxes, selection, both, or none."
)
@click.option("--conf", type=float, default=0.25, show_default=True, help="Least score of a detection or label.")
@click.option("--iou", type=float, default=0.5, show_default=True, help="Overlap from which two boxes are one object.")
@click.option("--start", type=int, default=0, show_default=True, help="First frame of each source, counted from 0.")
@click.option("--max-frames", type=int, metavar="N", help="At most N frames of each source.")
@click.option("--stride", type=int, default=1, show_default=True, help="Every how many-th frame.")
@click.option("--no-video", is_flag=True, help="Write the answers only, no annotated videos or images: faster.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out that was stopped or killed.")
@json_option
def command(
    sources: tuple[str, ...],
    model: Path | None,
    runtime: str,
    device: str,
    batch: int,
    out: Path | None,
    overlay: str,
    conf: float,
    iou: float,
    start: int,
    max_frames: int | None,
    stride: int,
    no_video: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Run a model on images, folders, globs and video files.

    A folder means the images in it and in the folders below. Into --out go predictions.jsonl (a line a frame),
    annotated.mp4 or a folder of annotated images, and summary.json.

    \b
    Examples:
      spt-deploy infer street.mp4
      spt-deploy infer photos/ --model runs/street/best.onnx --conf 0.4
      spt-deploy infer 'night/**/*.jpg' --overlay selection --out night-results
    """
    from spt_deploy.cli.console import progress, status
    from spt_deploy.runtimes import Runner
    from spt_deploy.streaming.pipeline import Progress
    from spt_deploy.workflows.infer import UnreadableInputs, infer

    def on_model(runner: Runner, why: str) -> None:
        if why:
            status(why)

    with progress("infer", unit="frames") as reporter:

        def on_progress(now: Progress) -> None:
            kept = "" if now.mean_select_ratio is None else f"{now.mean_select_ratio:.0%} of tokens kept"
            reporter.update(now.done, text=kept, total=now.total)

        try:
            report = infer(
                sources,
                model,
                runtime=runtime,
                device=device,
                batch=batch,
                out=out,
                overlay=[part.strip() for part in overlay.split(",")],
                conf=conf,
                iou=iou,
                start=start,
                stride=stride,
                max_frames=max_frames,
                video=not no_video,
                resume=resume,
                on_progress=on_progress,
                on_model=on_model,
            )
            unreadable = None
        except UnreadableInputs as error:  # the job ran: its result is printed like any other, then the error
            report, unreadable = error.report, error
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else _human(report))
    if report.go_on:
        status(report.go_on)
    if unreadable is not None:
        raise unreadable
    if report.summary.stopped_by is not None:
        raise click.exceptions.Exit(128 + report.summary.stopped_by)  # as shells report a signal


def _human(report: InferReport) -> str:
    done = report.summary
    share = f"{done.utilisation(done.limiting_stage):.0%}"
    frames = f"{done.inferred} frame" if done.inferred == 1 else f"{done.inferred} frames"
    lines = [
        f"{frames} in {done.wall_s:.1f} s: {done.fps:.1f} frames/s with {report.model} "
        f"({report.runtime} {report.device} {report.precision}, batch {report.batch})",
        f"slowest stage: {done.limiting_stage.replace('_', ' and ')}, {share} of the time; {done.hint}",
    ]
    if done.mean_select_ratio is not None:
        lines.append(f"kept {done.mean_select_ratio:.0%} of the tokens in the SPA blocks")
    if done.overflowed:
        lines.append(
            f"in {done.overflowed} of them some block had no room for all it selected: export a larger --capacity"
        )
    lines += [str(path) for path in report.files]
    return "\n".join(lines)

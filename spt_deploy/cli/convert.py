"""``spt-deploy convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.console import status
from spt_deploy.cli.options import FILE, IMAGE_SIZE, json_option
from spt_deploy.config import MODEL_NAMES, TASKS, Task
from spt_deploy.wording import counted

if TYPE_CHECKING:
    from spt_deploy.model.swin_weights import FitReport

_NAMES_SHOWN = 8  # of a list; the whole is in --json


@click.command("convert")
@click.argument("weights", type=FILE)
@click.option("--model", type=click.Choice(MODEL_NAMES), help="What to make.  [default: the SPT of the weights' size]")
@click.option(
    "-o", "--output", type=FILE, help="The checkpoint, .pt or .safetensors.  [default: WEIGHTS-MODEL.pt, here]"
)
@click.option("--task", type=click.Choice(TASKS), default="classify", show_default=True, help="What the head is for.")
@click.option("--imgsz", type=IMAGE_SIZE, default="224", show_default=True, help="Input size: 224, or 800x1280.")
@click.option("--class-names", type=FILE, help="Text file, one class a line.  [default: as many as the weights have]")
@json_option
def command(
    weights: Path,
    model: str | None,
    output: Path | None,
    task: Task,
    imgsz: tuple[int, int],
    class_names: Path | None,
    as_json: bool,
) -> None:
    """Turn Swin WEIGHTS (.pth, .pt, .safetensors) into a checkpoint to start from.

    Official, timm and Hugging Face key names are understood. What the weights lack, such as the gates, starts fresh.
    """
    from spt_deploy.workflows.convert import convert, read_class_names

    names = read_class_names(class_names) if class_names else None
    made = convert(weights, model=model, output=output, task=task, image_size=imgsz, class_names=names)
    if as_json:
        import json

        click.echo(json.dumps(made.to_dict(), indent=2))
        return
    _print_report(made.report)
    click.echo(
        f"{made.path}: {made.config.backbone.name}, {task}, {counted(len(made.config.class_names), 'class', 'classes')}"
    )


def _print_report(report: FitReport) -> None:
    total = len(report.taken) + len(report.gates) + len(report.missing) + len(report.other_shape)
    status(f"{report.scheme} key names; {len(report.taken)} of {total} weights of the model are in the file")
    if report.gates:
        status(f"{len(report.gates)} weights of gates start fresh: a Swin has none")
    _print_list("resized from another window", report.resized)
    _print_list("MISSING in the file, start fresh", report.missing)
    _print_list(
        "of ANOTHER SHAPE, start fresh",
        [f"{m.name} (file {_shape(m.in_file)}, model {_shape(m.in_model)})" for m in report.other_shape],
    )
    _print_list("UNEXPECTED in the file, not used", report.unexpected)
    if report.has_fresh_head:
        status("the head starts fresh: train before you trust an answer")


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _print_list(title: str, names: tuple[str, ...] | list[str]) -> None:
    if names:
        more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        status(f"{len(names)} {title}: {', '.join(names[:_NAMES_SHOWN])}{more}")

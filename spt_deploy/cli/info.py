"""``spt-deploy info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.options import FILE, IMAGE_SIZE, json_option
from spt_deploy.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from spt_deploy.engine.description import EngineDescription
    from spt_deploy.workflows.info import Info

_NAMES_SHOWN = 6  # classes; all are in --json
_KINDS = {"checkpoint": "checkpoint", "onnx": "ONNX file", "engine": "engine"}
_HASH_SHOWN = 16  # hexadecimal digits, as git shows of its own; all are in --json


@click.command("info")
@click.argument("artefact", type=FILE, required=False)
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1),
    help="Count the work with this share of tokens kept.  [default: as measured in training, where that is known]",
)
@click.option("--imgsz", type=IMAGE_SIZE, help="Count the work at this size.  [default: the artefact's]")
@json_option
def command(artefact: Path | None, ratio: float | None, imgsz: tuple[int, int] | None, as_json: bool) -> None:
    """Say what ARTEFACT is: task, classes, input, parameters, and the work of one image part by part.

    \b
    spt-deploy info ckpt.pt
    spt-deploy info model.onnx --ratio 0.25 --imgsz 800x1280
    """
    from spt_deploy.cli.console import status
    from spt_deploy.workflows.info import info

    found = info(artefact, select_ratio=ratio, image_size=imgsz)
    if found.why:
        status(found.why)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)


def _print(found: Info) -> None:
    from spt_deploy.cli.console import results, show

    out = results()
    for name, value in _facts(found).items():
        out.print(f"[dim]{name:14}[/]", end=" ")
        out.print(value, markup=False, soft_wrap=True)
    out.print()
    show(_work_table(found))
    for work in found.work[1:]:
        out.print(f"{work.what}: {found.swin_macs / work.cost.total.macs:.2f} times less work than Swin", markup=False)


def _facts(found: Info) -> dict[str, str]:
    model, preprocessing = found.facts.model, found.facts.preprocessing
    backbone, names = model.backbone, model.class_names
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    stages = ", ".join(map(str, backbone.spa_stages))
    rule = (
        f"score over {backbone.threshold:g}" if backbone.selector == "threshold" else f"best {backbone.keep_ratio:.0%}"
    )
    rule += ", or as given at run time" if found.facts.runtime_threshold else ""
    room = f", all of its room for {backbone.room:.0%} computed" if backbone.packing == "static" else ""
    installed = [f"{name}{'' if there else ' (not installed)'}" for name, there in found.runtimes.items()]
    engine = {} if found.engine is None else {"engine": _engine(found.engine)}
    return engine | {
        "file": f"{found.path}, {_KINDS[found.kind]}, {found.size_mb:.1f} MB, {found.facts.precision}",
        "model": f"{backbone.name}, {found.parameters / 1e6:.2f} M parameters",
        "selection": f"stages {stages}, {rule}, packing {backbone.packing}{room}" if stages else "none: a plain Swin",
        "task": f"{model.task}, {counted(len(names), 'class', 'classes')}: {', '.join(names[:_NAMES_SHOWN])}{more}",
        "input": f"{_size(preprocessing.size)} pixels, {preprocessing.mode}, "
        f"RGB{' bytes, normalised in the graph' * found.facts.uint8_input}, "
        f"mean {_numbers(preprocessing.mean)}, std {_numbers(preprocessing.std)}",
        "runs in": ", ".join(installed),
        "written by": f"spt-deploy {found.facts.tool_version}",
        "checkpoint": f"SHA-256 {found.facts.checkpoint_sha256[:_HASH_SHOWN]}",
    }


def _engine(engine: EngineDescription) -> str:
    made_for = f"{engine.gpu}, {engine.capability}" if engine.gpu else engine.capability
    return f"{engine.runtime} {engine.runtime_version}, {engine.precision}, batch {engine.batch}, for {made_for}"


def _work_table(found: Info) -> Table:
    from rich.table import Table

    table = Table(title=f"GMACs of one image at {_size(found.image_size)}", title_justify="left")
    table.add_column("")
    table.add_column("parameters", justify="right")
    for work in found.work:
        table.add_column(work.what, justify="right")
    first = found.work[0].cost
    for place in first.places:
        row = [f"{work.cost.of(place).macs / 1e9:.3f}" for work in found.work]
        table.add_row(place, f"{first.of(place).parameters:,}", *row)
        for part in dict.fromkeys(c.part for c in first.components if c.place == place and c.part != place):
            row = [f"{work.cost.of(place, part).macs / 1e9:.3f}" for work in found.work]
            table.add_row(f"  {part}", f"{first.of(place, part).parameters:,}", *row, style="dim")
    row = [f"{work.cost.total.macs / 1e9:.3f}" for work in found.work]
    table.add_row("all", f"{found.parameters:,}", *row, style="bold")
    return table


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)

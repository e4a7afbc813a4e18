"""``spt-deploy bench``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from spt_deploy.cli.options import FILE, device_option, json_option
from spt_deploy.errors import UsageError

if TYPE_CHECKING:
    from spt_deploy.workflows.bench import BenchReport

T = TypeVar("T", int, float)


def _numbers(text: str, number: Callable[[str], T], name: str) -> list[T]:
    try:
        return [number(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"{name} is {text!r}; expected numbers with commas between them") from error


@click.command("bench")
@click.argument("artefacts", type=FILE, nargs=-1)
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["torch", "onnxruntime", "openvino"]),
    multiple=True,
    help="Only this runtime; may be repeated.  [default: all that are installed]",
)
@device_option
@click.option("--batch", default="1,8", show_default=True, help="Images a run; several with commas.")
@click.option("--ratio", default="", help="Force these shares of kept tokens, such as 1,0.5,0.25.  [default: its own]")
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Timed runs of each contender.")
@click.option("--training", is_flag=True, help="Time a step of training instead: forward, backward, update.")
@json_option
def command(
    artefacts: tuple[Path, ...],
    runtimes: tuple[str, ...],
    device: str,
    batch: str,
    ratio: str,
    rounds: int,
    training: bool,
    as_json: bool,
) -> None:
    """Time ARTEFACTS side by side: contenders take turns, medians and paired ratios are printed.

    The first is what the others are held against. Random images select at random: --ratio forces a share instead.

    \b
    spt-deploy bench swin_t.onnx spt_t.onnx --ratio 1,0.5,0.25,0.1
    spt-deploy bench swin_t.pt spt_t.pt --training --batch 8 --ratio 0.25
    """
    from spt_deploy.cli.console import status
    from spt_deploy.workflows.bench import bench

    report = bench(
        artefacts,
        runtimes=runtimes,
        device=device,
        batches=_numbers(batch, int, "--batch"),
        ratios=_numbers(ratio, float, "--ratio"),
        rounds=rounds,
        training=training,
        status=status,
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)


def _print(report: BenchReport) -> None:
    from rich.table import Table

    from spt_deploy.cli.console import results

    out = results()
    out.print(", ".join(f"{name} {value}" for name, value in report.machine.items()), soft_wrap=True)
    for batch in dict.fromkeys(row.batch for row in report.rows):
        table = Table(f"batch {batch}", "kept", "GMACs", "median ms", "p95 ms", "images/s", "speed-up (quartiles)")
        for row in report.rows:
            if row.batch != batch:
                continue
            low, high = row.timing.speedup_range
            table.add_row(
                row.timing.name,
                "" if row.select_ratio is None else f"{row.select_ratio:.0%}",
                f"{row.gmacs:.2f}",
                f"{row.timing.median_ms:.1f}",
                f"{row.timing.p95_ms:.1f}",
                f"{row.timing.images_per_second:.1f}",
                f"{row.timing.speedup:.2f} ({low:.2f}-{high:.2f})",
            )
        out.print(table)

"""``spt-deploy bench``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from spt_deploy.cli.options import FILE, device_option, json_option, precisions_option
from spt_deploy.errors import UsageError

if TYPE_CHECKING:
    from spt_deploy.workflows.bench import BenchReport
    from spt_deploy.workflows.bench_compare import Comparison

T = TypeVar("T", int, float)


def _numbers(text: str, number: Callable[[str], T], name: str) -> list[T]:
    try:
        return [number(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"{name} is {text!r}; expected numbers with commas between them") from error


class WithCompare(click.Group):
    """``bench ARTEFACT ...`` as ever; ``bench compare`` is a command of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Everything but ``compare`` goes to the command that runs."""
        if args[:1] != [compare_command.name]:
            args = [run_command.name or "", *args]
        return super().parse_args(ctx, args)


class _UnnamedContext(click.Context):
    @property
    def command_path(self) -> str:
        """As the user writes it: of the group alone."""
        return self.parent.command_path if self.parent else ""


class Unnamed(click.Command):
    """The command that its group runs where none is named."""

    context_class = _UnnamedContext


@click.group("bench", cls=WithCompare, add_help_option=False)
def command() -> None:
    """Time artefacts side by side, or compare two such runs."""


@command.command("run", cls=Unnamed)
@click.argument("artefacts", type=FILE, nargs=-1)
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["torch", "onnxruntime", "openvino"]),
    multiple=True,
    help="Only this runtime; may be repeated.  [default: all that are installed]",
)
@device_option
@precisions_option
@click.option("--batch", default="1,8", show_default=True, help="Images a run; several with commas.")
@click.option("--ratio", default="", help="Force these shares of kept tokens, such as 1,0.5,0.25.  [default: its own]")
@click.option("--data", type=FILE, help="Folder of images to run instead of noise: real selections.")
@click.option(
    "--rounds", type=click.IntRange(2), default=20, show_default=True, help="Timed runs of each contender in all."
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Times that everything is opened anew, rounds shared among them: luck in memory makes a percent or two.",
)
@click.option("--memory", is_flag=True, help="Measure memory too, each artefact in a process of its own.")
@click.option("--profile", "profiled", is_flag=True, help="Show how long each operator of ONNX files takes.")
@click.option(
    "--throughput",
    is_flag=True,
    help="Run several batches at a time, as infer does with a recording: more images a second; ms are of all together.",
)
@click.option("--training", is_flag=True, help="Time a step of training instead: forward, backward, update.")
@json_option
def run_command(
    artefacts: tuple[Path, ...],
    runtimes: tuple[str, ...],
    device: str,
    precision: str,
    batch: str,
    ratio: str,
    data: Path | None,
    rounds: int,
    repeats: int,
    memory: bool,
    profiled: bool,
    training: bool,
    throughput: bool,
    as_json: bool,
) -> None:
    """Time ARTEFACTS side by side: contenders take turns, medians and paired ratios are printed.

    The first is what the others are held against, and the first of each runtime what the others of that runtime are.
    Random images select at random: --ratio forces a share instead, --data takes real images. Two runs printed with
    --json into files are set side by side with: spt-deploy bench compare BEFORE.json AFTER.json

    \b
    spt-deploy bench swin_t.onnx spt_t.onnx --ratio 1,0.5,0.25,0.1
    spt-deploy bench swin_t.onnx spt_t.onnx --data street/ --json > street.json
    spt-deploy bench swin_t.pt spt_t.pt --training --batch 8 --ratio 0.25
    """
    from spt_deploy.cli.console import status
    from spt_deploy.workflows.bench import bench

    if any(path.suffix == ".json" for path in artefacts):
        named = shlex.join(map(str, artefacts)) if len(artefacts) == 2 else "BEFORE.json AFTER.json"
        raise UsageError(
            f"a .json file is no model; two runs are set side by side with: spt-deploy bench compare {named}"
        )
    report = bench(
        artefacts,
        runtimes=runtimes,
        device=device,
        precisions=[part.strip() for part in precision.split(",") if part.strip()],
        batches=_numbers(batch, int, "--batch"),
        ratios=_numbers(ratio, float, "--ratio"),
        data=data,
        rounds=rounds,
        repeats=repeats,
        memory=memory,
        profiled=profiled,
        training=training,
        throughput=throughput,
        status=status,
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)


@command.command("compare")
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@json_option
def compare_command(before: Path, after: Path, as_json: bool) -> None:
    """Set two runs side by side: BEFORE.json and AFTER.json, as bench --json prints them."""
    from spt_deploy.workflows.bench_compare import compare

    found = compare(before, after)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print_comparison(found)


def _print(report: BenchReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from spt_deploy.bench import shown_batches
    from spt_deploy.cli.console import results, show

    out = results()
    out.print(", ".join(f"{name} {value}" for name, value in report.machine.items()), soft_wrap=True)
    for batch in dict.fromkeys(row.batch for row in report.rows):
        rows = [row for row in report.rows if row.batch == batch]
        several = len({row.timing.peer for row in rows}) > 1
        remembers = any(row.memory_mib is not None for row in rows)
        title = f"batch {shown_batches(batch, rows[0].at_once)}"
        table = Table(title, "kept", "GMACs", "median ms", "p95 ms", "images/s", "speed-up (quartiles)")
        if several:
            table.add_column("in its runtime")
        if remembers:
            table.add_column("MiB")
        for row in rows:
            low, high = row.timing.speedup_range
            cells = [
                escape(row.timing.name),
                "" if row.select_ratio is None else f"{row.select_ratio:.0%}",
                f"{row.gmacs:.2f}",
                f"{row.timing.median_ms:.1f}",
                f"{row.timing.p95_ms:.1f}",
                f"{row.timing.images_per_second:.1f}",
                f"{row.timing.speedup:.2f} ({low:.2f}-{high:.2f})",
            ]
            cells += [f"{row.timing.peer_speedup:.2f}"] if several else []
            cells += ["" if row.memory_mib is None else f"{row.memory_mib:.0f}"] if remembers else []
            table.add_row(*cells)
        show(table)
        for row in rows:
            if row.profile:
                parts = Table(escape(row.timing.name), "nodes", "ms", "share")
                for part in row.profile:
                    parts.add_row(part.operator, str(part.nodes), f"{part.ms:.2f}", f"{part.share:.1%}")
                show(parts)


def _print_comparison(found: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from spt_deploy.bench import shown_batches
    from spt_deploy.cli.console import show, status

    for difference in found.differences:
        status(difference)
    table = Table("", "batch", "before ms", "after ms", "speed-up (spread)", "")
    for row in found.rows:
        low, high = row.speedup_range
        table.add_row(
            escape(row.name),
            shown_batches(row.batch, row.at_once),
            f"{row.before_ms:.1f}",
            f"{row.after_ms:.1f}",
            f"{row.speedup:.2f} ({low:.2f}-{high:.2f})",
            row.verdict,
        )
    show(table)
    for where, names in (("before", found.only_before), ("after", found.only_after)):
        for name in names:
            status(f"only {where}: {name}")

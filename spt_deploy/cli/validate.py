"""``spt-deploy validate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.options import FILE, json_option, precisions_option

if TYPE_CHECKING:
    from rich.table import Table

    from spt_deploy.parity.checks import PairReport
    from spt_deploy.workflows.validate import ValidateReport


@click.command("validate")
@click.argument("artefacts", type=FILE, nargs=-1)
@click.option("--data", type=FILE, help="Folder of images to compare on too, through the model's own preprocessing.")
@click.option("--labels", type=FILE, help="Data set whose validation images are scored: AP, mAP or top-1.")
@click.option("--format", help="Of --labels: coco, yolo, voc, bdd or folder.  [default: by looking at the folder]")
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["onnxruntime", "openvino"]),
    multiple=True,
    help="Only this runtime for ONNX files; may be repeated.  [default: all that are installed]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
@precisions_option
@click.option("--max-images", type=click.IntRange(1), default=64, show_default=True, help="Images of --data to use.")
@click.option(
    "--threshold", type=float, help="Run all of them at this one; files exported with --runtime-threshold take it."
)
@json_option
def command(
    artefacts: tuple[Path, ...],
    data: Path | None,
    labels: Path | None,
    format: str | None,
    runtimes: tuple[str, ...],
    device: str,
    precision: str,
    max_images: int,
    threshold: float | None,
    as_json: bool,
) -> None:
    """Prove that ARTEFACTS say the same in every runtime; the first is the reference.

    Inputs are random images, flat ones, selections forced to nothing and to everything, and those of --data. A token
    whose score lies on the threshold may fall on either side in two runtimes: that is told apart from an error by
    comparing once more with the selection forced equal. With --labels the task's metric must be the same too, and
    one artefact alone has its metric taken. Exit code 1 when something differs.

    A checkpoint runs as the first exported file does: at its size, packing and threshold. What another threshold costs
    is the metric of the checkpoint alone, at its own, beside that. Exported files of different thresholds are not
    compared.

    Single elements of an int8 file need only be numbers: give --labels, on which its metric may drop by 0.01.

    The selection of an engine, or of an --inline file, cannot be forced. Of one exported with --selection all it tells
    what it selected, and the reference is forced to that instead.

    \b
    spt-deploy validate runs/demo/best.pt runs/demo/best.onnx --data data/demo/val --labels data/demo
    """
    from spt_deploy.cli.console import status
    from spt_deploy.errors import ResultError, UsageError
    from spt_deploy.workflows.validate import validate

    if format is not None and labels is None:
        raise UsageError("--format says what --labels is; give both, or neither")
    report = validate(
        artefacts,
        data=data,
        labels=labels,
        format=format,
        runtimes=runtimes,
        device=device,
        precisions=[part.strip() for part in precision.split(",") if part.strip()],
        max_images=max_images,
        threshold=threshold,
        status=status,
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)
    if not report.passed:
        bad = [pair.candidate for pair in report.pairs if not pair.passed]
        bad += [f"{check.artefact} (depends on its batch)" for check in report.independence if not check.passed]
        bad += [f"{m.artefact} ({m.metric} {m.difference:+.4f})" for m in report.metrics if not m.passed]
        raise ResultError(f"parity failed for {', '.join(bad)}; the table above says where")


def _print(report: ValidateReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from spt_deploy.cli.console import results, show

    out = results()
    for pair in report.pairs:
        out.print(f"\n[bold]{escape(pair.candidate)}[/] against {escape(pair.reference)}", soft_wrap=True)
        table = Table("output", "max abs", "mean abs", "max rel", "NaN/Inf", "own selection: max abs", "")
        for name, found in pair.differences.items():
            free = pair.free_differences.get(name)
            table.add_row(
                name,
                f"{found.max_absolute:.1e}",
                f"{found.mean_absolute:.1e}",
                f"{found.max_relative:.1e}",
                str(found.not_finite),
                f"{free.max_absolute:.1e}" if free else "",
                _mark(found.passed),
            )
        show(table)
        if pair.blocks:
            show(_selection_table(pair))
        for case in pair.cases:
            if case.verdict != "equal":
                out.print(f"  {_mark(case.passed)} {case.name}: {case.verdict}", soft_wrap=True)
        out.print(
            f"{_mark(pair.passed)} {len(pair.cases)} cases, {sum(case.images for case in pair.cases)} images; "
            f"{_agreement(pair)}",
            soft_wrap=True,
        )
    out.print("\n[bold]Batch independence[/]: an image alone, among others, in another order", soft_wrap=True)
    for check in report.independence:
        worst = max(d.max_absolute for d in check.differences.values())
        promise = "" if check.promised else " (not promised: batch packing)"
        out.print(f"{_mark(check.passed)} {escape(check.artefact)}: max abs {worst:.1e}{promise}", soft_wrap=True)
    if report.metrics:
        show(_metric_table(report))


def _metric_table(report: ValidateReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    names = list(report.metrics[0].values)
    table = Table(f"{report.metrics[0].images} labelled images", *names, "difference", "")
    for metric in report.metrics:
        values = (f"{metric.values[name]:.4f}" for name in names)
        table.add_row(escape(metric.artefact), *values, f"{metric.difference:+.4f}", _mark(metric.passed))
    return table


def _selection_table(pair: PairReport) -> Table:
    from rich.table import Table

    table = Table("SPA block", "kept", "overlap", "flipped", "max margin", "max score error")
    for block in pair.blocks:
        table.add_row(
            block.block,
            f"{block.select_ratio:.1%}",
            f"{block.overlap:.4%}",
            f"{block.flips} of {block.tokens}",
            f"{block.max_margin:.1e}" if block.flips else "",
            f"{block.max_score_error:.1e}",
        )
    return table


def _agreement(pair: PairReport) -> str:
    from spt_deploy.parity.checks import AGREEMENT

    if pair.agreement is None:
        return "no detection scores higher than rounding might lift another: boxes were not compared"
    return f"{AGREEMENT[pair.task]} {pair.agreement:.2%}"


def _mark(passed: bool) -> str:
    return "[green]ok[/]" if passed else "[red]FAILED[/]"

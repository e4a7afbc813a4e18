"""``spt-deploy export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from spt_deploy.cli.options import FILE, image_size_option, json_option
from spt_deploy.errors import UsageError

if TYPE_CHECKING:
    from spt_deploy.workflows.quantize import QuantizeReport


@click.command("export")
@click.argument("checkpoint", type=FILE, required=False)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="File to write.  [default: beside the checkpoint, as .onnx, .static.onnx, .inline.onnx or .int8.onnx; an "
    "older file there is replaced]",
)
@image_size_option
@click.option(
    "--packing",
    type=click.Choice(["per-image", "batch", "static"]),
    default="per-image",
    show_default=True,
    help="per-image: an answer never depends on the rest of the batch; batch: no slot is wasted; static: every shape "
    "is known, for TensorRT-RTX.",
)
@click.option(
    "--capacity",
    metavar="SHARE|auto",
    help="static: room for this share of the tokens; auto takes what --data needs.  [default: 0.5]",
)
@click.option(
    "--data", type=FILE, help="Folder of images: int8 takes its scales from them; static packing measures its room."
)
@click.option(
    "--inline",
    is_flag=True,
    help="Standard operators alone, no functions: for OpenVINO's own tools (C++, ovc, Model Server). TensorRT finds no "
    "plugins then.",
)
@click.option(
    "--int8", is_flag=True, help="8-bit integers, for CPUs in OpenVINO; ONNX Runtime gains less. Needs --data."
)
@click.option(
    "--labels", type=FILE, help="int8: data set to measure the accuracy on.  [default: --data, where it is one]"
)
@click.option(
    "--max-drop", type=float, metavar="SHARE", help="int8: what the metric may lose on labels.  [default: 0.01]"
)
@click.option(
    "--threshold",
    type=float,
    help="Score above which a token is kept; higher drops what the gates are in doubt of.  [default: as trained]",
)
@click.option(
    "--runtime-threshold",
    is_flag=True,
    help="The graph takes the threshold as a second input, in (0, 1): for infer --threshold and --target-fps.",
)
@click.option(
    "--uint8-input",
    is_flag=True,
    help="The graph takes RGB bytes, batch x height x width x 3, and normalises them itself.",
)
@click.option(
    "--selection",
    type=click.Choice(["summary", "all", "none"]),
    default="summary",
    show_default=True,
    help="Outputs about the selection: ratios and map; every block's mask too; or none.",
)
@json_option
def command(
    checkpoint: Path | None,
    output: Path | None,
    imgsz: tuple[int, int] | None,
    packing: str,
    capacity: str | None,
    data: Path | None,
    inline: bool,
    int8: bool,
    labels: Path | None,
    max_drop: float | None,
    threshold: float | None,
    runtime_threshold: bool,
    uint8_input: bool,
    selection: str,
    as_json: bool,
) -> None:
    """Write CHECKPOINT as one ONNX file for every runtime, and prove it equal.

    The file runs in ONNX Runtime, OpenVINO and TensorRT; its batch is free, its image size fixed. It is checked
    before it gets its name: on random images, on flat ones, keeping nothing and keeping everything. OpenVINO without
    spt-deploy, which knows no ONNX functions, reads the file that --inline writes.

    With --int8 the file is for CPUs alone, and is written only where its accuracy on labels (AP, mAP, top-1) drops by
    no more than --max-drop. Without labels the accuracy is not checked, and 95 % of the answers on --data must be
    those of float32. Where the processor has bfloat16, the file is fastest with --precision bf16.

    \b
    spt-deploy export runs/demo/best.pt
    spt-deploy export ckpt.pt -o model.onnx --imgsz 800x1280
    spt-deploy export ckpt.pt --packing static --capacity auto --data photos/
    spt-deploy export ckpt.pt --runtime-threshold -o live.onnx
    spt-deploy export ckpt.pt --uint8-input -o bytes.onnx
    spt-deploy export ckpt.pt --inline
    spt-deploy export runs/demo/best.pt --int8 --data data/demo
    """
    from spt_deploy.cli.console import status
    from spt_deploy.workflows.export import export

    report = export(
        checkpoint,
        output,
        image_size=imgsz,
        packing=packing,  # type: ignore[arg-type]
        threshold=threshold,
        capacity=_capacity(capacity),
        data=data,
        inline=inline,
        int8=int8,
        labels=labels,
        max_drop=max_drop,
        selection=selection,  # type: ignore[arg-type]
        runtime_threshold=runtime_threshold,
        uint8_input=uint8_input,
        status=status,
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    click.echo(f"{report.path}  {report.size_mb:.1f} MB, exported in {report.seconds:.1f} s")
    for kind, shapes in (("in", report.inputs), ("out", report.outputs)):
        for name, shape in shapes.items():
            click.echo(f"  {kind:3} {name:14} {' x '.join(str(side) for side in shape) or 'scalar'}")
    if report.capacity is not None:
        click.echo(
            f"room for {report.capacity:.0%} of the tokens, in whole containers; what overflows is dropped and counted"
        )
    if report.need is not None:
        blocks = ", ".join(f"{name} {share:.1%}" for name, share in report.need.blocks.items())
        click.echo(
            f"99.9 % of {report.need.images} images need no more than {blocks}: --capacity {report.need.capacity:g}"
        )
    if report.parity is not None:
        worst = max(d.max_absolute for d in report.parity.differences.values())
        what = "in float32 equal" if report.int8 else "equal"
        click.echo(f"{what} to PyTorch on {len(report.parity.cases)} cases, largest difference {worst:.1e}")
    if report.int8 is not None:
        click.echo("\n".join(_quantized(report.int8)))


def _quantized(report: QuantizeReport) -> list[str]:
    lines = [f"int8 in {report.narrow} layers, scales from {report.calibrated} images; {len(report.wide)} stay float32"]
    if report.metrics:
        before, after = (metric.values[metric.metric] for metric in report.metrics)
        name, images = report.metrics[0].metric, report.metrics[0].images
        lines.append(
            f"{name} {before:.4f} in float32, {after:.4f} in int8: {after - before:+.4f}, and a drop of "
            f"{report.max_drop:g} is allowed ({images} labelled images)"
        )
    else:
        lines.append("accuracy was not checked: no labels")
    same = f"{report.agreed.share:.1%} of the answers are those of float32"
    if not report.agreed.counted:
        same = "no answers, so that none can be compared"
    lines.append(f"{same} ({report.compared} images, {report.runtime})")
    if report.selection_differs is not None:
        block, most = max(report.differing.items(), key=lambda item: item[1])
        lines.append(
            f"{report.selection_differs:.2%} of the tokens are selected otherwise, at most {most:.2%} in {block}"
        )
    return lines


def _capacity(text: str | None) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"capacity is {text!r}; expected a share such as 0.5, or auto") from error

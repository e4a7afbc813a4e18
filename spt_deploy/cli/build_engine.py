"""``spt-deploy build-engine``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.options import FILE, json_option
from spt_deploy.errors import UsageError

if TYPE_CHECKING:
    from spt_deploy.workflows.build_engine import BuildReport


@click.command("build-engine")
@click.argument("model", type=FILE, required=False)
@click.option("-o", "--output", type=FILE, help="The engine.  [default: beside MODEL, the precision in its name]")
@click.option("--fp16", is_flag=True, help="Heavy work in float16; proven against float32 before anything is built.")
@click.option("--bf16", is_flag=True, help="The same in bfloat16.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="What builds and runs it; tensorrt-rtx needs no GPU to build.",
)
@click.option("--batch", default="1:8:16", show_default=True, help="Images a run: 8, or MIN:OPT:MAX.")
@click.option(
    "--arch",
    metavar="ARCH",
    help="TensorRT-RTX: sm_75, sm_80, sm_86, sm_89, sm_120, sm_121 or portable.  [default: the GPU here, or portable]",
)
@click.option("--keep-fp32", multiple=True, metavar="PATTERN", help="Nodes or weights that stay float32; repeatable.")
@click.option("--data", type=FILE, help="Images: what leaves fp16's range on them stays float32; the proof uses them.")
@click.option("--labels", type=FILE, help="Data set whose metric (AP, mAP, top-1) the precision must not change.")
@click.option("--workspace", type=float, metavar="GIB", help="Memory that kernels may take.  [default: all]")
@click.option("--opt-level", type=int, help="0 builds fastest, 5 runs fastest.  [default: 3]")
@click.option("--version-compatible", is_flag=True, help="TensorRT: runs in later versions of the same major one.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: runs on all GPUs from Ampere on.")
@click.option("--tf32", is_flag=True, help="Let float32 layers use TF32, 10 bits of mantissa.")
@json_option
def command(
    model: Path | None,
    output: Path | None,
    fp16: bool,
    bf16: bool,
    runtime: str,
    batch: str,
    arch: str | None,
    keep_fp32: tuple[str, ...],
    data: Path | None,
    labels: Path | None,
    workspace: float | None,
    opt_level: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    tf32: bool,
    as_json: bool,
) -> None:
    """Build an engine of MODEL, an ONNX file, for TensorRT or TensorRT-RTX.

    The engine is the pure plan; FILE.engine.json beside it says what it is and must stay beside it. With --fp16 the
    rewritten graph and its comparison with float32 lie there too.

    \b
    spt-deploy build-engine best.onnx --fp16 --data photos/
    spt-deploy build-engine best.static.onnx --fp16 --runtime tensorrt-rtx --arch sm_89
    """
    from spt_deploy.cli.console import progress, status
    from spt_deploy.workflows.build_engine import build_engine

    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 are two precisions; give one")
    with progress("build", unit="steps") as reporter:
        report = build_engine(
            model,
            output,
            runtime=runtime,
            precision="fp16" if fp16 else "bf16" if bf16 else None,
            keep_fp32=keep_fp32,
            data=data,
            labels=labels,
            batch=batch,
            arch=arch,
            workspace_gib=workspace,
            opt_level=opt_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            tf32=tf32,
            status=status,
            report=lambda done, total, phase: reporter.update(done, phase, total),
        )
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else _human(report))


def _human(report: BuildReport) -> str:
    about = report.description
    runs_on = about.gpu or {"portable": "GPUs of compute capability 8.0 and later"}.get(
        about.capability, f"GPUs of {about.capability}"
    )
    lines = [
        f"{report.engine}  {about.plan_bytes / 1e6:.1f} MB, built in {report.build_s:.1f} s",
        f"{about.runtime} {about.runtime_version}, {about.precision} in {about.narrow_layers} heavy layers "
        f"(seen in the {about.seen_in}), batch {about.batch}, for {runs_on}",
    ]
    if report.precision is not None:
        worst = max(each.max_absolute for each in report.precision.parity.differences.values())
        agreement = report.precision.parity.agreement
        with_own = "nothing to compare" if agreement is None else f"{agreement:.2%} agree"
        lines.append(
            f"{about.precision} against float32: largest difference {worst:.1e} with the selection forced equal, "
            f"{with_own} with their own"
        )
        lines += [f"{m.artefact}: {m.metric} {m.values[m.metric]:.4f}" for m in report.precision.metrics]
    lines += [str(file) for file in report.files[1:]]
    return "\n".join(lines)

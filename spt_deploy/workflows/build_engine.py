"""``spt-deploy build-engine``: an ONNX file becomes an engine that is proven, described and whole."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from spt_deploy.atomic import atomic_path
from spt_deploy.engine.batches import BatchRange
from spt_deploy.engine.builder import BuildSettings, BuiltPlan, build_plan
from spt_deploy.engine.caches import read_cache, timing_cache_path, write_cache
from spt_deploy.engine.description import PORTABLE, EngineDescription, sha256, write_description
from spt_deploy.engine.monitor import Report
from spt_deploy.errors import OutputError, UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.interrupt import stop_on_signals
from spt_deploy.runtimes.onnx_file import facts_of, inlined, load_onnx
from spt_deploy.workflows.artefacts import check_name, find_artefact
from spt_deploy.workflows.engine_target import Target, choose_target
from spt_deploy.workflows.mixed_precision import PrecisionReport, write_mixed
from spt_export.precision import Precision, heavy_nodes

MOST_WORKSPACE = 1 << 20  # GiB: beyond it is a slip of the keyboard, and beyond 2^34 more than the libraries count


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        onnx: file that it was built from.
        engine: file that was written.
        files: all files that were written, the engine first.
        description: of the engine.
        precision: what the rewriting came to; None where the file was built as it is.
        build_s: seconds that the library worked.
        timing_cache: whether an earlier build's measurements were used; None where the library keeps none.
    """

    onnx: Path
    engine: Path
    files: tuple[Path, ...]
    description: EngineDescription
    precision: PrecisionReport | None
    build_s: float
    timing_cache: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "onnx": str(self.onnx),
            "engine": str(self.engine),
            "files": [str(file) for file in self.files],
            "build_s": round(self.build_s, 3),
            "timing_cache_used": self.timing_cache,
            "description": self.description.to_dict(),
            "precision": self.precision.to_dict() if self.precision else None,
        }


def build_engine(
    model: Path | None = None,
    output: Path | None = None,
    *,
    runtime: str = "auto",
    precision: Precision | None = None,
    keep_fp32: Sequence[str] = (),
    data: Path | None = None,
    labels: Path | None = None,
    batch: str = "1:8:16",
    arch: str | None = None,
    workspace_gib: float | None = None,
    opt_level: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    tf32: bool = False,
    status: Callable[[str], None] = lambda text: None,
    report: Report = lambda done, total, phase: None,
) -> BuildReport:
    """Build an engine; beside it go its description and, when the graph was rewritten, that graph and a report.

    Args:
        model: an ONNX file that ``spt-deploy export`` wrote; None takes the newest.
        output: None writes beside the ONNX file, the precision in the name.
        runtime: see ``choose_target``; so ``arch``.
        precision: ``fp16`` or ``bf16`` rewrites the graph and proves it against float32; None builds the file as it is.
        keep_fp32: see ``write_mixed``; so ``data`` and ``labels``.
        batch: ``8``, or ``MIN:OPT:MAX``.
        workspace_gib: see ``BuildSettings``; so the next four.
        status: hears what is being done.
        report: hears how far the library is: steps done, steps known so far, what it begins.

    Raises:
        ArtefactError: when the file cannot be used, or the library does not take it.
        UsageError: when an argument is out of range, does not suit the library, or the rewritten graph would replace
            ``model``.
        RuntimeMissingError: when the library, or the GPU that it needs, is missing.
        ResultError: when the rewritten graph does not say what the float32 graph says, or the engine is not what was
            asked for; no engine is written.
        OutputError: when a file cannot be written.
        KeyboardInterrupt: when the build was interrupted; no engine is written.
    """
    sizes = BatchRange.parse(batch)
    if opt_level is not None and not 0 <= opt_level <= 5:
        raise UsageError(f"opt-level is {opt_level}; expected a number from 0, built fastest, to 5, runs fastest")
    if workspace_gib is not None and not 0 < workspace_gib <= MOST_WORKSPACE:
        raise UsageError(f"workspace is {workspace_gib} GiB; expected a positive number, at most {MOST_WORKSPACE}")
    if precision is None and (keep_fp32 or data or labels):
        raise UsageError("keep-fp32, data and labels are about a precision; give --fp16 or --bf16 with them")
    if output is not None:
        check_name(output, "engine")
    source, why = find_artefact(model, ("onnx",))
    if why:
        status(why)
    before = facts_of(load_onnx(source), str(source))
    if not before.has_spt_nodes:
        what, option = ("in standard operators alone", "inline") if before.inlined else ("in int8, for CPUs,", "int8")
        raise UsageError(
            f"{source} is {what} and has no spt nodes that an engine is built of; give the file that spt-deploy export "
            f"writes without --{option}"
        )
    target = choose_target(runtime, arch, before, source)
    if target.library.name == "tensorrt-rtx" and target.capability == "sm_75":
        computes_in = precision or before.precision
        if computes_in == "fp32":
            raise UsageError("TensorRT-RTX has no float32 matrix products for sm_75; add --fp16")
        if computes_in == "bf16":
            raise UsageError("GPUs of sm_75 have no bfloat16; build the float32 file with --fp16")
    if target.library.name == "tensorrt-rtx" and (version_compatible or hardware_compatible):
        raise UsageError(
            "version-compatible and hardware-compatible are TensorRT's; TensorRT-RTX compiles an engine for the "
            f"GPU that loads it: --arch {PORTABLE}"
        )
    engine = output or source.with_name(f"{source.stem}.{precision}.engine" if precision else f"{source.stem}.engine")
    rewritten = None
    graph = source
    if precision is not None:
        graph = engine.with_name(f"{engine.stem.removesuffix(f'.{precision}')}.{precision}.onnx")
        if graph.exists() and graph.samefile(source):
            raise UsageError(
                f"the rewritten graph {graph} would replace the file it is made from; name another with -o"
            )
        rewritten = write_mixed(source, graph, precision, keep_fp32=keep_fp32, data=data, labels=labels, status=status)
    settings = BuildSettings(
        batch=sizes,
        capability=target.capability,
        workspace_gib=workspace_gib,
        opt_level=opt_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        tf32=tf32,
        timing_cache=_timings(target),
    )
    proto = load_onnx(graph)
    facts = facts_of(proto, str(graph))
    status(
        f"building with {target.library.name} {target.library.version}: {facts.precision}, {target.capability}, "
        f"batch {sizes}"
    )
    start = time.perf_counter()
    with stop_on_signals() as stop:
        built = build_plan(
            _prepared(proto, facts, target, hardware_compatible),
            target.library,
            settings,
            facts.precision,
            heavy_nodes(proto, facts.precision),
            report,
            stop,
        )
    build_s = time.perf_counter() - start
    _keep_timings(target, built, status)
    rewriting = _rewriting(precision, keep_fp32, data, labels)
    description = _describe(built, settings, target, source, facts, rewriting)
    described = write_description(engine, description)
    with atomic_path(engine) as temporary:  # last: where there is an engine, there is all of it
        temporary.write_bytes(built.plan)
    return BuildReport(
        onnx=source,
        engine=engine,
        files=(engine, described, *(rewritten.files if rewritten else ())),
        description=description,
        precision=rewritten,
        build_s=build_s,
        timing_cache=bool(settings.timing_cache) if target.library.name == "tensorrt" else None,
    )


def _prepared(model: onnx.ModelProto, facts: ModelFacts, target: Target, hardware_compatible: bool) -> onnx.ModelProto:
    """The graph as the library takes it: ``spt`` nodes for the plugins of TensorRT, standard operators otherwise."""
    if target.library.name == "tensorrt-rtx" or str(facts.model.backbone.packing) == "static":
        return inlined(model)
    if facts.model.backbone.spa_blocks:
        import spt_plugins

        # PTX of an older GPU runs on newer ones; sm_80 is the oldest that a hardware-compatible engine runs on.
        spt_plugins.register(80 if hardware_compatible else None)
    return model


def _describe(
    built: BuiltPlan,
    settings: BuildSettings,
    target: Target,
    source: Path,
    facts: ModelFacts,
    rewriting: list[str],
) -> EngineDescription:
    command = ["spt-deploy", "build-engine", source.name, "--runtime", target.library.name]
    command += ["--batch", str(settings.batch), *rewriting]
    command += ["--arch", target.capability] if target.library.name == "tensorrt-rtx" else []
    command += ["--version-compatible"] if settings.version_compatible else []
    command += ["--hardware-compatible"] if settings.hardware_compatible else []
    command += ["--tf32"] if settings.tf32 else []
    command += ["--opt-level", str(settings.opt_level)] if settings.opt_level is not None else []
    command += ["--workspace", f"{settings.workspace_gib:g}"] if settings.workspace_gib is not None else []
    return EngineDescription(
        runtime=target.library.name,
        runtime_version=target.library.version,
        precision=facts.precision,
        narrow_layers=built.narrow_layers,
        seen_in=built.seen_in,
        gpu=target.gpu.name if target.gpu and target.library.name == "tensorrt" else "",
        capability=target.capability,
        batch=settings.batch,
        version_compatible=settings.version_compatible,
        hardware_compatible=settings.hardware_compatible,
        onnx=source.name,
        onnx_sha256=sha256(source.read_bytes()),
        plan_bytes=len(built.plan),
        plan_sha256=sha256(built.plan),
        command=shlex.join(command),
        facts=facts,
    )


def _rewriting(
    precision: Precision | None, keep_fp32: Sequence[str], data: Path | None, labels: Path | None
) -> list[str]:
    """The options that made the graph in mixed precision."""
    options = [f"--{precision}"] if precision else []
    for pattern in keep_fp32:
        options += ["--keep-fp32", pattern]
    options += ["--data", str(data)] if data else []
    return options + (["--labels", str(labels)] if labels else [])


def _timings(target: Target) -> bytes:
    """TensorRT's measurements of earlier builds."""
    if target.library.name != "tensorrt" or target.gpu is None:
        return b""
    return read_cache(timing_cache_path(target.library.version, target.gpu))


def _keep_timings(target: Target, built: BuiltPlan, status: Callable[[str], None]) -> None:
    if not built.timing_cache or target.gpu is None:
        return
    try:
        write_cache(timing_cache_path(target.library.version, target.gpu), built.timing_cache)
    except OutputError as error:  # the next build takes longer, that is all
        status(f"the measurements of this build are not kept: {error}")

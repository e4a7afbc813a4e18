"""From an ONNX graph to a plan: parse, profile, build, and see what precision came of it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from spt_deploy.engine.batches import BatchRange
from spt_deploy.engine.description import PORTABLE
from spt_deploy.engine.library import Library
from spt_deploy.engine.monitor import Report, make_monitor
from spt_deploy.errors import ArtefactError, ResultError, RuntimeMissingError, UsageError
from spt_deploy.interrupt import StopRequest

# Precision -> TensorRT's name of the type, and what the engine inspector writes for it.
_TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fp32": ("FLOAT", ("Float", "FP32")),
    "fp16": ("HALF", ("Half", "FP16")),
    "bf16": ("BF16", ("BFloat16", "BF16")),
}
_HEAVY = ("CONVOLUTION", "MATRIX_MULTIPLY", "PLUGIN_V3")
_GIB = 1 << 30


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    Attributes:
        batch: images a run.
        capability: compute capability to build for, ``sm_89``, or ``portable``; TensorRT builds for the GPU at hand.
        workspace_gib: memory that tactics may take; None leaves it to the library, all of the GPU's.
        opt_level: 0 builds fastest, 5 runs fastest; None is the library's own, 3.
        version_compatible: the engine shall run in later versions of the same major version.
        hardware_compatible: the engine shall run on all GPUs from Ampere on.
        tf32: let float32 layers use TF32, 10 bits of mantissa.
        timing_cache: what `TensorRT` measured before; empty where nothing was.
    """

    batch: BatchRange
    capability: str
    workspace_gib: float | None = None
    opt_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    tf32: bool = False
    timing_cache: bytes = b""


@dataclass(frozen=True)
class BuiltPlan:
    """What came of it.

    Attributes:
        plan: the engine file's bytes.
        narrow_layers: heavy layers that compute in the wanted precision.
        seen_in: ``engine`` or ``network``.
        timing_cache: to be kept for the next build; empty where the library has none.
    """

    plan: bytes
    narrow_layers: int
    seen_in: str
    timing_cache: bytes


def build_plan(
    model: onnx.ModelProto,
    library: Library,
    settings: BuildSettings,
    precision: str,
    least_layers: int,
    report: Report = lambda done, total, phase: None,
    stop: StopRequest | None = None,
) -> BuiltPlan:
    """Build an engine of a strongly typed graph.

    Args:
        model: with an input ``images``, the first, whose first dimension is the batch; another is a scalar.
        library: that builds; with plugins registered where the model has ``spt`` nodes that are to become plugins.
        settings: see `BuildSettings`.
        precision: that the model's heavy nodes have.
        least_layers: heavy layers that must have it.
        report: hears of the progress: steps done, steps known so far, what is being done.
        stop: ends the build when it is made.

    Raises:
        ArtefactError: when the parser or the builder does not take the graph.
        ResultError: when the built network does not have the precision.
        UsageError: when the library does not know a setting.
        KeyboardInterrupt: when the build was stopped.
    """
    trt = library.module
    builder = trt.Builder(library.log)
    network = builder.create_network(_network_flags(trt))
    _parse(_with_batch(model, settings.batch), library, network)
    narrow = _narrow_in_network(trt, network, precision)
    if narrow < least_layers:
        raise ResultError(
            f"{precision} was asked for, and only {narrow} of {least_layers} heavy layers have it in the network that "
            f"{library.name} made of the graph; nothing was built, please report this with the file"
        )
    config = _configure(library, builder, network, settings)
    stop = stop or StopRequest()
    config.progress_monitor = monitor = make_monitor(trt, report, stop)
    plan = _in_thread(lambda: builder.build_serialized_network(network, config))
    del monitor
    if stop.made:
        raise KeyboardInterrupt
    errors = library.log.take_errors()
    if plan is None:
        raise ArtefactError(f"{library.name} cannot build the engine: {errors or 'it gave no reason'}")
    cache = config.get_timing_cache() if library.name == "tensorrt" else None
    built = bytes(plan)
    inspected = _narrow_in_engine(library, built, precision)
    if inspected == 0 and least_layers:
        raise ResultError(f"{precision} was asked for, and no layer of the built engine has it; nothing was written")
    return BuiltPlan(
        plan=built,
        narrow_layers=narrow if inspected is None else inspected,
        seen_in="network" if inspected is None else "engine",
        timing_cache=b"" if cache is None else bytes(cache.serialize()),
    )


def _network_flags(trt: Any) -> int:
    """Strongly typed: what a layer computes in is what the graph says."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only way there is, one day
    return 0 if flag is None else 1 << int(flag)


def _with_batch(model: onnx.ModelProto, batch: BatchRange) -> onnx.ModelProto:
    """The model with its batch fixed, where the engine takes one size: then every shape is known."""
    if not batch.is_fixed:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (copy.graph.input[0], *copy.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch.usual
    return copy


def _parse(model: onnx.ModelProto, library: Library, network: Any) -> None:
    parser = library.module.OnnxParser(network, library.log)
    if parser.parse(model.SerializeToString()):
        library.log.take_errors()
        return
    reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reasons.append(f"node {error.node_name() or '?'} ({error.node_operator()}): {error.desc()}")
    library.log.take_errors()
    raise ArtefactError(f"{library.name}'s parser does not take the graph: {'; '.join(reasons) or 'no reason given'}")


def _configure(library: Library, builder: Any, network: Any, settings: BuildSettings) -> Any:
    trt = library.module
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace_gib * _GIB))
    if settings.opt_level is not None:
        config.builder_optimization_level = settings.opt_level
    if library.name == "tensorrt":
        cache = config.create_timing_cache(settings.timing_cache)
        # A cache that was damaged, or of another GPU, is no reason to fail: begin a new one.
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            library.log.take_errors()
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    elif settings.capability != PORTABLE:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_capability(trt, settings.capability), 0)
    if not settings.batch.is_fixed:
        profile = builder.create_optimization_profile()
        image = tuple(network.get_input(0).shape)[1:]
        sizes = (settings.batch.smallest, settings.batch.usual, settings.batch.largest)
        profile.set_shape(network.get_input(0).name, *((size, *image) for size in sizes))
        config.add_optimization_profile(profile)
    return config


def _capability(trt: Any, name: str) -> Any:
    known = {f"sm_{each[2:].lower()}": each for each in trt.ComputeCapability.__members__ if each.startswith("SM")}
    if name not in known:
        raise UsageError(f"arch is {name!r}; this TensorRT-RTX builds for {', '.join(known)} and {PORTABLE}")
    return getattr(trt.ComputeCapability, known[name])


def _narrow_in_network(trt: Any, network: Any, precision: str) -> int:
    """Heavy layers of the network that give the wanted type."""
    wanted = _TYPES[precision][0]
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in _HEAVY:
            found[layer.get_output(0).dtype.name] += 1
    return found[wanted]


def _narrow_in_engine(library: Library, plan: bytes, precision: str) -> int | None:
    """Layers of the built engine that give the wanted type; None where no GPU can open it."""
    import torch

    if not torch.cuda.is_available():
        return None
    trt = library.module
    engine = trt.Runtime(library.log).deserialize_cuda_engine(plan)
    errors = library.log.take_errors()
    if engine is None:
        if library.name == "tensorrt-rtx":  # built for another GPU than this machine's
            return None
        raise RuntimeMissingError(f"{library.name} built an engine that it cannot open here: {errors}")
    described = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    names = _TYPES[precision][1]
    layers = [layer for layer in described.get("Layers", []) if isinstance(layer, dict)]
    return sum(any(name in str(layer.get("Outputs")) for name in names) for layer in layers)


def _in_thread(work: Callable[[], Any]) -> Any:
    """Do ``work`` beside the main thread, which alone hears signals and would not while the library works."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="build", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
    if errors:
        raise errors[0]
    return results[0]

"""Which runtime opens which artefact."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from spt_deploy.engine.description import read_description
from spt_deploy.engine.library import has_gpu
from spt_deploy.errors import ArtefactError, RuntimeMissingError, UsageError
from spt_deploy.runtimes.base import Runner, usable_cores

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".safetensors")
MODEL_SUFFIXES = (*CHECKPOINT_SUFFIXES, ".onnx", ".engine")
# kind of artefact -> runtimes that take it; see ``choose_runtime`` for which is taken
RUNTIMES: dict[str, tuple[str, ...]] = {
    "checkpoint": ("torch",),
    "onnx": ("onnxruntime", "openvino"),
    "engine": ("tensorrt", "tensorrt-rtx"),
}
MOST_LANES = 4  # more hold more frames for little more speed
RUNTIME_NAMES = tuple(name for names in RUNTIMES.values() for name in names)


def lanes_for_throughput() -> int:
    """How many batches run at the same time where frames a second count."""
    return min(MOST_LANES, usable_cores())


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be imported here."""
    return importlib.util.find_spec(runtime.replace("-", "_")) is not None


def artefact_kind(path: Path) -> str:
    """``checkpoint``, ``onnx`` or ``engine``, by the file's suffix.

    Raises:
        ArtefactError: when the suffix is of no artefact.
    """
    if path.suffix in CHECKPOINT_SUFFIXES:
        return "checkpoint"
    if path.suffix == ".onnx":
        return "onnx"
    if path.suffix == ".engine":
        return "engine"
    raise ArtefactError(
        f"{path} is no model by its name; expected a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}), an .onnx file or "
        "an .engine"
    )


def choose_runtime(path: Path, wanted: str = "auto", device: str = "auto", precision: str | None = None) -> str:
    """The runtime that opens ``path``.

    ``auto`` takes, of those that are installed, the one that was fastest as a rule: of an engine the one that built
    it; of an ONNX file ONNX Runtime where it has a GPU, else OpenVINO.

    Args:
        path: of the artefact.
        wanted: ``auto``, or a runtime.
        device: see ``open_runner``; so ``precision``.
        precision: see ``device``.

    Raises:
        ArtefactError: when an engine has no description beside it.
        UsageError: when ``wanted`` is unknown or does not take this kind of artefact, or a precision is given that it
            does not have.
        RuntimeMissingError: when no runtime for it is installed.
    """
    kind = artefact_kind(path)
    fitting = RUNTIMES[kind]
    if wanted not in ("auto", *RUNTIME_NAMES):
        raise UsageError(f"runtime is {wanted!r}; known are auto, {', '.join(RUNTIME_NAMES)}")
    if precision is not None:
        if kind != "onnx":
            raise UsageError(f"{path.name} runs in its own precision; leave out --precision, which is for ONNX files")
        if wanted not in ("auto", "openvino"):
            raise UsageError(f"{wanted} runs files in their own precision; leave out --precision, or use openvino")
        fitting = ("openvino",)
    if kind == "engine":
        fitting = (read_description(path).runtime,)
        if wanted == "auto":
            return fitting[0]
    if wanted == "auto":
        if kind == "onnx" and device != "cuda" and not _reaches_gpu():
            fitting = tuple(name for name in ("openvino", "onnxruntime") if name in fitting)
        for name in fitting:
            if is_installed(name):
                return name
        instead = "" if kind != "checkpoint" else f", or where that is: spt-deploy export {path.name}"
        raise RuntimeMissingError(f"no runtime for {path.name} is installed; pip install {fitting[0]}{instead}")
    if wanted not in fitting:
        raise UsageError(f"the {wanted} runtime does not take {path.name} ({kind}); use {' or '.join(fitting)}")
    return wanted


def check_precisions(precisions: Sequence[str], runners: Sequence[Runner]) -> None:
    """Whether any of these runners computes in the precisions that were asked for, as only openvino does.

    Raises:
        UsageError: when none does.
    """
    if precisions and not any(runner.runtime == "openvino" for runner in runners):
        there = ", ".join(dict.fromkeys(runner.runtime for runner in runners))
        raise UsageError(
            f"precision is {','.join(precisions)}, which openvino alone can be asked for, and what is named runs in "
            f"{there}; leave --precision out, or name an ONNX file and let openvino run it"
        )


def _reaches_gpu() -> bool:
    """Whether ONNX Runtime is there and has a GPU."""
    if not is_installed("onnxruntime") or not has_gpu():
        return False
    from spt_deploy.runtimes.onnxruntime_cuda import no_cuda

    return no_cuda() is None


def open_runner(
    path: Path,
    runtime: str = "auto",
    device: str = "auto",
    *,
    throughput: bool = False,
    precision: str | None = None,
    threshold: float | None = None,
) -> Runner:
    """A runner of the artefact, not yet entered.

    Args:
        path: a checkpoint, an exported ONNX file or an engine.
        runtime: ``auto``, ``torch``, ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``.
        device: ``auto``, ``cpu`` or ``cuda``; a device that is named is the one used, or an error.
        throughput: run several batches at the same time, each on its share of the cores: more images a second, and
            each later. Where a runtime has that, ``Runner.lanes`` says how many.
        precision: ``fp32`` or ``bf16``, which openvino computes in; None is the artefact's own.
        threshold: of the score, in (0, 1), in place of the model's own; see `Runner.check_threshold`.

    Raises:
        ArtefactError: when the file cannot be used.
        InputError: when a threshold is given and the artefact takes none.
        UsageError: when the runtime does not take this kind of artefact, or the threshold is out of range.
        RuntimeMissingError: when the runtime or device is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device is {device!r}; known are auto, cpu, cuda")
    name = choose_runtime(path, runtime, device, precision)
    lanes = lanes_for_throughput() if throughput else 1
    if name == "torch":
        from spt_deploy.runtimes.torch_runner import TorchRunner

        runner = TorchRunner(path, device, threshold=threshold)
        if threshold is not None:
            runner.check_threshold(threshold)
        return runner
    if name == "onnxruntime":
        from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(path, device, threshold, lanes)
    if name in RUNTIMES["engine"]:
        from spt_deploy.runtimes.engine_runner import EngineRunner, RtxEngineRunner

        kind = EngineRunner if name == "tensorrt" else RtxEngineRunner
        return kind(path, device, threshold)
    from spt_deploy.runtimes.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(path, device, threshold, precision, lanes)

"""Which runtime opens which artefact."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from spt_deploy.engine.description import read_description
from spt_deploy.errors import ArtefactError, RuntimeMissingError, UsageError
from spt_deploy.runtimes.base import Runner

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".safetensors")
# kind of artefact -> runtimes that take it, best first
RUNTIMES: dict[str, tuple[str, ...]] = {
    "checkpoint": ("torch",),
    "onnx": ("onnxruntime", "openvino"),
    "engine": ("tensorrt", "tensorrt-rtx"),
}
RUNTIME_NAMES = tuple(name for names in RUNTIMES.values() for name in names)


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


def choose_runtime(path: Path, wanted: str = "auto") -> str:
    """The runtime that opens ``path``; ``auto`` takes the best that is installed, of an engine the one that built it.

    Raises:
        ArtefactError: when an engine has no description beside it.
        UsageError: when ``wanted`` is unknown or does not take this kind of artefact.
        RuntimeMissingError: when no runtime for it is installed.
    """
    kind = artefact_kind(path)
    fitting = RUNTIMES[kind]
    if kind == "engine":
        fitting = (read_description(path).runtime,)
        if wanted == "auto":
            return fitting[0]
    if wanted == "auto":
        for name in fitting:
            if is_installed(name):
                return name
        raise RuntimeMissingError(f"no runtime for {path.name} is installed; pip install {fitting[0]}")
    if wanted not in RUNTIME_NAMES:
        raise UsageError(f"runtime is {wanted!r}; known are auto, {', '.join(RUNTIME_NAMES)}")
    if wanted not in fitting:
        raise UsageError(f"the {wanted} runtime does not take {path.name} ({kind}); use {' or '.join(fitting)}")
    return wanted


def open_runner(
    path: Path,
    runtime: str = "auto",
    device: str = "auto",
    *,
    shares_cores: bool = False,
    threshold: float | None = None,
) -> Runner:
    """A runner of the artefact, not yet entered.

    Args:
        path: a checkpoint, an exported ONNX file or an engine.
        runtime: ``auto``, ``torch``, ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``.
        device: ``auto``, ``cpu`` or ``cuda``; a device that is named is the one used, or an error.
        shares_cores: whether other threads work beside the model, as in a stream.
        threshold: of the score, in (0, 1), in place of the model's own; see `Runner.check_threshold`.

    Raises:
        ArtefactError: when the file cannot be used.
        InputError: when a threshold is given and the artefact takes none.
        UsageError: when the runtime does not take this kind of artefact, or the threshold is out of range.
        RuntimeMissingError: when the runtime or device is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device is {device!r}; known are auto, cpu, cuda")
    name = choose_runtime(path, runtime)
    if name == "torch":
        from spt_deploy.runtimes.torch_runner import TorchRunner

        runner = TorchRunner(path, device, threshold=threshold)
        if threshold is not None:
            runner.check_threshold(threshold)
        return runner
    if name == "onnxruntime":
        from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(path, device, spins=not shares_cores, threshold=threshold)
    if name in RUNTIMES["engine"]:
        from spt_deploy.runtimes.engine_runner import EngineRunner, RtxEngineRunner

        kind = EngineRunner if name == "tensorrt" else RtxEngineRunner
        return kind(path, device, threshold)
    from spt_deploy.runtimes.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(path, device, threshold)

"""``spt-deploy doctor``: what this machine can run, proven by running it, and what to install for the rest."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spt_deploy.engine.library import ENGINE_RUNTIMES, EngineRuntime, current_gpu, has_gpu
from spt_deploy.errors import SptError
from spt_deploy.parity.tolerances import tolerance_for
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.registry import RUNTIMES, is_installed
from spt_deploy.telemetry import no_telemetry
from spt_deploy.workflows.doctor_trial import Trial, export_small, first_line, trial_with_torch, trial_without_torch

Verdict = Literal["works", "missing", "no device", "wrong", "fails"]

# runtime -> the distributions that bring it, and what installs it: not by an extra where PyTorch may be left out, for
# pip would bring all that spt-deploy depends on with it
_DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), "pip install torch"),
    "onnxruntime": (
        ("onnxruntime", "onnxruntime-gpu"),
        "pip install onnxruntime, or 'onnxruntime-gpu[cuda,cudnn]' for CUDA",
    ),
    "openvino": (("openvino",), "pip install openvino"),
    "tensorrt": (("tensorrt",), "pip install 'spt-deploy[gpu]', on a machine with an NVIDIA GPU"),
    "tensorrt-rtx": (("tensorrt-rtx",), "pip install 'spt-deploy[rtx]'"),
}
# what training and its metrics load where they need it (the extra train) -> its module, and what it is for
_PACKAGES = {
    "faster-coco-eval": ("faster_coco_eval", "average precision of detectors: train, validate --labels, export --int8"),
    "matplotlib": ("matplotlib", "curves.png of a training run"),
    "pillow": ("PIL", "reading the sizes of YOLO's images without decoding them"),
    "pyyaml": ("yaml", "reading data.yaml of YOLO's data sets"),
}


@dataclass(frozen=True)
class RuntimeCheck:
    """One runtime on one device.

    Attributes:
        runtime: as ``--runtime`` takes it.
        device: ``cpu`` or ``cuda``.
        version: of what is installed; None where nothing is.
        verdict: ``works``: it ran the model and said what it should; ``missing``: not installed; ``no device``:
            installed, without a device of that kind; ``wrong``: it ran and said something else; ``fails``: it did not
            run.
        detail: a sentence: what was found, and what to do.
    """

    runtime: str
    device: str
    version: str | None
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class PackageCheck:
    """A package that some commands need.

    Attributes:
        package: as pip calls it.
        version: of what is installed; None where nothing is.
        purpose: what needs it.
    """

    package: str
    version: str | None
    purpose: str


@dataclass(frozen=True)
class Diagnosis:
    """What doctor found.

    Attributes:
        gpu: name of the first CUDA device, or who sees that there is one; None without one.
        checks: every runtime on every device.
        packages: those of the extra ``train``.
    """

    gpu: str | None
    checks: tuple[RuntimeCheck, ...]
    packages: tuple[PackageCheck, ...] = ()

    @property
    def can_infer(self) -> bool:
        """Whether any runtime runs a model rightly."""
        return any(check.verdict == "works" for check in self.checks)

    @property
    def is_sound(self) -> bool:
        """Whether nothing that is installed fails or says something wrong."""
        return not any(check.verdict in ("wrong", "fails") for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        checks = [asdict(check) for check in self.checks]
        found = {"gpu": self.gpu, "can_infer": self.can_infer, "is_sound": self.is_sound, "checks": checks}
        return found | {"packages": [asdict(package) for package in self.packages]}


def doctor(status: Callable[[str], None] = lambda text: None) -> Diagnosis:
    """Make a small model, run it through every runtime on every device, and compare with PyTorch on the CPU.

    Where PyTorch is missing, the model is a smaller one, and NumPy says what is right.

    Args:
        status: hears what is being done.
    """
    has_torch = is_installed("torch")
    with tempfile.TemporaryDirectory(prefix="spt-deploy-doctor-") as name:
        folder = Path(name)
        trial = trial_with_torch(folder, status) if has_torch else trial_without_torch(folder)
        checks = []
        for runtime in (*RUNTIMES["checkpoint"], *RUNTIMES["onnx"]):
            for device in ("cpu",) if runtime == "openvino" else ("cpu", "cuda"):
                status(f"trying {runtime} on {device}")
                checks.append(_check(runtime, device, trial))
        for engine_runtime in ENGINE_RUNTIMES:
            status(f"trying {engine_runtime}")
            checks.append(_check_engine(engine_runtime, trial))
    packages = (PackageCheck(name, _version(module, (name,)), purpose) for name, (module, purpose) in _PACKAGES.items())
    return Diagnosis(_gpu(has_torch), tuple(checks), tuple(packages))


def _gpu(has_torch: bool) -> str | None:
    """Name of the first CUDA device, or who sees that there is one."""
    found = current_gpu() if has_torch else None
    if found is None and has_gpu():
        return "one that NVIDIA's driver sees" + (", and PyTorch does not" if has_torch else "")
    return found.name if found else None


def _check(runtime: str, device: str, trial: Trial) -> RuntimeCheck:
    distributions, remedy = _DISTRIBUTIONS[runtime]
    version = _version(runtime, distributions)

    def found(verdict: Verdict, detail: str) -> RuntimeCheck:
        return RuntimeCheck(runtime, device, version, verdict, detail)

    if version is None:
        return found("missing", remedy)
    path = trial.checkpoint if runtime == "torch" else trial.exported
    if path is None:
        return found("fails", trial.why_not)
    if device == "cuda":
        try:
            if reason := _no_cuda(runtime):
                return found("no device", reason)
        except Exception as error:  # see _run
            return found("fails", _named(error))
    verdict, detail = _run(path, runtime, device, trial)
    if runtime == "openvino" and verdict == "works":
        from spt_deploy.runtimes.openvino_runner import precisions_here

        for precision in precisions_here()[1:]:
            verdict, also = _run(path, runtime, device, trial, precision)
            detail += f"; with --precision {precision}: {also}"
            if verdict != "works":
                break
        detail += f"; {_operators()}"
    return found(verdict, detail)


def _operators() -> str:
    """How OpenVINO computes what an SPT has and other models have not."""
    from spt_deploy.runtimes.openvino_extension.library import try_again, why_not

    try_again()
    missing = why_not()
    return f"selection and packing in standard operators: {missing}" if missing else "operators of its own are compiled"


def _check_engine(runtime: EngineRuntime, trial: Trial) -> RuntimeCheck:
    """Build an engine where that is possible, and run it where a GPU is."""
    distributions, remedy = _DISTRIBUTIONS[runtime]
    version = _version(runtime, distributions)

    def found(verdict: Verdict, detail: str) -> RuntimeCheck:
        return RuntimeCheck(runtime, "cuda", version, verdict, detail)

    if version is None:
        return found("missing", remedy)
    if trial.checkpoint is None:
        return found("missing", f"engines are built and run with PyTorch's help; {_DISTRIBUTIONS['torch'][1]}")
    device = current_gpu()
    if device is None and runtime == "tensorrt":
        return found("no device", "PyTorch sees no CUDA device, and TensorRT builds and runs on one")
    path, why_not = export_small(trial.checkpoint, "static" if runtime == "tensorrt-rtx" else "per-image")
    if path is None:
        return found("fails", why_not)
    from spt_deploy.workflows.build_engine import build_engine

    try:
        built = build_engine(path, path.with_suffix(f".{runtime}.engine"), runtime=runtime, batch="1:2:2")
    except SptError as error:
        return found("fails", str(error))
    except Exception as error:
        return found("fails", _named(error))
    if device is None:
        return found("no device", "builds engines here, and PyTorch sees no CUDA device to run them on")
    return found(*_run(built.engine, runtime, "cuda", trial))


def _run(path: Path, runtime: str, device: str, trial: Trial, precision: str | None = None) -> tuple[Verdict, str]:
    """Run a file and compare what it says."""
    try:
        with open_runner(path, runtime, device, precision=precision) as runner:
            answer = runner.infer(trial.images)
    except SptError as error:
        return "fails", str(error)
    except Exception as error:  # a runtime that is installed by halves raises anything
        return "fails", _named(error)
    tolerance = tolerance_for(precision or "fp32")
    # NumPy's maximum, for Python's passes over a NaN that is not the first.
    worst = float(np.max([np.abs(answer[name] - right).max() for name, right in trial.expected.items()]))
    if not worst <= tolerance.absolute + tolerance.relative * float(np.abs(trial.expected["logits"]).max()):
        return "wrong", f"differs from {trial.judge} by {worst:.1e}"
    return "works", f"{'' if precision else f'equal to {trial.judge}, '}largest difference {worst:.1e}"


def _no_cuda(runtime: str) -> str:
    """Why a runtime has no CUDA device; empty where it has one."""
    if runtime == "onnxruntime":
        from spt_deploy.runtimes.onnxruntime_cuda import no_cuda

        return no_cuda() or ""
    return "" if current_gpu() else "PyTorch sees no CUDA device"


def _version(runtime: str, distributions: tuple[str, ...]) -> str | None:
    """Of what is installed and can be imported; None where nothing is."""
    if not is_installed(runtime):
        return None
    if len(distributions) > 1:  # both may be there, of which one's files are
        with contextlib.suppress(Exception), no_telemetry():  # see _run
            return str(importlib.import_module(runtime).__version__)
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"

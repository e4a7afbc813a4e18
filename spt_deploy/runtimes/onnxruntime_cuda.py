"""CUDA for ONNX Runtime: whether it can be had, and CUDA's own libraries loaded from where pip put them."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache

from spt_deploy.engine.library import has_gpu
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.telemetry import no_telemetry

with no_telemetry():
    import onnxruntime as ort

PROVIDER = "CUDAExecutionProvider"


def choose_device(wanted: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes CUDA where its provider and a GPU are.

    Raises:
        RuntimeMissingError: when ``cuda`` is asked for and there is no provider or no GPU.
    """
    if wanted == "auto":
        return "cuda" if no_cuda() is None else "cpu"
    if wanted == "cuda" and (reason := no_cuda()) is not None:
        raise RuntimeMissingError(f"{reason}; or use --device cpu")
    return wanted


def no_cuda() -> str | None:
    """Why ONNX Runtime has no GPU here, with what to do; None where it has one."""
    if not has_gpu():
        return "no CUDA device: NVIDIA's driver is not there or finds no GPU (what does nvidia-smi say?)"
    available = ort.get_available_providers()
    if PROVIDER not in available:
        return (
            f"this ONNX Runtime has no CUDA provider (it has {', '.join(available)}): pip uninstall onnxruntime "
            "onnxruntime-gpu, which share a folder, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return None


@cache
def load_cuda() -> tuple[str, ...]:
    """Load CUDA and cuDNN; the loader of the system does not look where their wheels lie.

    Returns:
        Libraries that are nowhere.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # which is where ONNX Runtime says what failed
        ort.preload_dlls()
    return missing_libraries(said.getvalue())


def missing_libraries(said: str) -> tuple[str, ...]:
    """Names in what ``onnxruntime.preload_dlls`` printed, those of whole paths left out: it tries such a name again."""
    return tuple(re.findall(r"^Failed to load ([^/\s]+): ", said, re.MULTILINE))


def why_it_fell_back(missing: tuple[str, ...]) -> str:
    """What to do where a session was made without CUDA, though a GPU is there."""
    if missing:
        return f"{', '.join(missing)} cannot be loaded; pip install 'onnxruntime-gpu[cuda,cudnn]', or use --device cpu"
    return "what it printed above says why; update NVIDIA's driver if that is too old, or use --device cpu"

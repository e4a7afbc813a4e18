"""NVIDIA's two libraries: TensorRT, and TensorRT-RTX for GeForce and RTX cards. One interface under two names."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from spt_deploy.errors import RuntimeMissingError, UsageError

EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]
ENGINE_RUNTIMES: tuple[EngineRuntime, ...] = get_args(EngineRuntime)

_MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST: dict[str, tuple[int, int]] = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 5)}
_EXTRAS: dict[str, str] = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}


@dataclass(frozen=True)
class Library:
    """One of the two, installed.

    Attributes:
        name: as ``--runtime`` takes it.
        module: the Python module.
        version: ``11.4.0.106`` and the like.
        log: what the library reports to.
    """

    name: EngineRuntime
    module: Any
    version: str
    log: Any


@dataclass(frozen=True)
class Gpu:
    """A GPU, as engines know it.

    Attributes:
        name: NVIDIA's.
        capability: compute capability as ``sm_89``.
    """

    name: str
    capability: str


def current_gpu() -> Gpu | None:
    """The CUDA device in use; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"sm_{major}{minor}")


def has_gpu() -> bool:
    """Whether NVIDIA's driver finds a GPU; asks the driver itself, for importing torch takes a second."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False


def is_installed(name: EngineRuntime) -> bool:
    """Whether the library can be imported."""
    return importlib.util.find_spec(_MODULES[name]) is not None


@cache
def load_library(name: EngineRuntime) -> Library:
    """Import one of the two.

    Raises:
        UsageError: when it is neither.
        RuntimeMissingError: when it is not installed, is broken, or is too old.
    """
    if name not in ENGINE_RUNTIMES:
        raise UsageError(f"runtime is {name!r}; engines are those of {' and '.join(ENGINE_RUNTIMES)}")
    oldest = ".".join(map(str, _OLDEST[name]))
    remedy = f"pip install 'spt-deploy[{_EXTRAS[name]}]'"
    try:
        module = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise RuntimeMissingError(f"{name} is not installed ({error}); {remedy}") from error
    except (OSError, RuntimeError) as error:  # its libraries are missing, or are of another version
        raise RuntimeMissingError(f"{name} is installed and does not load ({error}); again: {remedy}") from error
    version = str(module.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST[name]:
        raise RuntimeMissingError(f"{name} {version} is too old, {oldest} is the oldest that is supported; {remedy}")
    return Library(name, module, version, _make_log(module))


def _make_log(trt: Any) -> Any:
    """A log that keeps errors, for our own sentences, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.listener: Callable[[str], None] | None = None

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(text.strip())
            if self.listener is not None:
                self.listener(text)

        def take_errors(self) -> str:
            """The errors since the last call, in one line; empty when there were none."""
            taken = "; ".join(dict.fromkeys(self.errors))
            self.errors.clear()
            return taken

    return Log()

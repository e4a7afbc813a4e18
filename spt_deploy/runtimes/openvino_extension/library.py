"""The shared library with our operators: compiled by the user's compiler for this processor, and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from spt_deploy.atomic import atomic_path, make_folder, output_error, write_text
from spt_deploy.engine.caches import cache_folder
from spt_deploy.errors import OutputError, RuntimeMissingError
from spt_deploy.telemetry import no_telemetry

SWITCH = "SPT_DEPLOY_EXTENSION"  # in the environment: "off" leaves it out
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-w")
_DEFINITIONS = ("-D_GLIBCXX_USE_CXX11_ABI=1", "-DOV_THREAD=OV_THREAD_TBB_ADAPTIVE")  # as OpenVINO itself was made
_LIBRARIES = ("libopenvino.so.*", "libopenvino_onnx_frontend.so.*", "libtbb.so.*")
_MOST_FILES = 4
_REMEMBERED = 24 * 3600.0  # seconds
_PATIENCE = 300.0  # seconds: a compiler that takes longer is taken for stuck
_LOCK = threading.Lock()
_REFUSALS: list[str] = []


def extension() -> Path | None:
    """The library, compiled now if it is not there yet; None where it cannot be had, and `why_not` says why."""
    with _LOCK:
        return _found()[0]


def why_not() -> str:
    """A sentence about what is missing; empty where the library is there."""
    with _LOCK:
        return next(iter(_REFUSALS), "") or _found()[1]


def refuse(said: str) -> None:
    """Remember what OpenVINO said when it was to load the library."""
    with _LOCK:
        _REFUSALS.append(f"OpenVINO cannot load them: {said}")


def try_again() -> None:
    """Forget why it could not be compiled."""
    with _LOCK, suppress(OSError):
        for note in _folder().glob("*.failed"):
            note.unlink()
        if not _found()[0]:
            _found.cache_clear()


@cache
def _found() -> tuple[Path | None, str]:
    try:
        return _library(), ""
    except (RuntimeMissingError, OutputError) as error:
        return None, str(error)


def _library() -> Path:
    """Where it lies.

    Raises:
        OutputError: when the cache folder cannot be written.
        RuntimeMissingError: when it is switched off, or cannot be compiled.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
        raise RuntimeMissingError(f"switched off by {SWITCH}")
    if sys.platform != "linux":
        raise RuntimeMissingError(f"the operators are made for Linux, and this is {sys.platform}")
    command = [_compiler(), *_FLAGS, _for_this_processor(), *_DEFINITIONS, *_openvino_parts()]
    path = _folder() / f"{_key(command)}.so"
    if not path.is_file():
        with _alone(path.with_suffix(".lock")):
            if not path.is_file():  # nor has another process compiled it while this one waited
                _make(path, command)
    with suppress(OSError):
        path.touch()  # it was of use: others are older now
    return path


def _folder() -> Path:
    return cache_folder() / "extension"


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    if named:
        raise RuntimeMissingError(f"CXX names {named!r}, which is not there")
    raise RuntimeMissingError("no C++ compiler is there; install one, such as g++")


def _for_this_processor() -> str:
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _openvino_parts() -> list[str]:
    """The compiler's arguments for sources, headers and libraries."""
    with no_telemetry():
        import openvino

    root = Path(openvino.__file__).parent
    if not (root / "include/openvino/core/op_extension.hpp").is_file():
        raise RuntimeMissingError(f"openvino {openvino.__version__} came without its headers; pip install openvino")
    libraries = []
    for pattern in _LIBRARIES:
        matches = sorted((root / "libs").glob(pattern))
        if not matches:
            raise RuntimeMissingError(f"openvino {openvino.__version__} came without {pattern.removesuffix('.*')}")
        libraries.append(str(matches[0]))
    source = Path(__file__).parent / "operators.cpp"
    # Whoever loads it has OpenVINO, but not yet each of its libraries.
    found_there = ["-Wl,--as-needed", f"-Wl,-rpath,{root / 'libs'}"]
    return ["-isystem", str(root / "include"), str(source), *found_there, *libraries]


def _key(command: list[str]) -> str:
    """Another source, compiler, OpenVINO or processor is another library."""
    with no_telemetry():
        import openvino
    known = hashlib.sha256(repr((command, openvino.__version__, platform.machine(), _processor())).encode())
    for source in sorted(Path(__file__).parent.glob("*.[ch]pp")):
        known.update(source.read_bytes())
    compiler = Path(command[0]).resolve()
    with suppress(OSError):
        known.update(f"{compiler} {compiler.stat().st_size} {compiler.stat().st_mtime_ns}".encode())
    return known.hexdigest()[:32]


def _processor() -> str:
    """What the processor is and can, by Linux: a home directory may be shared by machines."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return platform.processor()


def _make(path: Path, command: list[str]) -> None:
    """Compile it, or remember for a day why that failed, for every process would try again."""
    note = path.with_suffix(".failed")
    with suppress(OSError):
        if time.time() - note.stat().st_mtime < _REMEMBERED:
            raise RuntimeMissingError(note.read_text(encoding="utf-8"))
    try:
        with atomic_path(path) as temporary:
            _compile([*command, "-o", str(temporary)])
    except RuntimeMissingError as error:
        with suppress(OutputError):
            write_text(note, str(error))
        raise
    with suppress(OSError):
        note.unlink()
    _forget_old(path.parent)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds other processes up that come here at the same time.

    Raises:
        OutputError: when the file cannot be written.
    """
    import fcntl  # of Linux

    try:
        make_folder(path.parent)
        with path.open("w", encoding="utf-8") as file:
            with suppress(OSError):  # of a file system that knows no locks: both compile then
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
            with suppress(OSError):
                path.unlink()
    except OSError as error:
        raise output_error(path, error) from error


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False, text=True, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeMissingError(f"{Path(command[0]).name} did not compile the operators: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        said = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise RuntimeMissingError(f"{Path(command[0]).name} did not compile the operators: {said}")


def _forget_old(folder: Path) -> None:
    with suppress(OSError):
        kept = sorted(folder.glob("*.so"), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in kept[_MOST_FILES:]:
            old.unlink()

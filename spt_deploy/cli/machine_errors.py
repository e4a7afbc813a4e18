"""What a machine refuses any command, in one sentence that says what to do about it."""

from __future__ import annotations

import errno
import importlib.util

from spt_deploy.atomic import DISK_FULL, output_error
from spt_deploy.errors import InputError, OutputError, ResultError, RuntimeMissingError, SptError

_TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_NO_TEMPORARY = "No usable temporary directory found in "  # how tempfile begins

_WITH_TORCH = ("torch", "safetensors", "onnxscript")  # who lacks one of them on such a box will lack the others
_PACKAGES = {"PIL": "pillow", "google": "protobuf", "yaml": "pyyaml"}  # module -> what pip calls it


def machine_error(error: Exception) -> SptError | None:
    """The error to be shown in place of ``error``; None for one that is not the machine's."""
    if isinstance(error, MemoryError):
        return ResultError(
            "there is too little memory for this; smaller batches or images, or fewer processes, need less"
        )
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return ResultError(
            "the system starts no more threads; raise the limits on processes (ulimit -u, pids of a container)"
        )
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, ImportError) and error.name:
        return _of_a_package(error, error.name)
    return None


def _of_the_system(error: OSError) -> SptError | None:
    if error.errno in DISK_FULL:
        return output_error(error.filename or "a file", error)
    if isinstance(error, PermissionError) and error.filename is not None:
        return InputError(f"{error.filename} cannot be opened: {error.strerror}; get the right to, or name another")
    if error.errno in _TOO_MANY_FILES:
        return ResultError(f"{error.strerror}: the system opens no more of them; raise the limit (ulimit -n 4096)")
    if isinstance(error, FileNotFoundError) and (error.strerror or "").startswith(_NO_TEMPORARY):
        folders = (error.strerror or "").removeprefix(_NO_TEMPORARY).strip("[]").replace("'", "")
        return OutputError(f"no folder for temporary files can be written ({folders}); set TMPDIR to one that can")
    return None


def _of_a_package(error: ImportError, name: str) -> SptError | None:
    if name == "cv2":  # its wheel needs what servers and containers often lack
        return RuntimeMissingError(
            f"OpenCV cannot be loaded ({error}); on a machine without desktop libraries: "
            "pip install opencv-python-headless"
        )
    module = name.partition(".")[0]  # such as torch on a box that only runs ONNX files
    if not isinstance(error, ModuleNotFoundError) or importlib.util.find_spec(module) is not None:
        return None
    together = _WITH_TORCH if module in _WITH_TORCH else (module,)
    missing = [_PACKAGES.get(each, each) for each in together if importlib.util.find_spec(each) is None]
    *others, last = missing
    named = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
    return RuntimeMissingError(f"this needs {named} not installed; pip install {' '.join(missing)}")

"""A Python process of its own, in which Triton compiles its kernels instead of interpreting them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
# Triton 3.7 makes syntax trees that Python 3.13 warns of, and passes the warning on as an error in the kernel.
_OF_TRITON = "ignore:AnnAssign.__init__ missing:DeprecationWarning"


def run_python(*arguments: str) -> str:
    """Run ``python`` with the packages importable and all warnings but one as errors; its standard output.

    Raises:
        AssertionError: it failed; what it wrote is in the message.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folders = [_REPOSITORY, _REPOSITORY / "export", _REPOSITORY / "plugins"]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", _OF_TRITON, *arguments],
        cwd=_REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout

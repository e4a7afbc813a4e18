"""A Python process of its own, in which Triton compiles its kernels instead of interpreting them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]


def run_python(*arguments: str) -> str:
    """Run ``python`` with the packages importable and warnings as errors; its standard output.

    Raises:
        AssertionError: it failed; what it wrote is in the message.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folders = [_REPOSITORY, _REPOSITORY / "export", _REPOSITORY / "plugins"]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=_REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout

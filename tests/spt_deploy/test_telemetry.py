"""Runtimes that are imported here send nothing to their makers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Whoever asks for a name or a connection is named; a process that is forked for that would be seen nowhere else.
_WATCH = """
import multiprocessing.process, socket
def refuse(*arguments, **others):
    print("asks", arguments[:2], flush=True)
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = refuse
multiprocessing.process.BaseProcess.start = lambda self: print("starts", self, flush=True)
"""
_REPORT = """
import os, sys, threading
print(threading.active_count(), os.environ.get("ORT_DISABLE_TELEMETRY"), "openvino_telemetry" in sys.modules)
"""


def said_by(script: str, **environment: str) -> list[str]:
    """What a new process prints that runs ``script``; not on continuous integration, where OpenVINO's is silent."""
    taken = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    taken |= {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    run = subprocess.run(
        [sys.executable, "-c", _WATCH + script], capture_output=True, text=True, env=taken, check=True, timeout=120
    )
    return run.stdout.splitlines()


def test_openvino_by_itself_tries_to(tmp_path: Path) -> None:
    """Else the next test would prove nothing."""
    assert any("starts" in line for line in said_by("import openvino", HOME=str(tmp_path)))


@pytest.mark.parametrize(
    "module",
    [
        "spt_deploy.runtimes.openvino_runner",
        "spt_deploy.runtimes.openvino_attention",
        "spt_deploy.runtimes.onnxruntime_runner",
        "spt_deploy.runtimes.onnxruntime_cuda",
    ],
)
def test_a_runtime_imported_here_starts_nothing_asks_nobody_and_writes_nothing(tmp_path: Path, module: str) -> None:
    assert said_by(f"import {module}" + _REPORT, HOME=str(tmp_path)) == ["1 1 False"]
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_has_openvino(tmp_path: Path) -> None:
    script = "import pathlib\ndef home(*_): raise RuntimeError('Could not determine home directory.')\n"
    script += "pathlib.Path.home = home\nimport spt_deploy.runtimes.openvino_runner"
    assert said_by(script + _REPORT, HOME=str(tmp_path)) == ["1 1 False"]


def test_who_wants_onnx_runtimes_keeps_it() -> None:
    script = "import spt_deploy.runtimes.onnxruntime_runner" + _REPORT
    assert said_by(script, ORT_DISABLE_TELEMETRY="0") == ["1 0 False"]


def test_a_package_that_was_imported_before_stays() -> None:
    script = (
        "import sys, types\nsys.modules['openvino_telemetry'] = mine = types.ModuleType('openvino_telemetry')\n"
        "from spt_deploy.telemetry import no_telemetry\n"
        "with no_telemetry(): assert sys.modules['openvino_telemetry'] is mine\n"
        "assert sys.modules['openvino_telemetry'] is mine"
    )
    assert said_by(script) == []

"""The GPU tests and compute-sanitizer, each in a process of its own with a limit of time."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TESTS = ROOT / "tests" / "spt_plugins"
_FINISHED = re.compile(r"^\S+::\S.* (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)
_KEPT_OUTPUT = 4000  # characters of what a failing run wrote


@dataclass(frozen=True)
class SuiteReport:
    """What a run of tests came to.

    Attributes:
        what: was run.
        passed: tests that passed; ``failed`` and ``skipped`` likewise.
        failed: see ``passed``.
        skipped: see ``passed``.
        ended: whether it came to its end; False when its time was up.
        note: what was left out, or the end of the output where something failed.
    """

    what: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    ended: bool = True
    note: str = ""

    @property
    def is_good(self) -> bool:
        """Nothing failed; what time cut off is no failure, and is said."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def run_tests(seconds: float) -> SuiteReport:
    """The kernels' tests and the launch of what TensorRT is handed, through the CUDA driver."""
    files = [TESTS / "test_driver.py", *sorted(TESTS.glob("test_kernels_*.py"))]
    note = ""
    if importlib.util.find_spec("hypothesis") is None:
        files = [
            file
            for file in files
            if "import hypothesis" not in (text := file.read_text()) and "from hypothesis" not in text
        ]
        note = "left out for want of hypothesis: " + ", ".join(
            file.name for file in sorted(TESTS.glob("test_kernels_*.py")) if file not in files
        )
    # The project's own configuration names plugins of pytest that a GPU machine need not have.
    options = ["-v", "-c", os.devnull, f"--rootdir={ROOT}", "--import-mode=importlib", "-p", "no:cacheprovider"]
    return _run("GPU tests", [sys.executable, "-m", "pytest", *options, *map(str, files)], seconds, note)


def run_sanitizer(seconds: float) -> SuiteReport:
    """compute-sanitizer's memory check over the driver's tests; it is part of the CUDA toolkit."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return SuiteReport("compute-sanitizer", note="not on this machine")
    options = ["-v", "-c", os.devnull, f"--rootdir={ROOT}", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "1", sys.executable, "-m", "pytest", *options]
    return _run("compute-sanitizer", [*command, str(TESTS / "test_driver.py")], seconds, "")


def _run(what: str, command: Sequence[str], seconds: float, note: str) -> SuiteReport:
    paths = [str(ROOT), str(ROOT / "export"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
        output, code, ended = done.stdout, done.returncode, True
    except subprocess.TimeoutExpired as error:
        held = error.stdout or b""
        output, code, ended = held.decode(errors="replace") if isinstance(held, bytes) else held, 0, False
    return count(what, output, code, ended, note)


def count(what: str, output: str, code: int, ended: bool, note: str) -> SuiteReport:
    """Read pytest's verbose output.

    Args:
        what: was run.
        output: what it wrote, a line a test.
        code: exit code of the process.
        ended: whether it came to its end.
        note: to be kept.
    """
    verdicts = _FINISHED.findall(output)
    failed = verdicts.count("FAILED") + verdicts.count("ERROR")
    if code and not failed:
        failed = 1  # it broke before or beside the tests
    if failed:
        note = f"{note}\n{output[-_KEPT_OUTPUT:]}".strip()
    return SuiteReport(what, verdicts.count("PASSED"), failed, verdicts.count("SKIPPED"), ended, note)

"""The GPU tests and compute-sanitizer, each in a process of its own with a limit of time."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TESTS = ROOT / "tests" / "spt_plugins"
_FINISHED = re.compile(r"^\S+::\S.* (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)
_KEPT_OUTPUT = 4000  # characters of what a failing run wrote
_LAST_WORDS_S = 5.0  # for what a process that was stopped had written to be read
# The project's own configuration names plugins of pytest that a GPU machine need not have.
_PYTEST = (
    *(sys.executable, "-m", "pytest", "-v", "--color=no", "-c", os.devnull),
    *(f"--rootdir={ROOT}", "--import-mode=importlib", "-p", "no:cacheprovider"),
)


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
        """Something passed and nothing failed, or it could not be run here; what time cut off is said, not failed."""
        return not self.failed and (self.passed > 0 or self.ended)

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
    return _run("GPU tests", [*_PYTEST, *map(str, files)], seconds, note)


def run_sanitizer(seconds: float) -> SuiteReport:
    """compute-sanitizer's memory check over the driver's tests in float16; it is part of the CUDA toolkit."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return SuiteReport("compute-sanitizer", note="not on this machine")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "1", *_PYTEST]
    chosen = [str(TESTS / "test_driver.py"), "-k", "select_tokens or float16"]
    # With a cache of memory, what lies past the end of a tensor would be memory too.
    report = _run("compute-sanitizer", [*command, *chosen], seconds, "", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    if not report.ended and not report.failed and not report.passed:  # slow to start, which says nothing of kernels
        return SuiteReport(report.what, note=f"not begun after {seconds:.0f} s, and stopped")
    return report


def _run(
    what: str, command: Sequence[str], seconds: float, note: str, more: Mapping[str, str] | None = None
) -> SuiteReport:
    paths = [str(ROOT), str(ROOT / "export"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)} | dict(more or {})
    # A session of its own, so that what it has started ends with it and does not disturb what is timed next.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    ended = True
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        ended = False
        _end(process)
        try:
            output, _ = process.communicate(timeout=_LAST_WORDS_S)
        except subprocess.TimeoutExpired as error:  # something that left the session still holds the pipe
            held = error.output or b""
            output = held.decode(errors="replace") if isinstance(held, bytes) else held
    except BaseException:
        _end(process)
        raise
    return count(what, output, process.returncode if ended else 0, ended, note)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


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

"""The GPU check: it refuses without a GPU, finds what is wrong, and every line of it but the clock runs on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from spt_deploy.config import BackboneConfig
from spt_deploy.workflows.gpu import check, suite
from spt_deploy.workflows.gpu.check import Part, gpu_check
from spt_deploy.workflows.gpu.clock import Ceilings
from spt_deploy.workflows.gpu.kernels import LARGEST_ERROR, RATIOS, KernelError, KernelTime
from spt_deploy.workflows.gpu.models import ModelError, Speedup, _compiled, masks_for
from spt_deploy.workflows.gpu.report import GpuReport
from spt_deploy.workflows.gpu.suite import SuiteReport, count

ROOT = Path(__file__).resolve().parents[4]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / name) for name in (".", "export", "plugins"))
    command = [sys.executable, "-m", "spt_deploy.workflows.gpu", "--out", str(folder), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_it_is_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "needs an NVIDIA GPU" in done.stderr
    assert not list(tmp_path.iterdir())


def test_at_toy_sizes_it_runs_on_a_cpu_and_says_that_this_says_nothing_of_speed(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cpu", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "says nothing of speed" in done.stdout
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert report["passed"] is True
    assert report["cut"] == []
    assert {each["operator"] for each in report["kernel_errors"]} == {
        each["operator"] for each in report["kernel_times"]
    }
    assert all(0 <= each["kernel"] <= LARGEST_ERROR for each in report["kernel_errors"])
    assert {each["ratio"] for each in report["speedups"]} == set(RATIOS)


def test_what_time_does_not_suffice_for_is_said(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cpu", "--quick", "--seconds", "0")
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert done.returncode == 0
    assert report["kernel_times"] == []
    assert all("not run" in line for line in report["cut"])
    assert report["cut"][0] in done.stdout


def test_as_json_it_prints_what_the_file_holds_and_nothing_else(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cpu", "--seconds", "0", "--json")
    assert done.stdout == (tmp_path / "gpu-report.json").read_text()
    assert json.loads(done.stdout)["passed"] is True


def test_a_machine_without_hypothesis_leaves_out_one_property_and_no_kernel() -> None:
    needs = [file.name for file in suite.TESTS.glob("test_kernels_*.py") if "hypothesis import" in file.read_text()]
    assert needs == ["test_kernels_select_tokens_any_size.py"]


def check_of(monkeypatch: pytest.MonkeyPatch, *parts: Part, seconds: float = 60.0) -> tuple[GpuReport, list[str]]:
    """The report of a check of these parts, and what was cut when each of them had ended."""
    monkeypatch.setattr(check, "_parts", lambda *_: iter(parts))
    heard: list[str] = []
    return gpu_check("cpu", seconds, on_part=lambda found: heard.append("; ".join(found.cut))), heard


def fails_with(error: Exception) -> Part:
    def run() -> None:
        raise error

    return Part("a part", 1, run)


def test_a_part_that_breaks_costs_the_others_nothing_and_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    report, heard = check_of(
        monkeypatch, fails_with(ValueError("a bad tile")), Part("another", 1, lambda: done.append(1))
    )
    assert done == [1]
    assert report.cut == heard[:1] == ["a part: broke with ValueError: a bad tile"]
    assert not report.passed


def test_a_gpu_too_small_for_a_part_has_not_failed_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = check_of(monkeypatch, fails_with(torch.cuda.OutOfMemoryError("no room")))
    assert report.cut == ["a part: the GPU's memory does not suffice"]
    assert report.passed


def test_a_kind_of_part_that_was_slower_than_thought_is_not_begun_late(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Part("slow", 0.001, lambda: time.sleep(0.1), "kind")
    report, _ = check_of(monkeypatch, slow, Part("alike", 0.05, lambda: None, "kind"), seconds=1.0)
    assert len(report.cut) == 1
    assert report.cut[0].startswith("alike: not run")


def a_report() -> GpuReport:
    return GpuReport(
        {"device": "a GPU"},
        [SuiteReport("GPU tests", passed=3)],
        Ceilings(3e12, 8e14),
        [KernelError("PackedQKV", 4e-4, 5e-4)],
        [ModelError("spt_t", (1e-3, 1e-3, 2e-3, 3e-3))],
        [KernelTime("PackedQKV", "spt_t", 3, (800, 1280), 8, 0.25, 2e-5, 1e-5)],
        [Speedup("spt_t against swin_t", (800, 1280), 8, 0.25, 10.0, 8.0, 1.25, 1.239, "compiled, CUDA graph")],
    )


def test_a_report_shows_time_over_floor_and_share_of_the_ideal() -> None:
    text = StringIO()
    a_report().print(Console(file=text, width=160))
    assert "20.0 (2.00)" in text.getvalue()
    assert "101%" in text.getvalue()
    assert a_report().to_dict()["kernel_times"][0]["over_floor"] == pytest.approx(2.0)
    json.dumps(a_report().to_dict(), allow_nan=False)
    assert a_report().passed


@pytest.mark.parametrize("cached", [False, True])
def test_a_time_with_inputs_in_the_cache_is_marked(cached: bool) -> None:
    text = StringIO()
    replace(a_report(), kernel_times=[replace(a_report().kernel_times[0], cached=cached)]).print(
        Console(file=text, width=160)
    )
    assert ("(2.00*)" in text.getvalue()) == ("came from the cache" in text.getvalue()) == cached


@pytest.mark.parametrize(
    "wrong",
    [
        {"kernel_errors": [KernelError("PackedQKV", 3e-3, 5e-4)]},
        {"kernel_errors": [KernelError("PackedQKV", float("nan"), 5e-4)]},
        {"kernel_errors": [KernelError("SelectTokens", 1e-9, 0.0)]},  # lists are equal or wrong
        {"model_errors": [ModelError("spt_t", (1e-3, float("nan"), 1e-3, 1e-3))]},
        {"suites": [SuiteReport("GPU tests", passed=100, failed=1)]},
        {"suites": [SuiteReport("GPU tests", ended=False)]},  # its time was up before a single test had passed
        {"broken": True},
    ],
)
def test_anything_wrong_fails_the_check(wrong: dict[str, object]) -> None:
    assert not replace(a_report(), **wrong).passed  # type: ignore[arg-type]


OUTPUT = """
tests/spt_plugins/test_driver.py::test_a PASSED                      [ 25%]
tests/spt_plugins/test_driver.py::test_b[case 1-x] FAILED            [ 50%]
tests/spt_plugins/test_driver.py::test_c SKIPPED (is for the GPU)    [ 75%]
tests/spt_plugins/test_driver.py::test_d PASSED                      [100%]
E   AssertionError: off by one
"""


def test_verdicts_of_tests_are_counted_and_a_failure_is_quoted() -> None:
    found = count("GPU tests", OUTPUT, 1, True, "")
    assert (found.passed, found.failed, found.skipped) == (2, 1, 1)
    assert "off by one" in found.note
    assert not found.is_good


def test_a_run_that_breaks_before_any_test_has_failed_and_one_whose_time_is_up_has_not() -> None:
    assert count("GPU tests", "ImportError: no torch", 2, True, "").failed == 1
    assert count("GPU tests", OUTPUT.replace("FAILED", "PASSED"), 0, False, "").is_good


ENDLESS = """
import subprocess, sys, time
print("tests/a.py::test_a PASSED", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_run_whose_time_is_up_ends_with_all_it_started_and_keeps_what_it_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    counted = suite.count
    monkeypatch.setattr(
        suite, "count", lambda what, output, *rest: (heard.append(output), counted(what, output, *rest))[1]
    )
    begun = time.monotonic()
    found = suite._run("endless", [sys.executable, "-c", ENDLESS], 2.0, "")
    assert time.monotonic() - begun < 20
    assert (found.passed, found.failed, found.ended) == (1, 0, False)
    stat = Path("/proc", heard[0].split("child ")[1].split()[0], "stat")
    for _ in range(100):  # whoever inherits it has yet to see it go
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("what it had started is still running")


@pytest.mark.parametrize(
    ("works", "how"),
    [
        ((True, False), "compiled"),
        ((False,), "compiled in pieces (RuntimeError)"),
        ((), "not compiled (RuntimeError)"),
    ],
)
def test_how_a_module_was_compiled_is_said(monkeypatch: pytest.MonkeyPatch, works: tuple[bool, ...], how: str) -> None:
    def compile_module(module: nn.Module, *, dynamic: bool, fullgraph: bool) -> nn.Module:
        if fullgraph not in works:
            raise RuntimeError("a graph break")
        return module

    monkeypatch.setattr(torch, "compile", compile_module)
    module, inputs = nn.Identity(), (torch.zeros(3),)
    call, said = _compiled(module, inputs, True)
    assert said == how
    assert call(*inputs) is inputs[0]


@pytest.mark.parametrize("ratio", RATIOS)
def test_forced_masks_keep_the_same_share_of_every_image(ratio: float) -> None:
    config = BackboneConfig.from_name("spt_t")
    masks = masks_for(config, (800, 1280), 2, ratio)
    assert len(masks) == len(config.spa_blocks)
    assert masks[0].shape == (2, 50, 80)
    for mask in masks:
        kept = mask.flatten(1).sum(1)
        assert (kept == max(1, round(ratio * mask[0].numel()))).all()

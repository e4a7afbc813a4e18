"""The GPU check: it refuses without a GPU, finds what is wrong, and every line of it but the clock runs on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from spt_deploy.config import BackboneConfig
from spt_deploy.workflows.gpu.clock import Ceilings
from spt_deploy.workflows.gpu.kernels import LARGEST_ERROR, RATIOS, KernelError, KernelTime
from spt_deploy.workflows.gpu.models import ModelError, Speedup, masks_for
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"kernel_errors": [KernelError("PackedQKV", 3e-3, 5e-4)]},
        {"kernel_errors": [KernelError("PackedQKV", float("nan"), 5e-4)]},
        {"kernel_errors": [KernelError("SelectTokens", 1e-9, 0.0)]},  # lists are equal or wrong
        {"model_errors": [ModelError("spt_t", (1e-3, float("nan"), 1e-3, 1e-3))]},
        {"suites": [SuiteReport("GPU tests", passed=100, failed=1)]},
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


@pytest.mark.parametrize("ratio", RATIOS)
def test_forced_masks_keep_the_same_share_of_every_image(ratio: float) -> None:
    config = BackboneConfig.from_name("spt_t")
    masks = masks_for(config, (800, 1280), 2, ratio)
    assert len(masks) == len(config.spa_blocks)
    assert masks[0].shape == (2, 50, 80)
    for mask in masks:
        kept = mask.flatten(1).sum(1)
        assert (kept == max(1, round(ratio * mask[0].numel()))).all()

"""Doctor says what runs here because it ran it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.cli.doctor import _print
from spt_deploy.image_input import Images
from spt_deploy.runtimes.base import Arrays
from spt_deploy.runtimes.openvino_runner import OpenVinoRunner, precisions_here
from spt_deploy.workflows.doctor import Diagnosis, PackageCheck, RuntimeCheck, _check, doctor
from spt_deploy.workflows.doctor_trial import Trial, trial_without_torch
from tests.spt_deploy.test_light_import import run_without

INSTALLED = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return doctor()


def verdicts(found: Diagnosis) -> dict[tuple[str, str], str]:
    return {(check.runtime, check.device): check.verdict for check in found.checks}


def test_what_is_installed_works_on_the_cpu_and_the_rest_has_a_remedy(found: Diagnosis) -> None:
    seen = verdicts(found)
    for runtime in ("torch", *INSTALLED):
        assert seen[runtime, "cpu"] == "works"
    for check in found.checks:
        assert check.detail
        if check.verdict == "missing":
            assert check.version is None
            assert "pip install" in check.detail
    assert found.can_infer
    assert found.is_sound


def test_the_command_ends_with_0_and_one_json_document() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["can_infer"] is True
    assert {check["runtime"] for check in document["checks"]} >= {"torch", "onnxruntime", "openvino", "tensorrt"}


def test_every_package_of_the_extra_that_trains_is_looked_for(found: Diagnosis) -> None:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    extra = project["project"]["optional-dependencies"]["train"]
    assert [package.package for package in found.packages] == [line.split(">=")[0] for line in extra]
    for package in found.packages:
        assert package.version == importlib.metadata.version(package.package)


def test_a_package_that_is_missing_is_shown_with_what_needs_it_and_what_installs_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages = (PackageCheck("matplotlib", None, "curves"), PackageCheck("pillow", "12.0", "sizes"))
    _print(Diagnosis(None, (), packages))
    missing, there = capsys.readouterr().out.splitlines()[-3:-1]
    assert [cell.strip() for cell in missing.split("│")[1:3]] == ["matplotlib", ""]
    assert "missing" in missing
    assert "curves; pip install matplotlib" in missing
    assert "12.0" in there
    assert "pip install" not in there


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_runtime_that_is_installed_and_does_not_load_fails_and_says_why(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("raise ImportError('libcudart is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [
        n for n in sys.modules if n.split(".")[0] == "onnxruntime" or n.startswith("spt_deploy.runtimes.onnxruntime_")
    ]:
        monkeypatch.delitem(sys.modules, name)
    trial = Trial(np.zeros((1, 3, 64, 64), np.float32), {}, "nobody", None, tmp_path / "model.onnx")
    found = _check("onnxruntime", device, trial)
    assert found.verdict == "fails"
    assert "libcudart is missing" in found.detail or "onnxruntime" in found.detail


def test_a_runtime_that_says_something_else_is_wrong_and_the_exit_code_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    run = OpenVinoRunner._run

    def off(self: OpenVinoRunner, images: Images, threshold: float | None) -> Arrays:
        return {name: array + np.float32(0.01) for name, array in run(self, images, threshold).items()}  # type: ignore[operator]

    monkeypatch.setattr(OpenVinoRunner, "_run", off)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "openvino on cpu is installed and does not work" in result.stderr
    assert "differs from PyTorch" in result.stdout


def test_a_number_that_is_none_is_wrong_whichever_output_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    run = OpenVinoRunner._run

    def off(self: OpenVinoRunner, images: Images, threshold: float | None) -> Arrays:
        outputs = run(self, images, threshold)
        last = list(outputs)[-1]
        return outputs | {last: np.full_like(outputs[last], np.nan)}

    monkeypatch.setattr(OpenVinoRunner, "_run", off)
    assert verdicts(doctor())["openvino", "cpu"] == "wrong"


@pytest.mark.skipif("openvino" not in INSTALLED, reason="an extra")
def test_it_says_whether_openvino_has_operators_of_ours(found: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    from spt_deploy.runtimes.openvino_extension import library

    [detail] = [check.detail for check in found.checks if check.runtime == "openvino"]
    assert detail.endswith("; operators of its own are compiled" if shutil.which("c++") else "install one, such as g++")
    monkeypatch.setenv(library.SWITCH, "off")
    monkeypatch.setattr(library, "_found", library._found.__wrapped__)
    monkeypatch.setattr(library, "try_again", lambda: None)
    [check] = [check for check in doctor().checks if check.runtime == "openvino"]
    assert check.verdict == "works"
    assert check.detail.endswith("; selection and packing in standard operators: switched off by SPT_DEPLOY_EXTENSION")


def test_every_precision_of_openvino_is_tried(found: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    [detail] = [check.detail for check in found.checks if check.runtime == "openvino"]
    for precision in precisions_here()[1:]:
        assert f"; with --precision {precision}: largest difference" in detail
    if "bf16" not in precisions_here():
        pytest.skip("this processor does not compute in bfloat16")
    run = OpenVinoRunner._run

    def off(self: OpenVinoRunner, images: Images, threshold: float | None) -> Arrays:
        outputs = run(self, images, threshold)
        return outputs if self.computes_in is None else {name: value + 1 for name, value in outputs.items()}  # type: ignore[operator]

    monkeypatch.setattr(OpenVinoRunner, "_run", off)
    [check] = [check for check in doctor().checks if check.runtime == "openvino"]
    assert check.verdict == "wrong"
    assert "; with --precision bf16: differs from PyTorch" in check.detail


def test_a_runtime_that_cannot_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    assert verdicts(doctor())["openvino", "cpu"] == "missing"


def test_where_nothing_works_nothing_can_infer() -> None:
    bad = RuntimeCheck("torch", "cpu", "2.13", "fails", "no")
    assert not Diagnosis(None, (bad,)).can_infer
    assert not Diagnosis(None, (bad,)).is_sound


def test_without_pytorch_a_small_graph_is_tried_and_numpy_says_what_is_right() -> None:
    code = "from spt_deploy.cli import main; main(prog_name='spt-deploy')"
    done = run_without(("torch", "safetensors", "onnxscript"), code, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    checks = {(c["runtime"], c["device"]): c for c in json.loads(done.stdout)["checks"]}
    assert checks["torch", "cpu"]["verdict"] == "missing"
    for runtime in INSTALLED:
        assert checks[runtime, "cpu"]["verdict"] == "works"
        assert checks[runtime, "cpu"]["detail"].startswith("equal to NumPy")
    for runtime in ("tensorrt", "tensorrt-rtx"):
        assert checks[runtime, "cuda"]["verdict"] == "missing"
        assert "pip install" in checks[runtime, "cuda"]["detail"]


def test_what_runs_onnx_files_is_installed_by_its_own_name_for_an_extra_brings_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    missing = ("onnxruntime", "openvino", "torch", "yaml")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else there(name))
    found = doctor()
    remedies = {check.runtime: check.detail for check in found.checks}
    assert remedies["onnxruntime"] == "pip install onnxruntime, or 'onnxruntime-gpu[cuda,cudnn]' for CUDA"
    assert remedies["openvino"] == "pip install openvino"
    _print(found)
    assert "; pip install pyyaml" in capsys.readouterr().out


def test_the_graph_of_standard_operators_tells_a_runtime_that_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_without_torch(tmp_path)
    assert _check("openvino", "cpu", trial).verdict == "works"
    off = replace(trial, expected={"logits": trial.expected["logits"] + 0.01})
    assert _check("openvino", "cpu", off).verdict == "wrong"

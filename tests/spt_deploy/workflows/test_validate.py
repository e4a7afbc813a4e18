"""What ``validate`` compares, and what it refuses before it compares anything."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from spt_deploy.digest import sha256_of
from spt_deploy.errors import ArtefactError, InputError, RuntimeMissingError, SourceError, UsageError
from spt_deploy.facts import METADATA_KEY
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.base import Runner
from spt_deploy.runtimes.onnx_file import read_facts
from spt_deploy.workflows.validate import validate
from spt_export.precision import to_mixed_precision
from tests.exported import make_exported

SIZE = (64, 64)


def test_a_folder_without_images_is_said_before_any_artefact_is_opened(tmp_path: Path) -> None:
    artefacts = [tmp_path / "nowhere.pt", tmp_path / "nowhere.onnx"]
    with pytest.raises(InputError, match=r"there is no folder .*nope; give a folder of images with --data"):
        validate(artefacts, data=tmp_path / "nope")
    (tmp_path / "street.mp4").touch()
    with pytest.raises(InputError, match=r"street\.mp4 is a file and no folder; give a folder of images with --data"):
        validate(artefacts, data=tmp_path / "street.mp4")
    with pytest.raises(SourceError, match="has no images"):
        validate(artefacts, data=tmp_path)


def test_nothing_is_opened_where_something_can_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_exported(tmp_path, SIZE)
    monkeypatch.setattr(Runner, "__enter__", lambda self: pytest.fail(f"{self.name} was opened"))
    with pytest.raises(UsageError, match="has nothing to be compared with"):
        validate([made.onnx], runtimes=["onnxruntime"])
    with pytest.raises(InputError, match="nowhere"):
        validate([made.checkpoint, made.onnx], labels=tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(ModuleNotFoundError, match="polygraphy"):
        validate([made.checkpoint, made.onnx])


def test_a_file_of_another_packing_is_held_against_the_file_that_the_checkpoint_runs_as(tmp_path: Path) -> None:
    first = make_exported(tmp_path / "first", SIZE, packing="per-image")
    other = make_exported(tmp_path / "other", SIZE, packing="batch")
    named = other.onnx.rename(tmp_path / "b.onnx")
    sentence = (
        r"b\.onnx .* has another packing than the reference model\.pt, which runs as model\.onnx does "
        r"\(batch against per-image\); compare artefacts .* at one size and packing"
    )
    with pytest.raises(InputError, match=sentence):
        validate([first.checkpoint, first.onnx, named], runtimes=["onnxruntime"])
    with pytest.raises(InputError, match=r"b\.onnx .* has another packing than the reference model\.onnx \(batch"):
        validate([first.onnx, named], runtimes=["onnxruntime"])


def test_without_a_runtime_for_it_a_file_is_refused_and_what_is_left_alone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_exported(tmp_path, SIZE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RuntimeMissingError, match=r"no runtime that takes .*model\.onnx is installed here; pip install"
    ):
        validate([made.onnx])
    with pytest.raises(UsageError, match=r"model\.pt alone in torch has nothing to be compared with; install another"):
        validate([made.onnx, made.checkpoint])


def test_one_file_in_the_one_runtime_that_is_there_is_told_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_exported(tmp_path, SIZE)
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    with pytest.raises(UsageError, match=r"alone in openvino .*another runtime \(pip install onnxruntime\)"):
        validate([made.onnx])
    with pytest.raises(UsageError, match=r"alone in torch .* compared with; name a second artefact, or give a data"):
        validate([made.checkpoint])


def test_a_runtime_that_is_not_there_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_exported(tmp_path, SIZE)
    there, said = importlib.util.find_spec, list[str]()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    validate([made.onnx, made.onnx], status=said.append)
    assert said.count("onnxruntime is not installed and was left out (pip install onnxruntime)") == 1


def test_files_of_another_threshold_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """Element by element they would only be said to differ."""
    low = make_exported(tmp_path / "low", SIZE, threshold=0.2)
    high = make_exported(tmp_path / "high", SIZE, threshold=0.8).onnx.rename(tmp_path / "high.onnx")
    sentence = (
        r"high\.onnx .* selects by another threshold than the reference model\.pt, which runs as model\.onnx does "
        r"\(0\.8 against 0\.2\), .* exported at one --threshold, or with --runtime-threshold and --threshold here"
    )
    with pytest.raises(InputError, match=sentence):
        validate([low.checkpoint, low.onnx, high], runtimes=["onnxruntime"])


def test_the_newest_file_is_held_against_the_checkpoint_that_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_exported(tmp_path, SIZE)
    proto = onnx.load(made.onnx)
    facts = replace(read_facts(made.onnx), checkpoint_sha256=sha256_of(made.checkpoint))
    onnx.helper.set_model_props(proto, {METADATA_KEY: facts.to_json()})
    onnx.save(proto, made.onnx)
    made.onnx.rename(tmp_path / "dial.onnx")
    made.checkpoint.rename(tmp_path / "best.pt")
    make_exported(tmp_path / "later", SIZE, seed=1).checkpoint.rename(tmp_path / "last.pt")
    (tmp_path / "later/model.onnx").unlink()
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    report = validate(runtimes=["onnxruntime"], status=said.append)
    assert report.passed
    assert [pair.reference for pair in report.pairs] == ["best.pt (torch cpu fp32)"]
    assert "taking best.pt as the reference: the checkpoint beside it" in said
    assert set(report.notes) <= set(said)


def test_a_file_whose_checkpoint_is_not_there_is_said_to_be_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_exported(tmp_path, SIZE).checkpoint.unlink()
    monkeypatch.chdir(tmp_path)
    report = validate(precisions=["fp32"])
    assert any("model.onnx is compared with itself" in note for note in report.notes)


def test_a_file_in_bfloat16_runs_where_it_can(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    made = make_exported(tmp_path, SIZE, depths=(1, 1, 1, 1))
    narrow = tmp_path / "model.bf16.onnx"
    onnx.save(to_mixed_precision(onnx.load(made.onnx), "bf16").model, narrow)
    report = validate([made.checkpoint, narrow])
    assert [pair.candidate for pair in report.pairs] == ["model.bf16.onnx (openvino cpu bf16)"]
    assert any("onnxruntime was left out of model.bf16.onnx" in note for note in report.notes)
    sentence = r"model\.bf16\.onnx is in bf16, .* run it with --runtime openvino"
    with pytest.raises(ArtefactError, match=sentence), open_runner(narrow, "onnxruntime", "cpu"):
        pass

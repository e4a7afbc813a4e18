"""What ``validate`` refuses before it compares anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from spt_deploy.errors import InputError, SourceError
from spt_deploy.workflows.validate import validate
from tests.exported import make_exported

SIZE = (64, 64)


def test_a_folder_without_images_is_said_before_any_artefact_is_opened(tmp_path: Path) -> None:
    artefacts = [tmp_path / "nowhere.pt", tmp_path / "nowhere.onnx"]
    with pytest.raises(InputError, match=r"there is no folder .*nope; give a folder of images with --data"):
        validate(artefacts, data=tmp_path / "nope")
    with pytest.raises(SourceError, match="has no images"):
        validate(artefacts, data=tmp_path)


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

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import Tensor

from spt_deploy.cli import main
from spt_deploy.errors import ArtefactError, InputError, UsageError
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.workflows.convert import convert, read_class_names
from tests.spt_deploy.model.models import CLASSES, images
from tests.spt_deploy.model.swin_schemes import SCHEMES, hugging_face_swin, written_as
from tests.tolerances import MODEL, assert_close

if TYPE_CHECKING:
    from transformers import SwinForImageClassification

HUGGING_FACE_LEAST = (200, 224)  # pixels: its stage 4 fails on fewer than seven tokens a side


@pytest.fixture(scope="module")
def theirs() -> SwinForImageClassification:
    return hugging_face_swin()


@pytest.fixture
def weights(tmp_path: Path, theirs: SwinForImageClassification) -> Path:
    """swin_micro with a classifier of five classes, under official names."""
    path = tmp_path / "swin_micro.pth"
    torch.save({"model": written_as("official", theirs)}, path)
    return path


def write(state: dict[str, Tensor], path: Path, nested: bool) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3} if nested else state, path)


@torch.no_grad()
def logits_of(checkpoint: Path, batch: Tensor) -> Tensor:
    return load_checkpoint(checkpoint).build()(batch).task["logits"]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_a_file_of_any_scheme_and_kind_becomes_the_same_model(
    tmp_path: Path, theirs: SwinForImageClassification, scheme: str, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    write(written_as(scheme, theirs), path, nested=scheme == "official")
    made = convert(path, model="swin_micro", output=tmp_path / "ckpt.pt")
    batch = images(1, *HUGGING_FACE_LEAST)
    actual = logits_of(made.path, batch)
    assert_close(actual, theirs(batch).logits, MODEL)
    reference = tmp_path / "reference.pt"
    write(written_as("hugging face, in memory", theirs), reference, nested=False)
    same = convert(reference, model="swin_micro", output=tmp_path / "same.safetensors")
    assert torch.equal(actual, logits_of(same.path, batch))


@torch.no_grad()
def test_what_this_transformers_saves_becomes_the_same_model_with_its_class_names(
    tmp_path: Path, theirs: SwinForImageClassification
) -> None:
    theirs.save_pretrained(tmp_path)
    made = convert(tmp_path / "model.safetensors", model="swin_micro", output=tmp_path / "ckpt.pt")
    assert made.config.class_names == CLASSES
    batch = images(1, *HUGGING_FACE_LEAST)
    assert_close(logits_of(made.path, batch), theirs(batch).logits, MODEL)


def test_repeated_hugging_face_names_are_told_apart_by_number(tmp_path: Path, weights: Path) -> None:
    labels = ["crane", "owl", "crane", "boat", "tree"]
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(labels))}))
    names = convert(weights, output=tmp_path / "ckpt.pt").config.class_names
    assert names == ("crane (0)", "owl", "crane (2)", "boat", "tree")


@pytest.mark.parametrize("content", ["", "{}", '{"id2label": {"0": "a"}}', '{"id2label": ["a"]}', "[]"])
def test_a_config_that_names_other_classes_is_left_alone(tmp_path: Path, weights: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    names = convert(weights, output=tmp_path / "ckpt.pt").config.class_names
    assert names == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_the_default_is_the_spt_of_the_weights_size_with_fresh_gates(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = convert(weights, image_size=(96, 64))
    assert made.path == Path("swin_micro-spt_micro.pt")
    assert made.config.backbone.name == "spt_micro"
    checkpoint = load_checkpoint(made.path)
    assert checkpoint.facts.preprocessing.size == (96, 64)
    assert all(
        torch.equal(tensor, torch.full_like(tensor, 4.0))
        for name, tensor in checkpoint.weights.items()
        if name.endswith("gate.bias")
    )
    # Near Swin at the start: everything is kept at a gate of 0.98.
    with torch.no_grad():
        output = checkpoint.build()(images(1, 96, 64)).named()
    assert (output["select_ratio"] == 1).all()


def test_what_starts_fresh_starts_the_same_each_time_and_leaves_the_random_state_alone(
    tmp_path: Path, weights: Path
) -> None:
    state = torch.get_rng_state()
    paths = [convert(weights, output=tmp_path / name, class_names=["a"]).path for name in ("1.pt", "2.pt")]
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (load_checkpoint(path).weights for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_ours_keeps_its_class_names(tmp_path: Path, weights: Path) -> None:
    path = convert(weights, output=tmp_path / "a.pt", class_names=CLASSES).path
    again = convert(path, model="swin_micro", output=tmp_path / "b.pt")
    assert again.config.class_names == CLASSES
    assert not again.report.has_fresh_head


def test_given_classes_of_another_number_get_a_fresh_head(tmp_path: Path, weights: Path) -> None:
    made = convert(weights, output=tmp_path / "ckpt.pt", class_names=["cat", "dog"], task="multilabel")
    assert made.report.has_fresh_head
    assert {m.name for m in made.report.other_shape} == {"head.fc.weight", "head.fc.bias"}
    assert made.config.class_names == ("cat", "dog")
    assert made.config.task == "multilabel"


def test_a_file_without_classifier_needs_class_names(tmp_path: Path, theirs: SwinForImageClassification) -> None:
    path = tmp_path / "headless.safetensors"
    state = written_as("timm", theirs)
    write({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, path, nested=False)
    with pytest.raises(UsageError, match=r"no classifier .* --class-names"):
        convert(path)
    made = convert(path, output=tmp_path / "ckpt.pt", class_names=["cat", "dog"])
    assert made.report.has_fresh_head
    assert made.report.missing == ("head.fc.weight", "head.fc.bias")


def test_a_detector_takes_the_backbone_and_letterboxes(tmp_path: Path, weights: Path) -> None:
    made = convert(weights, output=tmp_path / "ckpt.pt", task="detect", class_names=["cat"], image_size=(64, 96))
    checkpoint = load_checkpoint(made.path)
    assert checkpoint.facts.preprocessing.mode == "letterbox"
    assert set(made.report.unexpected) == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert checkpoint.build()(images(1, 64, 96)).task["boxes"].shape[2] == 4


def test_the_weights_are_never_replaced(tmp_path: Path, weights: Path) -> None:
    before = weights.read_bytes()
    link = tmp_path / "link.pt"
    link.symlink_to(weights)
    for output in (weights, link):
        with pytest.raises(UsageError, match="would replace the weights"):
            convert(weights, output=output)
    assert weights.read_bytes() == before


@pytest.mark.parametrize("model", ["spt_t", "swin_b"])
def test_weights_of_another_size_write_nothing(tmp_path: Path, weights: Path, model: str) -> None:
    output = tmp_path / "out" / "ckpt.pt"
    with pytest.raises(ArtefactError, match=f"look like swin_micro .* not {model}"):
        convert(weights, model=model, output=output)
    assert not output.parent.exists()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_that_is_no_number_is_named_as_the_file_names_it(
    tmp_path: Path, theirs: SwinForImageClassification, scheme: str
) -> None:
    state = written_as(scheme, theirs)
    key = next(key for key in state if re.search(r"(qkv|key|k_proj)\.bias$", key))
    state[key] = torch.full_like(state[key], torch.nan)
    path, output = tmp_path / "bad.pth", tmp_path / "out.pt"
    torch.save(state, path)
    with pytest.raises(ArtefactError, match=rf"bad\.pth: .*{re.escape(key)}.* no finite numbers"):
        convert(path, output=output)
    assert not output.exists()


def test_the_file_in_a_folder_is_named(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    with pytest.raises(ArtefactError, match="hub is a folder; give the file of weights in it"):
        convert(folder, output=tmp_path / "out.pt")
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtefactError, match=r"hub is a folder; give the file in it: .*hub/pytorch_model\.bin"):
        convert(folder, output=tmp_path / "out.pt")
    assert convert(folder / "pytorch_model.bin", output=tmp_path / "out.pt").path.is_file()


def test_class_names_are_the_lines_of_a_file_that_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("hot dog\n\n  Äpfel \n", encoding="utf-8")
    assert read_class_names(path) == ("hot dog", "Äpfel")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_a_file_without_class_names_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"names\.txt .*one.* a line"):
        read_class_names(path)
    with pytest.raises(InputError, match=r"none\.txt .*one name a line"):
        read_class_names(tmp_path / "none.txt")


def test_the_command_says_what_was_not_in_the_file(tmp_path: Path, weights: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    arguments = ["convert", str(weights), "-o", str(tmp_path / "ckpt.pt"), "--class-names", str(names)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'ckpt.pt'}: spt_micro, classify, 2 classes\n"
    assert "official key names; 119 of 131 weights" in result.stderr
    assert "10 weights of gates start fresh" in result.stderr
    assert "head.fc.weight (file 5 x 256, model 2 x 256)" in result.stderr
    assert "the head starts fresh" in result.stderr


def test_the_command_prints_one_json_document(tmp_path: Path, weights: Path) -> None:
    arguments = ["convert", str(weights), "--model", "spt_micro", "-o", str(tmp_path / "ckpt.pt"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["model"], report["task"], report["classes"], report["fresh_head"]) == (
        "spt_micro",
        "classify",
        5,
        False,
    )
    assert len(report["report"]["gates"]) == 10


def test_the_command_ends_with_2_and_a_remedy_when_the_model_is_another(tmp_path: Path, weights: Path) -> None:
    result = CliRunner().invoke(main, ["convert", str(weights), "--model", "spt_t", "-o", str(tmp_path / "ckpt.pt")])
    assert result.exit_code == 2
    assert result.stderr.endswith("not spt_t; try --model spt_micro\n")
    assert not (tmp_path / "ckpt.pt").exists()

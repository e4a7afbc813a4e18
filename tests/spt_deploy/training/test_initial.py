"""Starting from weights: what fits is taken, heads of other classes are made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spt_deploy.config import BackboneConfig, ModelConfig, Task
from spt_deploy.errors import ArtefactError
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.initial import load_initial


def model(
    name: str = "spt_micro", classes: tuple[str, ...] = ("a", "b"), seed: int = 0, task: Task = "classify"
) -> SptModel:
    torch.manual_seed(seed)
    return SptModel(ModelConfig(BackboneConfig.from_name(name), task, classes))


def start(tmp_path: Path, begin: SptModel, target: SptModel) -> list[str]:
    path = tmp_path / "begin.pt"
    save_checkpoint(path, begin, Preprocessing(size=(64, 64)))
    return load_initial(target, path)


def test_the_same_model_and_classes_take_every_weight(tmp_path: Path) -> None:
    begin, target = model(seed=1), model()
    notes = start(tmp_path, begin, target)
    assert len(notes) == 1
    for name, tensor in begin.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("b", "a")])
def test_a_head_of_other_classes_is_made_anew_and_the_user_told(tmp_path: Path, classes: tuple[str, ...]) -> None:
    begin, target = model(seed=1), model(classes=classes)
    fresh = target.head.fc.weight.clone()
    notes = start(tmp_path, begin, target)
    assert any("the head starts fresh" in note and "2 classes (a, b)" in note for note in notes)
    assert torch.equal(target.head.fc.weight, fresh)
    assert torch.equal(target.backbone.patch_embed.proj.weight, begin.backbone.patch_embed.proj.weight)


def test_a_detector_takes_over_what_serves_any_class_and_no_layer_of_other_classes(tmp_path: Path) -> None:
    begin, target = model(classes=("cat", "dog"), seed=1, task="detect"), model(classes=("bus", "van"), task="detect")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    notes = start(tmp_path, begin, target)
    assert any("the head starts fresh" in note and "2 classes (cat, dog)" in note for note in notes)
    for name, tensor in target.state_dict().items():
        taken_over = not name.startswith("head.class_conv.")
        assert torch.equal(tensor, (begin.state_dict() if taken_over else before)[name]), name


@pytest.mark.parametrize("has_head", [True, False])
def test_a_head_that_is_missing_or_of_another_task_is_not_said_to_have_other_classes(
    tmp_path: Path, has_head: bool
) -> None:
    begin, path = model(seed=1, task="classify" if not has_head else "detect"), tmp_path / "begin.pt"
    save_checkpoint(path, begin, Preprocessing(size=(64, 64)))
    if not has_head:
        torch.save({k: v for k, v in begin.state_dict().items() if not k.startswith("head.fc.")}, path)
    assert "the head starts fresh for 2 classes; the file has none that fits" in load_initial(model(), path)


def test_an_spt_begun_from_a_swin_keeps_its_fresh_gates(tmp_path: Path) -> None:
    begin, target = model("swin_micro", seed=1), model()
    notes = start(tmp_path, begin, target)
    assert any("gates start fresh" in note for note in notes)
    assert target.backbone.gate is not None
    assert target.backbone.gate.bias.item() == 4.0


def test_another_variant_is_an_error_that_says_which(tmp_path: Path) -> None:
    path = tmp_path / "begin.pt"
    save_checkpoint(path, model("spt_t"), Preprocessing(size=(64, 64)))
    with pytest.raises(ArtefactError, match=r"look like spt_t.*not spt_micro"):
        load_initial(model(), path)

"""Which stage a parameter belongs to, what freezing leaves to learn, and learning rates that fall stage by stage."""

from __future__ import annotations

import pytest
import torch

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.blocks import DropPath
from spt_deploy.model.network import SptModel
from spt_deploy.training.optimizer import parameter_groups
from spt_deploy.training.stages import HEAD, freeze_stages, is_gate, layer_of, learning, train_mode


def micro(name: str = "spt_micro", task: str = "classify") -> SptModel:
    backbone = BackboneConfig.from_name(name, drop_path=0.2)
    return SptModel(ModelConfig(backbone, task, ("a", "b")))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_every_parameter_has_a_layer_and_the_head_is_the_last(task: str) -> None:
    layers = {name: layer_of(name) for name, _ in micro(task=task).named_parameters()}
    assert {layers["backbone.patch_embed.proj.weight"], layers["backbone.stages.0.blocks.0.norm1.weight"]} == {1}
    assert layers["backbone.stages.3.downsample.reduction.weight"] == 4
    assert {layer for name, layer in layers.items() if name.startswith("head.")} == {HEAD}
    assert set(layers.values()) == {1, 2, 3, 4, HEAD}


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_frozen_stages_keep_all_weights_but_those_of_their_gates(count: int) -> None:
    model = micro()
    freeze_stages(model, count)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (layer_of(name) > count or is_gate(name)), name
    grouped = [p for g in parameter_groups(model, 0.05, 10.0) for p in g["params"]]  # type: ignore[attr-defined]
    assert {id(p) for p in grouped} == {id(p) for p in learning(model)}


def test_frozen_stages_drop_no_paths_but_draw_their_selection() -> None:
    model = micro()
    train_mode(model, frozen=3)
    paths = [[m.training for m in stage.modules() if isinstance(m, DropPath)] for stage in model.backbone.stages]
    assert [any(stage) for stage in paths] == [False, False, False, True]
    assert all(block.training for stage in model.backbone.stages for block in stage.blocks)  # type: ignore[attr-defined]


def test_a_frozen_model_still_trains_its_gates() -> None:
    torch.manual_seed(0)
    model = micro()
    freeze_stages(model, 4)
    train_mode(model, 4)
    model(torch.randn(2, 3, 64, 64)).task["logits"].square().sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name for name in moved if is_gate(name)}
    assert all(is_gate(name) or name.startswith("head.") for name in moved)


def test_the_learning_rate_falls_from_stage_to_stage_but_not_for_gates() -> None:
    model = micro()
    groups = parameter_groups(model, weight_decay=0.3, gate_lr_scale=7.0, layer_decay=0.5)
    scales = {str(g["name"]): g["lr_scale"] for g in groups}
    assert scales == {
        **{f"stage {s} {kind}": 0.5 ** (5 - s) for s in (1, 2, 3, 4) for kind in ("decay", "no_decay")},
        **{"decay": 1.0, "no_decay": 1.0, "gates": 7.0},
    }
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))  # type: ignore[arg-type]
    assert {g["weight_decay"] for g in groups if str(g["name"]).endswith("no_decay")} == {0.0}

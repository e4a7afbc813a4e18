"""The learning rate over a run, and who is decayed."""

from __future__ import annotations

import math

import pytest
import torch

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.network import SptModel
from spt_deploy.training.optimizer import FLOOR, learning_rate_factor, parameter_groups


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.05), (1000, 0.2), (7, 0.5)])
def test_the_learning_rate_rises_linearly_to_1_then_falls_to_the_floor(steps: int, warmup: float) -> None:
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    warm = math.ceil(steps * warmup)
    assert factors[:warm] == pytest.approx([(i + 1) / warm for i in range(warm)])
    assert factors[warm] == pytest.approx(1.0)
    assert factors[warm:] == sorted(factors[warm:], reverse=True)
    assert factors[-1] == pytest.approx(FLOOR)


def test_half_way_down_the_cosine_is_half_way_to_the_floor() -> None:
    assert learning_rate_factor(50, 101, 0.0) == pytest.approx((1 + FLOOR) / 2)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_few_steps_has_a_learning_rate(steps: int) -> None:
    assert all(0 < learning_rate_factor(step, steps, 0.05) <= 1 for step in range(steps))


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_only_weight_matrices_are_decayed_and_gates_have_a_group_of_their_own(task: str) -> None:
    model = SptModel(ModelConfig(BackboneConfig.from_name("spt_micro"), task, ("a", "b")))  # type: ignore[arg-type]
    groups = {str(g["name"]): g for g in parameter_groups(model, weight_decay=0.3, gate_lr_scale=7.0)}
    names = {id(p): name for name, p in model.named_parameters()}

    def members(group: str) -> set[str]:
        parameters = groups[group]["params"]
        assert isinstance(parameters, list)
        return {names[id(p)] for p in parameters}

    decayed, plain, gates = members("decay"), members("no_decay"), members("gates")
    assert decayed | plain | gates == set(names.values())
    assert len(decayed) + len(plain) + len(gates) == len(names)
    assert gates == {n for n in names.values() if ".gate." in n}
    assert {n for n in names.values() if "bias" in n and ".gate." not in n} <= plain  # position tables among them
    assert all(dict(model.named_parameters())[n].ndim >= 2 for n in decayed)
    assert [g["weight_decay"] for g in groups.values()] == [0.3, 0.0, 0.0]
    assert [g["lr_scale"] for g in groups.values()] == [1.0, 1.0, 7.0]


def test_a_swin_has_no_gates_to_group() -> None:
    model = SptModel(ModelConfig(BackboneConfig.from_name("swin_micro"), "classify", ("a", "b")))
    groups = parameter_groups(model, weight_decay=0.05, gate_lr_scale=10.0)
    assert [g["name"] for g in groups] == ["decay", "no_decay"]
    torch.optim.AdamW(groups)  # an empty group would be refused

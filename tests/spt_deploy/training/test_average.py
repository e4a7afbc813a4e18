"""The running average of the weights."""

from __future__ import annotations

import pytest
import torch

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.network import SptModel
from spt_deploy.training.average import WeightAverage


def micro() -> SptModel:
    torch.manual_seed(0)
    return SptModel(ModelConfig(BackboneConfig.from_name("spt_micro"), "classify", ("a", "b")))


def test_the_average_is_the_weighted_sum_of_what_it_saw() -> None:
    model = micro()
    average = WeightAverage(model, decay=0.9)
    weight = model.head.fc.weight  # type: ignore[union-attr]
    expected = weight.detach().double().clone()  # type: ignore[operator]
    for step in range(1, 40):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))  # type: ignore[arg-type, operator]
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach().double()  # type: ignore[operator]
    torch.testing.assert_close(average.state_dict()["head.fc.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_decay_rises_to_its_value_so_that_the_start_is_forgotten() -> None:
    average = WeightAverage(micro(), decay=0.999)
    decays = [average.decay_at(step) for step in (1, 10, 100, 1000, 100_000)]
    assert decays == pytest.approx([2 / 11, 11 / 20, 101 / 110, 1001 / 1010, 0.999])


def test_the_average_is_no_part_of_training() -> None:
    model = micro()
    average = WeightAverage(model, decay=0.9)
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average.update(model, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_state_put_back_goes_on_the_same() -> None:
    model = micro()
    one, other = WeightAverage(model, 0.99), WeightAverage(model, 0.99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    one.update(model, 5)
    other.load_state_dict(one.state_dict())
    one.update(model, 6)
    other.update(model, 6)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())

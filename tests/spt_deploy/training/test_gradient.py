"""A step's gradient does not depend on how its images are cut into batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from spt_deploy.model.network import SptModel
from spt_deploy.training.gradient import StepWeights, parts_of_step
from spt_deploy.training.loader import Batch, collate
from spt_deploy.training.ranks import Ranks
from tests.spt_deploy.training.random_batches import batch_of, losses_of, model_without_noise

ALPHA = 0.5


def gradient(model: SptModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    model.zero_grad()
    module = losses_of(model)
    images, labelled = sum(len(b.paths) for b in batches), sum(int(b.has_mask.sum()) for b in batches)
    weights = StepWeights(images, labelled, world=1)
    for _, batch in parts_of_step(range(len(batches)), batches, Ranks()):
        assert batch is not None
        _, task, select = module(batch)
        weights.loss(batch, task, select, ALPHA).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cuts", [(0, 4, 8), (0, 1, 6, 8), (0, 3, 3, 8), (0, 2, 8)])
def test_batches_accumulated_have_the_gradient_of_one_batch(cuts: tuple[int, ...]) -> None:
    model = model_without_noise()
    whole = gradient(model, [batch_of(range(8))])
    parts = gradient(model, [batch_of(range(a, b)) for a, b in pairwise(cuts)])
    assert whole.keys() == parts.keys() == {name for name, _ in model.named_parameters()}
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_batch_of_which_nothing_is_known_adds_no_select_loss() -> None:
    batch = collate([])
    weights = StepWeights(images=5, labelled=0, world=1)
    assert weights.loss(batch, torch.tensor(0.0), torch.tensor(7.0), ALPHA) == 0


def test_empty_batches_take_no_part_but_a_process_with_nothing_else_touches_every_weight() -> None:
    batches = [batch_of(range(2)), collate([])]
    assert [n for n, _ in parts_of_step([6, 7], batches, Ranks())] == [6]
    assert parts_of_step([6], [collate([])], Ranks()) == []
    assert parts_of_step([6], [collate([])], Ranks(rank=1, world=2)) == [(6, None)]
    model = model_without_noise()
    _, zero, _ = losses_of(model)(None)
    zero.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())

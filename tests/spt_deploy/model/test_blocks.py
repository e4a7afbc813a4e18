from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spt_deploy.config import BackboneConfig, Packing
from spt_deploy.model.blocks import DropPath, SpaBlock, SwinBlock, best_tokens
from tests.spt_deploy.model.models import randomise
from tests.tolerances import BLOCK, assert_close

STAGE = 2
WIDTH = 64
THRESHOLD = torch.logit(torch.tensor(0.01))
EXACTLY_ONE = 100.0  # sigmoid of it is 1 in float32


def make_block(number: int = 0, **changes: object) -> SpaBlock:
    """A randomised SPA block of stage 2 of spt_micro, in evaluation mode."""
    config = BackboneConfig.from_name("spt_micro", **({"spa_stages": (2, 3, 4)} | changes))
    block = SpaBlock(config, STAGE, number, drop_path=0.0)
    randomise(block)
    nn.init.constant_(block.gate.bias, -4.6)  # at the threshold: about half of the tokens are kept
    return block.eval()


def tokens(batch: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, height, width, WIDTH, generator=torch.Generator().manual_seed(seed))


def swin_with_weights_of(block: SpaBlock) -> SwinBlock:
    swin = SwinBlock(block.config, STAGE, 0, drop_path=0.0).to(block.norm1.weight.dtype)
    swin.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("gate.")})
    return swin.eval()


def set_gate(block: SpaBlock, logit: float) -> None:
    nn.init.zeros_(block.gate.weight)
    nn.init.constant_(block.gate.bias, logit)


def mlp_only(block: SpaBlock, x: Tensor) -> Tensor:
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("packing", ["batch", "per-image", "static"])
@torch.no_grad()
def test_scaling_queries_by_their_weights_changes_no_answer(packing: Packing) -> None:
    block = make_block(1, packing=packing)
    swin, x = swin_with_weights_of(block), tokens(2, 14, 14)
    expected = block(x, None, THRESHOLD)[0], swin(x)
    assert 0 < block(x, None, THRESHOLD)[2].float().mean() < 1
    for each in (block, swin):
        each.attn.fold_scale()
        each.attn.fold_scale()  # the second time there is nothing left
    assert_close(block(x, None, THRESHOLD)[0], expected[0])
    assert_close(swin(x), expected[1])


@pytest.mark.parametrize("packing", ["batch", "per-image"])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (14, 21), (28, 7)])
@torch.no_grad()
def test_spa_block_that_keeps_everything_at_gate_1_without_shift_is_the_swin_block(
    height: int, width: int, packing: Packing
) -> None:
    block = make_block(packing=packing)
    set_gate(block, EXACTLY_ONE)
    x = tokens(3, height, width)
    actual, _, kept = block(x, None, THRESHOLD)
    assert kept.all()
    assert_close(actual, swin_with_weights_of(block)(x))


@pytest.mark.parametrize("factor", [0.02, 0.5, 0.99])
@torch.no_grad()
def test_spa_block_that_keeps_everything_at_gate_g_is_the_swin_block_on_norm1_times_g(factor: float) -> None:
    block = make_block().double()
    set_gate(block, math.log(factor / (1 - factor)))
    swin = swin_with_weights_of(block)
    swin.norm1.weight *= factor
    swin.norm1.bias *= factor
    x = tokens(2, 14, 14).double()
    # In float64 but for the gate, which is float32 whatever the block is.
    assert_close(block(x, None, THRESHOLD)[0].float(), swin(x).float())


@pytest.mark.parametrize("packing", ["batch", "per-image"])
@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_block_that_keeps_nothing_is_the_mlp_alone(number: int, packing: Packing) -> None:
    block = make_block(number, packing=packing)
    set_gate(block, -EXACTLY_ONE)
    x = tokens(2, 9, 10)
    actual, _, kept = block(x, None, THRESHOLD)
    assert not kept.any()
    assert_close(actual, mlp_only(block, x))


@torch.no_grad()
def test_dropped_tokens_get_nothing_from_attention_and_change_nothing_for_the_others() -> None:
    block = make_block(1)
    x = tokens(2, 9, 10)
    actual, _, kept = block(x, None, THRESHOLD)
    dropped = ~kept.view(2, 9, 10)
    assert 0.2 < dropped.float().mean() < 0.8
    assert_close(actual[dropped], mlp_only(block, x)[dropped])
    other = torch.where(dropped[..., None], tokens(2, 9, 10, seed=2), x)
    again, _, _ = block(other, None, THRESHOLD, forced=kept)
    assert_close(again[~dropped], actual[~dropped])


@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_with_per_image_packing_an_image_does_not_feel_its_batch_mates(number: int) -> None:
    block = make_block(number, packing="per-image")
    x = tokens(5, 9, 10)
    together, _, kept = block(x, None, THRESHOLD)
    alone = torch.cat([block(image[None], None, THRESHOLD)[0] for image in x])
    order = torch.tensor([3, 0, 4, 2, 1])
    assert_close(together, alone)
    assert_close(block(x[order], None, THRESHOLD)[0], together[order])
    assert len(set(kept.sum(1).tolist())) > 1


@torch.no_grad()
def test_with_batch_packing_tokens_of_other_images_are_never_seen() -> None:
    block = make_block(packing="batch")
    x = tokens(2, 9, 10)
    forced = torch.zeros(2, 90, dtype=torch.bool)
    forced[:, :20] = True  # both images share one container
    together = block(x, None, THRESHOLD, forced)[0]
    alone = torch.cat([block(x[i : i + 1], None, THRESHOLD, forced[i : i + 1])[0] for i in range(2)])
    assert_close(together, alone)


@torch.no_grad()
def test_score_is_the_greater_of_the_gate_and_the_finer_scale() -> None:
    block = make_block()
    x = tokens(2, 9, 10)
    own = block.gate(block.norm1(x)).flatten(1)
    finer = torch.linspace(-9, 0, 180).view(2, 90)
    _, alone, _ = block(x, None, THRESHOLD)
    _, both, kept = block(x, finer, THRESHOLD)
    assert_close(alone, own)
    assert_close(both, torch.maximum(own, finer))
    assert torch.equal(kept, both > THRESHOLD)


@pytest.mark.parametrize("keep_ratio", [1e-6, 0.07, 0.1, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@torch.no_grad()
def test_topk_keeps_exactly_the_best_ceil_of_ratio_times_n(keep_ratio: float, ties: bool) -> None:
    block = make_block(selector="topk", keep_ratio=keep_ratio)
    if ties:
        set_gate(block, -50.0)  # far below the threshold, which plays no part here
    x = tokens(3, 10, 10)
    _, logits, kept = block(x, None, THRESHOLD)
    count = -(-round(keep_ratio * 1e6) * 100 // 10**6)
    assert kept.sum(1).tolist() == [count] * 3
    for scores, mask in zip(logits, kept, strict=True):
        if not mask.all():
            assert scores[mask].min() >= scores[~mask].max()


def test_of_equal_scores_the_earlier_tokens_are_the_best() -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]])
    expected = [[0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert best_tokens(scores, 3).int().tolist() == expected
    assert best_tokens(scores, 6).all()
    by_rank = scores.sort(dim=1, descending=True, stable=True).indices
    for count in range(1, 7):  # from either end
        brute_force = torch.zeros_like(scores, dtype=torch.bool).scatter(1, by_rank[:, :count], True)
        assert torch.equal(best_tokens(scores, count), brute_force)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("selector", ["threshold", "topk"])
def test_forced_masks_are_obeyed(selector: str, training: bool) -> None:
    block = make_block(selector=selector).train(training)
    forced = torch.rand(3, 90, generator=torch.Generator().manual_seed(4)) < 0.3
    forced[1] = False
    _, _, kept = block(tokens(3, 9, 10), None, THRESHOLD, forced)
    assert torch.equal(kept, forced)


def test_training_draws_the_mask_with_the_probability_of_the_noisy_gate() -> None:
    block = make_block().train()
    set_gate(block, 0.0)
    # sigmoid(0 + logistic noise) > t: with probability 1 - t, for a logistic variable's own function is the sigmoid.
    torch.manual_seed(0)
    kept = block(tokens(8, 30, 30), None, torch.logit(torch.tensor(0.3)))[2]
    assert abs(kept.float().mean().item() - 0.7) < 0.02  # three standard deviations of 7200 draws are 0.016
    again = block(tokens(8, 30, 30), None, torch.logit(torch.tensor(0.3)))[2]
    assert not torch.equal(kept, again)


def test_training_computes_the_hard_selection_and_gives_the_gate_a_gradient() -> None:
    block = make_block().train()
    x = tokens(2, 9, 10)
    torch.manual_seed(0)
    trained, _, kept = block(x, None, THRESHOLD)
    assert 0.2 < kept.float().mean() < 0.8
    trained.square().mean().backward()
    for parameter in block.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    with torch.no_grad():
        evaluated = block.eval()(x, None, THRESHOLD, forced=kept)[0]
    assert torch.equal(trained, evaluated)


def test_straight_through_adds_the_slope_of_the_soft_mask_to_that_of_the_gate() -> None:
    block = make_block().train()
    set_gate(block, 1.0)
    x = tokens(1, 7, 7)
    finer = torch.full((1, 49), 2.0, requires_grad=True)
    torch.manual_seed(0)
    block(x, finer, torch.tensor(-50.0))[0].sum().backward()
    straight_through = finer.grad
    finer = torch.full((1, 49), 2.0, requires_grad=True)
    block(x, finer, torch.tensor(-50.0), forced=torch.ones(1, 49, dtype=torch.bool))[0].sum().backward()
    assert straight_through is not None
    assert finer.grad is not None
    # d(sigmoid(s) * mask)/ds = sigmoid'(s) + sigmoid(s) * mask'(s + noise): greater by a factor, of the same sign.
    assert torch.all(straight_through / finer.grad > 1)


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast_runs_and_the_gate_stays_float32(training: bool) -> None:
    block = make_block(1).train(training)
    x = tokens(2, 9, 10)
    torch.manual_seed(0)
    expected, logits, kept = block(x, None, THRESHOLD)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        actual, mixed_logits, mixed_kept = block(x, None, THRESHOLD)
    assert mixed_logits.dtype == torch.float32
    assert_close(mixed_logits, logits)
    assert torch.equal(mixed_kept, kept)
    torch.testing.assert_close(actual, expected, rtol=BLOCK[torch.bfloat16], atol=BLOCK[torch.bfloat16])
    if training:
        actual.float().square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in block.parameters() if p.grad is not None)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    branch = torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert abs(dropped.mean().item() - 1) < 0.03  # four standard deviations
    assert torch.equal(DropPath(0.25).eval()(branch), branch)


def test_drop_path_of_an_spa_block_drops_attention_and_mlp_of_an_image_each_by_itself() -> None:
    config = BackboneConfig.from_name("spt_micro", spa_stages=(2,))
    block = SpaBlock(config, STAGE, 0, drop_path=0.5).train()
    randomise(block)
    x = tokens(64, 3, 3)
    forced = torch.ones(64, 9, dtype=torch.bool)
    torch.manual_seed(0)
    out = block(x, None, THRESHOLD, forced)[0]
    untouched = (out == x).flatten(1).all(1)
    assert 4 < untouched.sum() < 30  # 16 expected


def test_swin_block_pads_maps_of_any_size_and_gives_them_back() -> None:
    block = swin_with_weights_of(make_block())
    for height, width in [(1, 1), (1, 50), (8, 6), (7, 7), (13, 22)]:
        x = tokens(2, height, width)
        assert block(x).shape == x.shape

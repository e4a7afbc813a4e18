"""A flipped token is borderline where the selection is cut: at the threshold, in a ranking, or where room ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.config import BackboneConfig
from spt_deploy.model.blocks import SpaBlock, best_tokens
from spt_deploy.parity.selection import compare_selection, cut_of, kept_of

STATIC = BackboneConfig.from_name("spt_micro", spa_stages=(4,), depths=(2, 2, 2, 1), packing="static", capacity=0.5)
SLOTS = STATIC.static_slots(200)


def scores(mean: float) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(mean, 1.0, (1, 200)).astype(np.float32)


def test_a_token_that_flips_where_room_ends_is_borderline() -> None:
    ours = scores(3.0)  # all above the threshold, so that room ends first
    order = np.argsort(-ours[0])
    last, first_out = order[SLOTS - 1], order[SLOTS]
    ours[0, first_out] = ours[0, last] - 1e-6
    theirs = ours.copy()
    theirs[0, first_out] += 4e-6
    (block,) = compare_selection((ours,), (theirs,), STATIC)
    assert block.flips == 2
    assert block.max_margin < 1e-5


def test_a_token_that_flips_far_from_where_room_ends_is_not() -> None:
    ours = scores(3.0)
    theirs = ours.copy()
    theirs[0, ours[0].argmin()] = ours[0].max() + 1
    (block,) = compare_selection((ours,), (theirs,), STATIC)
    assert block.flips == 2
    assert block.max_margin > 1.0


def test_with_room_left_the_threshold_is_the_cut() -> None:
    ours = scores(-6.0)  # few of them above the threshold
    threshold = float(torch.logit(torch.tensor(STATIC.threshold)))
    ours[0, 0] = threshold - 1e-6
    theirs = ours.copy()
    theirs[0, 0] = threshold + 1e-5
    (block,) = compare_selection((ours,), (theirs,), STATIC)
    assert block.flips == 1
    assert block.max_margin < 1e-5


@pytest.mark.parametrize("keep_ratio", [0.07, 0.14, 0.28, 0.55, 1.0])
def test_a_ranking_is_cut_where_the_block_cuts_it(keep_ratio: float) -> None:
    """0.07 * 100 is a little more than 7 in floating point."""
    config = replace(STATIC, selector="topk", keep_ratio=keep_ratio, packing="per-image")
    block = SpaBlock(config, 4, 0, 0.0).eval()
    x = torch.randn(1, 10, 10, config.stage_width(4), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        _, logits, kept = block(x, None, torch.tensor(0.0))
    np.testing.assert_array_equal(kept_of(logits.numpy(), config), kept.numpy())


@given(seed=st.integers(0, 1000), tokens=st.integers(1, 60), ratio=st.floats(0.02, 1.0), levels=st.integers(1, 40))
def test_what_a_ranking_keeps_is_what_the_model_keeps(seed: int, tokens: int, ratio: float, levels: int) -> None:
    score = np.random.default_rng(seed).integers(0, levels, (3, tokens)).astype(np.float32)  # many are equal
    backbone = BackboneConfig.from_name("spt_micro", selector="topk", keep_ratio=ratio)
    expected = best_tokens(torch.from_numpy(score), backbone.best_count(tokens)).numpy()
    np.testing.assert_array_equal(kept_of(score, backbone), expected)


@given(threshold=st.floats(1e-4, 1 - 1e-4))
def test_the_cut_is_the_threshold_that_the_model_compares_with(threshold: float) -> None:
    backbone = BackboneConfig.from_name("spt_micro", threshold=threshold)
    cut = cut_of(np.zeros((2, 3), np.float32), backbone)
    assert cut.shape == (2, 1)
    np.testing.assert_allclose(cut, float(torch.logit(torch.tensor(threshold))), rtol=3e-7, atol=1e-7)

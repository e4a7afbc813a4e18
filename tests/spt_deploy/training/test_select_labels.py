"""Labels, loss and meter against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.model.backbone import BackboneOutput
from spt_deploy.model.shapes import stage_sizes
from spt_deploy.training.select_labels import SelectionMeter, select_loss, supervised_strides, token_labels
from tests.tolerances import assert_close

IMAGE = (50, 70)  # no multiple of 16 or 32
BLOCKS = ("3.1", "3.2", "4.1")
STAGES = (3, 3, 4)


def features(batch: int, seed: int = 0) -> BackboneOutput:
    """What a backbone with a gate after stage 2 and three SPA blocks might find in ``batch`` images."""
    generator = torch.Generator().manual_seed(seed)
    sizes = stage_sizes(IMAGE)

    def scores(stage: int) -> torch.Tensor:
        return torch.randn(batch, *sizes[stage - 1], generator=generator) * 4

    maps = tuple(scores(stage) for stage in STAGES)
    tokens = tuple(torch.zeros(batch, *size, 1) for size in sizes)
    return BackboneOutput(tokens, scores(2), maps, tuple(m > -1 for m in maps), STAGES)


def random_masks(batch: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, *IMAGE, generator=generator) > 0.995).to(torch.uint8)


@given(height=st.integers(32, 75), width=st.integers(32, 75), stage=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_token_is_in_an_object_if_any_of_its_pixels_is(height: int, width: int, stage: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) > 0.99
    stride = 2 ** (stage + 1)
    rows, columns = stage_sizes((height, width))[stage - 1]
    expected = np.zeros((rows, columns), dtype=np.float32)
    for row in range(rows):
        for column in range(columns):
            pixels = mask[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            expected[row, column] = pixels.any()
    labels = token_labels(torch.from_numpy(mask.astype(np.uint8))[None], stride)[0]
    np.testing.assert_array_equal(labels.numpy(), expected)


def test_score_maps_have_the_stride_of_their_stage_and_the_gate_half_of_the_first() -> None:
    assert supervised_strides(features(1)) == (8, 16, 16, 32)


def test_the_select_loss_is_the_mean_cross_entropy_of_each_map_summed_over_maps() -> None:
    found, masks = features(3), random_masks(3)
    expected = 0.0
    for scores, stride in zip(found.supervised_scores, (8, 16, 16, 32), strict=True):
        labels = token_labels(masks, stride).double().flatten().tolist()
        probabilities = torch.sigmoid(scores.double()).flatten().tolist()
        terms = [-math.log(p if y else 1 - p) for p, y in zip(probabilities, labels, strict=True)]
        expected += sum(terms) / len(terms)
    actual = select_loss(found, masks, torch.ones(3, dtype=torch.bool))
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), {torch.float32: 1e-5, torch.float64: 0})


def test_images_without_a_mask_do_not_change_the_select_loss() -> None:
    found, masks = features(3), random_masks(3)
    has_mask = torch.tensor([True, False, True])
    masks_2 = masks.clone()
    masks_2[1] = 1
    loss = select_loss(found, masks, has_mask)
    assert_close(loss, select_loss(found, masks_2, has_mask))
    some = BackboneOutput(
        tuple(t[has_mask] for t in found.tokens),
        None if found.gate_scores is None else found.gate_scores[has_mask],
        tuple(s[has_mask] for s in found.scores),
        tuple(k[has_mask] for k in found.kept),
        STAGES,
    )
    assert_close(loss, select_loss(some, masks[has_mask], torch.ones(2, dtype=torch.bool)))


def test_without_any_mask_the_select_loss_is_0() -> None:
    assert select_loss(features(2), random_masks(2), torch.zeros(2, dtype=torch.bool)).item() == 0.0


def test_the_meter_counts_what_a_loop_over_tokens_counts() -> None:
    meter = SelectionMeter(BLOCKS)
    has_mask = torch.tensor([True, True, False])
    batches = [(features(3, seed), random_masks(3, seed + 10)) for seed in range(2)]
    for found, masks in batches:
        meter.update(found, masks, has_mask)
    for block, name in enumerate(BLOCKS):
        stride = 4 * 2 ** (STAGES[block] - 1)
        kept_all, kept, objects = [], [], []
        for found, masks in batches:
            kept_all += found.kept[block].flatten().tolist()
            kept += found.kept[block][has_mask].flatten().tolist()
            objects += (token_labels(masks[has_mask], stride) > 0).flatten().tolist()
        both = sum(k and o for k, o in zip(kept, objects, strict=True))
        assert meter.select_ratio()[name] == pytest.approx(sum(kept_all) / len(kept_all))
        assert meter.precision()[name] == pytest.approx(both / sum(kept))
        assert meter.recall()[name] == pytest.approx(both / sum(objects))
        assert meter.object_ratio()[f"stride {stride}"] == pytest.approx(sum(objects) / len(objects))


def test_a_model_without_spa_blocks_has_no_select_ratio() -> None:
    meter = SelectionMeter(())
    meter.update(BackboneOutput((), None, (), (), ()), random_masks(2), torch.ones(2, dtype=torch.bool))
    assert meter.select_ratio() == {}

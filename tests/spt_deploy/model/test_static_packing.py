"""Static packing: what per-image packing says where there is room, and the lowest scores dropped where there is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spt_deploy.config import BackboneConfig
from spt_deploy.errors import UsageError
from spt_deploy.model import static_packing
from spt_deploy.model.blocks import SpaBlock
from spt_deploy.model.network import SptModel
from tests.spt_deploy.model.models import make_model

THRESHOLD = torch.tensor(0.0)


def listed(logits: Tensor, slots: int) -> list[set[int]]:
    """Numbers of the tokens that each image keeps."""
    batch, tokens = logits.shape
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    token_of_slot, slot_of_token, cu_seqlens = static_packing.select_tokens(logits, order, THRESHOLD, slots)
    assert token_of_slot.shape == (batch * slots,)
    kept = []
    for image, row in enumerate(token_of_slot.view(batch, slots)):
        filled = row[row >= 0]
        assert (row[len(filled) :] == -1).all()  # the first slots are the filled ones
        assert (filled // tokens == image).all()
        place_in_order = torch.argsort(order)[filled % tokens]
        assert (place_in_order.diff() > 0).all()
        torch.testing.assert_close(
            slot_of_token[image, filled % tokens], image * slots + torch.arange(len(filled)), rtol=0, atol=0
        )
        kept.append({int(t) for t in filled % tokens})
        assert int((slot_of_token[image] >= 0).sum()) == len(filled)
    assert cu_seqlens.diff().tolist() == [len(each) for each in kept]
    return kept


@settings(max_examples=100)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**31), st.booleans())
def test_the_highest_scores_above_the_threshold_are_kept_and_of_equal_ones_the_first(
    batch: int, tokens: int, slots: int, seed: int, ties: bool
) -> None:
    logits = torch.randn(batch, tokens, generator=torch.Generator().manual_seed(seed))
    if ties:
        logits = logits.round()
    for image, kept in enumerate(listed(logits, slots)):
        ranked = sorted(range(tokens), key=lambda n: (-float(logits[image, n]), n))
        assert kept == {n for n in ranked[:slots] if logits[image, n] > 0}


def block(capacity: float, **changes: object) -> SpaBlock:
    config = BackboneConfig.from_name("spt_micro", packing="static", capacity=capacity, **changes)
    torch.manual_seed(0)
    return SpaBlock(config, 3, 1, 0.0).eval()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.floats(0, 1))
def test_where_no_image_overflows_the_answer_is_that_of_per_image_packing(
    batch: int, height: int, width: int, seed: int, share: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, height, width, 128, generator=random)
    forced = torch.rand(batch, height * width, generator=random) < share
    static = block(1.0)
    per_image = SpaBlock(replace(static.config, packing="per-image"), 3, 1, 0.0).eval()
    per_image.load_state_dict(static.state_dict())
    with torch.inference_mode():
        for found, expected in zip(
            static(x, None, THRESHOLD, forced), per_image(x, None, THRESHOLD, forced), strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_a_dropped_token_passes_the_attention_unchanged_as_one_that_was_not_selected() -> None:
    full = block(0.5)
    x = torch.randn(2, 14, 14, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        _, logits, kept = full(x, None, torch.tensor(-100.0))
        assert kept.sum(1).tolist() == [98, 98]  # half of 196, two containers
        expected = full(x, None, THRESHOLD, kept)[0]
        torch.testing.assert_close(full(x, None, torch.tensor(-100.0))[0], expected)
    worst_kept = torch.where(kept, logits, torch.inf).amin(1)
    best_dropped = torch.where(kept, -torch.inf, logits).amax(1)
    assert (worst_kept >= best_dropped).all()


@pytest.mark.parametrize(
    ("capacity", "tokens", "slots"),
    [
        (0.5, 196, 98),
        (0.5, 197, 147),
        (0.01, 49, 49),
        (1.0, 49, 49),
        (1.0, 50, 98),
        (0.25, 4000, 1029),
        (0.07, 700, 49),
    ],
)
def test_capacity_is_rounded_up_to_whole_containers(capacity: float, tokens: int, slots: int) -> None:
    assert BackboneConfig.from_name("spt_t", capacity=capacity).static_slots(tokens) == slots


def test_a_ranking_always_has_room_for_what_it_keeps() -> None:
    config = BackboneConfig.from_name("spt_t", capacity=0.1, selector="topk", keep_ratio=0.6)
    assert config.static_slots(1000) >= 600


@pytest.mark.parametrize("capacity", [0.0, -0.1, 1.01, float("nan")])
def test_a_capacity_that_is_no_share_is_refused(capacity: float) -> None:
    with pytest.raises(UsageError, match="capacity is"):
        BackboneConfig.from_name("spt_t", capacity=capacity)


def outputs(model: SptModel, images: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return dict(model(images).named())


def test_overflow_counts_what_was_selected_and_found_no_room() -> None:
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = make_model(packing="static", capacity=0.2)
    reached = model.config.backbone.static_slots(196)
    found = outputs(model, images)
    assert found["overflow"].dtype == torch.int64
    kept = (found["select_ratio"][:, :2] * 196).round()
    assert (kept <= reached).all()
    assert ((found["overflow"][:, :2] > 0) == (kept == reached)).all()
    assert (found["overflow"] > 0).any()
    assert "overflow" not in outputs(make_model(), images)


def test_an_images_answer_does_not_depend_on_its_batch_even_where_it_overflows() -> None:
    images = torch.randn(3, 3, 112, 160, generator=torch.Generator().manual_seed(0))
    model = make_model(packing="static", capacity=0.3)
    together = outputs(model, images)
    for i in range(3):
        for name, value in outputs(model, images[i : i + 1]).items():
            torch.testing.assert_close(value[0], together[name][i], rtol=1e-4, atol=1e-4)


def test_gradients_flow_as_through_per_image_packing() -> None:
    x = torch.randn(2, 7, 7, 128, generator=torch.Generator().manual_seed(0))
    forced = torch.rand(2, 49, generator=torch.Generator().manual_seed(1)) < 0.5
    gradients = []
    for packing in ("static", "per-image"):
        one = block(1.0)
        one.config = replace(one.config, packing=packing)  # type: ignore[arg-type]
        one(x, None, THRESHOLD, forced)[0].square().sum().backward()
        gradients.append({name: p.grad for name, p in one.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], rtol=1e-4, atol=1e-4, msg=name)

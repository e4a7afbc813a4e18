from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spt_deploy.model import operators, reference
from spt_deploy.model.order import window_order
from tests.spt_deploy.model import brute_force
from tests.tolerances import assert_close

CPU = torch.device("cpu")
ZERO = torch.zeros(())
HEADS, HEAD_DIM = 2, 3
WIDTH = HEADS * HEAD_DIM


class Case(NamedTuple):
    keep: Tensor  # B x N bool
    height: int
    width: int
    window: int
    shift: int
    packing: str
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, window = draw(st.integers(1, 3)), draw(st.integers(2, 7))
    height, width = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    seed = draw(st.integers(0, 2**32 - 1))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(batch, height * width, generator=generator) < share
    keep[draw(st.integers(0, batch - 1))] &= draw(st.booleans())  # an image that keeps nothing, among others
    return Case(
        keep,
        height,
        width,
        window,
        draw(st.sampled_from([0, window // 2])),
        draw(st.sampled_from(["batch", "per-image"])),
        seed,
    )


def edge_case(counts: tuple[int, ...], packing: str, window: int = 7) -> Case:
    """Images of 8 x 9 tokens that keep the given numbers of them."""
    generator = torch.Generator().manual_seed(1)
    keep = torch.zeros(len(counts), 72, dtype=torch.bool)
    for image, count in enumerate(counts):
        keep[image, torch.randperm(72, generator=generator)[:count]] = True
    return Case(keep, 8, 9, window, 3, packing, 2)


EDGES = [(0,), (1,), (48,), (49,), (50,), (72,), (0, 0), (0, 1, 0), (48, 1, 50), (49, 49), (50, 0, 72), (24, 25)]


def select(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    order = window_order(case.height, case.width, case.window, case.shift, CPU)
    return operators.select_tokens(case.keep.float() * 2 - 1, order, ZERO)


def kept_of(case: Case) -> list[brute_force.Token]:
    order = brute_force.token_order(case.height, case.width, case.window, case.shift)
    return brute_force.kept_tokens(case.keep, order)


def check_attention(case: Case) -> None:
    """Packed attention, values and gradients, against the loop; in float64."""
    generator = torch.Generator().manual_seed(case.seed)
    token_of_slot, _, cu_seqlens = select(case)
    kept = kept_of(case)
    qkv = torch.randn(len(kept), 3 * WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    entries = (2 * case.window - 1) ** 2
    table = torch.randn(entries, HEADS, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(len(kept), WIDTH, generator=generator, dtype=torch.float64)
    sizes = {"heads": HEADS, "window": case.window, "tokens": case.keep.shape[1], "width": case.width}

    expected = brute_force.packed_attention(qkv, kept, table, HEADS, case.window, case.width, case.packing)
    actual = operators.packed_attention(qkv, token_of_slot, cu_seqlens, table, **sizes, packing=case.packing)
    assert_close(actual, expected)
    with torch.no_grad():  # the registered operator, which deployment calls
        operator = operators.packed_attention(qkv, token_of_slot, cu_seqlens, table, **sizes, packing=case.packing)
    assert torch.equal(operator, actual)
    if kept:
        wanted = torch.autograd.grad((expected * upstream).sum(), (qkv, table))
        got = torch.autograd.grad((actual * upstream).sum(), (qkv, table))
        for one, other in zip(got, wanted, strict=True):
            assert_close(one, other)


@settings(deadline=None, max_examples=30)
@given(cases())
def test_packed_attention_and_its_gradients_equal_a_loop_over_tokens(case: Case) -> None:
    check_attention(case)


@pytest.mark.parametrize("packing", ["batch", "per-image"])
@pytest.mark.parametrize("counts", EDGES)
def test_packed_attention_equals_a_loop_over_tokens_at_edge_counts(counts: tuple[int, ...], packing: str) -> None:
    check_attention(edge_case(counts, packing))


@settings(deadline=None)
@given(cases())
def test_selected_tokens_are_those_above_the_threshold_image_after_image_in_order(case: Case) -> None:
    token_of_slot, slot_of_token, cu_seqlens = select(case)
    tokens = case.keep.shape[1]
    assert token_of_slot.tolist() == [image * tokens + n for image, n in kept_of(case)]
    assert torch.equal(slot_of_token >= 0, case.keep)
    assert torch.equal(slot_of_token.flatten()[token_of_slot], torch.arange(len(token_of_slot)))
    assert cu_seqlens.tolist() == F.pad(case.keep.sum(1).cumsum(0), (1, 0)).tolist()


def test_a_score_at_the_threshold_is_dropped() -> None:
    threshold = torch.tensor(-4.595)
    logits = torch.tensor([[-4.595, -4.594, -4.596, float("-inf"), float("inf")]])
    token_of_slot, _, _ = reference.select_tokens(logits, torch.arange(5), threshold)
    assert token_of_slot.tolist() == [1, 4]


@settings(deadline=None)
@given(cases())
def test_containers_hold_every_kept_token_once_and_waste_as_little_as_the_packing_allows(case: Case) -> None:
    token_of_slot, _, cu_seqlens = select(case)
    length = case.window**2
    slots, filled, places = reference.containers(token_of_slot, cu_seqlens, length, case.keep.shape[1], case.packing)
    assert slots[filled].tolist() == list(range(len(token_of_slot)))
    assert torch.equal(slots.flatten()[places], torch.arange(len(token_of_slot)))
    boxes = brute_force.containers(kept_of(case), length, case.packing)
    assert filled.sum(1).tolist() == [len(box) for box in boxes]


@settings(deadline=None, max_examples=30)
@given(cases())
def test_select_project_attend_unpack_equals_the_definition_token_by_token(case: Case) -> None:
    batch, tokens = case.keep.shape
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    h, residual, logits = normal(batch, tokens, WIDTH), normal(batch, tokens, WIDTH), normal(batch, tokens)
    w_qkv, b_qkv, w_proj, b_proj = normal(3 * WIDTH, WIDTH), normal(3 * WIDTH), normal(WIDTH, WIDTH), normal(WIDTH)
    table = normal((2 * case.window - 1) ** 2, HEADS)

    token_of_slot, slot_of_token, cu_seqlens = select(case)
    qkv = operators.packed_qkv(h, logits.sigmoid(), token_of_slot, w_qkv, b_qkv)
    sizes = {"heads": HEADS, "window": case.window, "tokens": tokens, "width": case.width}
    o = operators.packed_attention(qkv, token_of_slot, cu_seqlens, table, **sizes, packing=case.packing)
    actual = operators.unpack_project(o, token_of_slot, slot_of_token, residual, w_proj, b_proj)

    expected = residual.clone()
    for box in brute_force.containers(kept_of(case), case.window**2, case.packing):
        rows = [w_qkv @ (h[b, n] / (1 + torch.exp(-logits[b, n]))) + b_qkv for b, n in box]
        q, k, v = torch.stack(rows).view(len(box), 3, HEADS, HEAD_DIM).unbind(1)
        attended = brute_force.attention(q, k, v, box, table, case.window, case.width)
        for (b, n), values in zip(box, attended, strict=True):
            expected[b, n] += w_proj @ values.flatten() + b_proj
    assert_close(actual, expected)


def test_gradients_of_the_whole_chain_are_those_of_finite_differences() -> None:
    case = edge_case((5, 0, 7), "batch", window=3)
    batch, tokens = case.keep.shape
    token_of_slot, slot_of_token, cu_seqlens = select(case)
    generator = torch.Generator().manual_seed(3)
    shapes = [(batch, tokens, 4), (batch, tokens), (12, 4), (12,), (25, 2), (4, 4), (4,), (batch, tokens, 4)]
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]

    def chain(h: Tensor, gate: Tensor, w_qkv: Tensor, b_qkv: Tensor, table: Tensor, *rest: Tensor) -> Tensor:
        w_proj, b_proj, residual = rest
        qkv = operators.packed_qkv(h, gate, token_of_slot, w_qkv, b_qkv)
        o = operators.packed_attention(
            qkv, token_of_slot, cu_seqlens, table, heads=2, window=3, tokens=tokens, width=9, packing="batch"
        )
        return operators.unpack_project(o, token_of_slot, slot_of_token, residual, w_proj, b_proj)

    assert torch.autograd.gradcheck(chain, leaves, fast_mode=True)

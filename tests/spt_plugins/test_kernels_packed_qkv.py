from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spt_deploy.errors import UsageError
from spt_deploy.model import reference
from spt_plugins import packed_qkv as module
from spt_plugins import tiles
from spt_plugins.packed_qkv import packed_qkv
from tests.spt_plugins.kernel_cases import (
    DEVICE,
    DTYPES,
    KEPT,
    NAN,
    Selection,
    assert_close,
    double,
    linear,
    normal,
    select,
)


def expected(chosen: Selection, h: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The reference's answer in float64."""
    h, gate, weight, bias = double(h, gate, weight, bias)
    return reference.packed_qkv(h, gate, chosen.exact, weight, bias)


def inputs(chosen: Selection, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, gate, weight and bias."""
    h = normal(chosen.batch, chosen.tokens, channels, dtype=dtype)
    return h, chosen.logits.sigmoid(), *linear(3 * channels, channels, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", KEPT)
def test_kept_rows_equal_the_reference_for_any_number_of_kept_tokens(kept: int | None, dtype: torch.dtype) -> None:
    chosen = select(2, 7, 9, kept=kept)
    h, gate, weight, bias = inputs(chosen, 96, dtype)
    qkv = packed_qkv(h, gate, chosen.token_of_slot, weight, bias)
    assert qkv.shape == (2 * 63, 3 * 96)
    assert qkv.dtype == dtype
    assert_close(qkv[: chosen.kept], expected(chosen, h, gate, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "channels"), [(1, 32), (3, 160), (4, 96), (5, 64)])
def test_kept_rows_equal_the_reference_for_any_size(batch: int, channels: int, dtype: torch.dtype) -> None:
    chosen = select(batch, 1, 37, share=0.6)
    h, gate, weight, bias = inputs(chosen, channels, dtype)
    qkv = packed_qkv(h, gate, chosen.token_of_slot, weight, bias)
    assert_close(qkv[: chosen.kept], expected(chosen, h, gate, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table", [tiles.LARGE, tiles.SMALL], ids=["large", "small"])
def test_every_tile_shape_writes_the_kept_rows_and_no_other(table: dict[int, tiles.Tile], dtype: torch.dtype) -> None:
    chosen = select(5, 7, 9, share=0.5)  # more than one large tile of slots, and an empty one
    h, gate, weight, bias = inputs(chosen, 64, dtype)
    form = module.variant(dtype, 64, 0, table[dtype.itemsize])
    slots = chosen.token_of_slot.numel()
    qkv = h.new_full((slots, 192), NAN)
    form.launch(module.grid(form, slots), h, gate, chosen.token_of_slot, weight, bias, slots, qkv)
    assert_close(qkv[: chosen.kept], expected(chosen, h, gate, weight, bias))
    assert qkv[chosen.kept :].isnan().all()


def test_large_tiles_are_taken_where_they_are_many() -> None:
    few, many = module.variant(torch.float16, 384, 196), module.variant(torch.float16, 384, 32000)
    assert (few.constants["BLOCK_M"], many.constants["BLOCK_M"]) == (64, 128)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_list_without_tail_gives_the_same_rows(dtype: torch.dtype) -> None:
    chosen = select(3, 1, 37, share=0.5)
    h, gate, weight, bias = inputs(chosen, 32, dtype)
    with_tail = packed_qkv(h, gate, chosen.token_of_slot, weight, bias)
    without = packed_qkv(h, gate, chosen.exact, weight, bias)
    assert torch.equal(without, with_tail[: chosen.kept])


def test_an_empty_list_gives_no_row() -> None:
    chosen = select(2, 1, 37, kept=0)
    h, gate, weight, bias = inputs(chosen, 32, torch.float32)
    assert packed_qkv(h, gate, chosen.exact, weight, bias).shape == (0, 96)


def test_dropped_tokens_are_not_looked_at() -> None:
    chosen = select(2, 1, 37, share=0.5)
    h, gate, weight, bias = inputs(chosen, 32, torch.float32)
    qkv = packed_qkv(h, gate, chosen.token_of_slot, weight, bias)
    dropped = chosen.slot_of_token < 0
    h[dropped], gate[dropped] = NAN, NAN
    assert torch.equal(packed_qkv(h, gate, chosen.token_of_slot, weight, bias)[: chosen.kept], qkv[: chosen.kept])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gated_row_is_rounded_once(dtype: torch.dtype) -> None:
    """With the identity as weight, the output is the gated row itself: equal bits, not merely close."""
    chosen = select(2, 1, 37, share=0.5)
    h, gate, _, _ = inputs(chosen, 32, dtype)
    weight = torch.eye(32, dtype=dtype, device=DEVICE).repeat(3, 1)
    qkv = packed_qkv(h, gate, chosen.token_of_slot, weight, weight.new_zeros(96))
    gated = (h.float() * gate[:, :, None]).flatten(0, 1)[chosen.exact].to(dtype)
    assert torch.equal(qkv[: chosen.kept], gated.repeat(1, 3))


def test_strided_inputs_are_read_by_their_strides() -> None:
    chosen = select(2, 1, 37, share=0.5)
    h, gate, weight, bias = inputs(chosen, 32, torch.float32)
    qkv = packed_qkv(h, gate, chosen.token_of_slot, weight, bias)
    strided = [tensor.t().contiguous().t() for tensor in (gate, weight)]
    h_strided = h.transpose(1, 2).contiguous().transpose(1, 2)
    found = packed_qkv(h_strided, strided[0], chosen.token_of_slot, strided[1], bias)
    assert torch.equal(found[: chosen.kept], qkv[: chosen.kept])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"h": torch.zeros(2, 5, 32, dtype=torch.float64)}, "h is float64, and the kernels take float16, bfloat16 or"),
        ({"h": torch.zeros(2, 5, 48)}, "48 channels, and the kernels take multiples of 32 from 32 to 1024"),
        ({"h": torch.zeros(2, 5, 2048)}, "2048 channels"),
        ({"h": torch.zeros(10, 32)}, "h has 2 dimensions, expected 3"),
        ({"gate": torch.zeros(2, 5, dtype=torch.float16)}, "gate is float16, expected float32"),
        ({"gate": torch.zeros(10)}, "gate is 10, expected 2 x 5"),
        ({"token_of_slot": torch.zeros(10, dtype=torch.int32)}, "token_of_slot is int32, expected int64"),
        ({"weight": torch.zeros(96, 32, dtype=torch.float16)}, "weight is float16, expected float32"),
        ({"weight": torch.zeros(32, 96)}, "weight is 32 x 96, expected 96 x 32"),
        ({"bias": torch.zeros(32)}, "bias is 32, expected 96"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(change: dict[str, Tensor], said: str) -> None:
    tensors = {
        "h": torch.zeros(2, 5, 32),
        "gate": torch.zeros(2, 5),
        "token_of_slot": torch.zeros(10, dtype=torch.int64),
        "weight": torch.zeros(96, 32),
        "bias": torch.zeros(96),
    } | change
    with pytest.raises(UsageError, match=said):
        packed_qkv(**{name: tensor.to(DEVICE) for name, tensor in tensors.items()})


@pytest.mark.skipif(DEVICE.type != "cuda", reason="large lists need a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels"), [(8, 50, 80, 384), (2, 50, 80, 1024), (8, 7, 7, 768)]
)
def test_large_lists_equal_the_reference(
    batch: int, height: int, width: int, channels: int, dtype: torch.dtype
) -> None:
    chosen = select(batch, height, width, share=0.25)
    h, gate, weight, bias = inputs(chosen, channels, dtype)
    qkv = packed_qkv(h, gate, chosen.token_of_slot, weight, bias)
    assert_close(qkv[: chosen.kept], expected(chosen, h, gate, weight, bias))

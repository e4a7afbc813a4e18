from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spt_deploy.errors import UsageError
from spt_deploy.model import reference
from spt_plugins import tiles
from spt_plugins import unpack_project as module
from spt_plugins.unpack_project import unpack_project
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


def inputs(chosen: Selection, channels: int, dtype: torch.dtype, residual: torch.dtype) -> tuple[Tensor, ...]:
    """o with NaN past the last kept token, where a kernel must not look; residual, weight and bias."""
    o = normal(chosen.token_of_slot.numel(), channels, dtype=dtype)
    o[chosen.kept :] = NAN
    x = normal(chosen.batch, chosen.tokens, channels, dtype=residual, seed=5)
    return o, x, *linear(channels, channels, dtype)


def unpack(chosen: Selection, o: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return unpack_project(o, chosen.token_of_slot, chosen.slot_of_token, residual, weight, bias)


def assert_unpacked(
    found: Tensor, chosen: Selection, o: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> None:
    """The reference's answer in float64, and dropped tokens bit by bit."""
    dropped = chosen.slot_of_token < 0
    assert torch.equal(found[dropped], residual[dropped])
    exact, wide, *parameters = double(o[: chosen.kept], residual, weight, bias)
    assert_close(found, reference.unpack_project(exact, chosen.exact, chosen.slot_of_token, wide, *parameters))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", KEPT)
def test_output_equals_the_reference_for_any_number_of_kept_tokens(kept: int | None, dtype: torch.dtype) -> None:
    chosen = select(2, 7, 9, kept=kept)
    tensors = inputs(chosen, 96, dtype, dtype)
    found = unpack(chosen, *tensors)
    assert found.dtype == dtype
    assert_unpacked(found, chosen, *tensors)


@pytest.mark.parametrize("residual", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "channels"), [(1, 32), (3, 160), (5, 64)])
def test_output_has_the_dtype_of_the_residual(
    batch: int, channels: int, dtype: torch.dtype, residual: torch.dtype
) -> None:
    chosen = select(batch, 1, 37, share=0.6)
    tensors = inputs(chosen, channels, dtype, residual)
    found = unpack(chosen, *tensors)
    assert found.dtype == residual
    dropped = chosen.slot_of_token < 0
    assert torch.equal(found[dropped], tensors[1][dropped])
    o, x, weight, bias = double(*tensors)
    wanted = reference.unpack_project(o[: chosen.kept], chosen.exact, chosen.slot_of_token, x, weight, bias)
    coarser = max((dtype, residual), key=lambda each: torch.finfo(each).eps)
    assert_close(found.to(coarser), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table", [tiles.LARGE, tiles.SMALL], ids=["large", "small"])
def test_every_tile_shape_writes_every_row(table: dict[int, tiles.Tile], dtype: torch.dtype) -> None:
    chosen = select(5, 7, 9, share=0.5)  # more than one large tile of slots, and an empty one
    o, residual, weight, bias = tensors = inputs(chosen, 64, dtype, dtype)
    form = module.variant(dtype, 64, 0, tile=table[dtype.itemsize])
    slots = rows = chosen.token_of_slot.numel()
    out = torch.full_like(residual, NAN)
    form.launch(
        module.grid(form, slots, rows),
        *(o, chosen.token_of_slot, chosen.slot_of_token, residual, weight, bias, slots, rows, out),
    )
    assert_unpacked(out, chosen, *tensors)


def test_a_list_without_tail_gives_the_same() -> None:
    chosen = select(3, 1, 37, share=0.5)
    o, *rest = inputs(chosen, 32, torch.float32, torch.float32)
    without = unpack_project(o[: chosen.kept], chosen.exact, chosen.slot_of_token, *rest)
    assert torch.equal(without, unpack(chosen, o, *rest))


def test_an_empty_list_copies_the_residual() -> None:
    chosen = select(3, 1, 37, kept=0)
    o, residual, *parameters = inputs(chosen, 32, torch.float16, torch.float32)
    copied = unpack_project(o[:0], chosen.exact, chosen.slot_of_token, residual, *parameters)
    assert torch.equal(copied, residual)
    assert copied.data_ptr() != residual.data_ptr()


def test_output_has_the_strides_that_torch_compile_was_promised() -> None:
    chosen = select(3, 1, 37, share=0.5)
    o, residual, *parameters = inputs(chosen, 32, torch.float32, torch.float32)
    strided = residual.transpose(1, 2).contiguous().transpose(1, 2)
    found = unpack(chosen, o, strided, *parameters)
    assert found.stride() == torch.empty_like(strided).stride() != residual.stride()
    assert torch.equal(found, unpack(chosen, o, residual, *parameters))


def test_the_residual_is_left_alone() -> None:
    chosen = select(2, 1, 37, share=0.5)
    o, residual, *parameters = inputs(chosen, 32, torch.float32, torch.float32)
    before = residual.clone()
    unpack(chosen, o, residual, *parameters)
    assert torch.equal(residual, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"o": torch.zeros(10, 32).double()}, "o is float64, and the kernels take"),
        ({"o": torch.zeros(10, 64)}, "o is 10 x 64, expected 10 x 32"),
        ({"residual": torch.zeros(2, 5, 32, dtype=torch.int32)}, "residual is int32, and the kernels take"),
        ({"residual": torch.zeros(2, 5, 40)}, "40 channels"),
        ({"slot_of_token": torch.zeros(10, dtype=torch.int64)}, "slot_of_token is 10, expected 2 x 5"),
        ({"token_of_slot": torch.zeros(10)}, "token_of_slot is float32, expected int64"),
        ({"weight": torch.zeros(96, 32)}, "weight is 96 x 32, expected 32 x 32"),
        ({"bias": torch.zeros(32).half()}, "bias is float16, expected float32"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(change: dict[str, Tensor], said: str) -> None:
    tensors = {
        "o": torch.zeros(10, 32),
        "token_of_slot": torch.zeros(10, dtype=torch.int64),
        "slot_of_token": torch.zeros(2, 5, dtype=torch.int64),
        "residual": torch.zeros(2, 5, 32),
        "weight": torch.zeros(32, 32),
        "bias": torch.zeros(32),
    } | change
    with pytest.raises(UsageError, match=said):
        unpack_project(**{name: tensor.to(DEVICE) for name, tensor in tensors.items()})


@pytest.mark.skipif(DEVICE.type != "cuda", reason="large lists need a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels"), [(8, 50, 80, 384), (2, 50, 80, 1024), (8, 7, 7, 768)]
)
def test_large_lists_equal_the_reference(
    batch: int, height: int, width: int, channels: int, dtype: torch.dtype
) -> None:
    chosen = select(batch, height, width, share=0.25)
    tensors = inputs(chosen, channels, dtype, dtype)
    assert_unpacked(unpack(chosen, *tensors), chosen, *tensors)

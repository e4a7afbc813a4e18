from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spt_deploy.config import DYNAMIC_PACKINGS
from spt_deploy.errors import UsageError
from spt_deploy.model import reference
from spt_plugins import packed_attention as module
from spt_plugins.packed_attention import packed_attention
from tests.spt_plugins.kernel_cases import DEVICE, DTYPES, KEPT, NAN, Selection, assert_close, double, normal, select


def sizes(chosen: Selection, heads: int, packing: str) -> dict[str, Any]:
    """The operator's attributes."""
    return {
        "heads": heads,
        "window": chosen.window,
        "tokens": chosen.tokens,
        "width": chosen.width,
        "packing": packing,
    }


def inputs(chosen: Selection, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """qkv with NaN past the last kept token, where a kernel must not look, and the bias table."""
    qkv = normal(chosen.token_of_slot.numel(), 96 * heads, dtype=dtype)
    qkv[chosen.kept :] = NAN
    return qkv, normal((2 * chosen.window - 1) ** 2, heads, dtype=dtype, seed=1)


def attend(chosen: Selection, qkv: Tensor, table: Tensor, heads: int, packing: str) -> Tensor:
    """The kernel's answer at the kept tokens."""
    lists = chosen.token_of_slot, chosen.cu_seqlens
    return packed_attention(qkv, *lists, table, **sizes(chosen, heads, packing))[: chosen.kept]


def expected(chosen: Selection, qkv: Tensor, table: Tensor, heads: int, packing: str) -> Tensor:
    """The reference's answer in float64."""
    qkv, table = double(qkv[: chosen.kept], table)
    return reference.packed_attention(qkv, chosen.exact, chosen.cu_seqlens, table, **sizes(chosen, heads, packing))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize("kept", KEPT)
def test_kept_rows_equal_the_reference_for_any_number_of_kept_tokens(
    kept: int | None, packing: str, dtype: torch.dtype
) -> None:
    chosen = select(3, 6, 9, kept=kept)
    qkv, table = inputs(chosen, 2, dtype)
    found = attend(chosen, qkv, table, 2, packing)
    assert found.dtype == dtype
    assert_close(found, expected(chosen, qkv, table, 2, packing))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(
    ("batch", "height", "width", "window", "heads"),
    [(1, 1, 37, 3, 3), (2, 5, 8, 3, 4), (4, 9, 11, 7, 1), (5, 3, 7, 4, 2), (1, 10, 13, 8, 2), (2, 5, 5, 1, 1)],
)
def test_kept_rows_equal_the_reference_for_any_size(
    batch: int, height: int, width: int, window: int, heads: int, packing: str, dtype: torch.dtype
) -> None:
    chosen = select(batch, height, width, share=0.7, window=window)
    qkv, table = inputs(chosen, heads, dtype)
    assert_close(attend(chosen, qkv, table, heads, packing), expected(chosen, qkv, table, heads, packing))


@pytest.mark.parametrize("scale", [0.5, 0.05])
def test_the_scale_may_be_another(scale: float) -> None:
    chosen = select(2, 7, 9, share=0.5)
    qkv, table = inputs(chosen, 2, torch.float32)
    lists, others = (chosen.token_of_slot, chosen.cu_seqlens), sizes(chosen, 2, "per-image")
    found = packed_attention(qkv, *lists, table, **others, scale=scale)[: chosen.kept]
    exact = double(qkv[: chosen.kept], table)
    wanted = reference.packed_attention(exact[0], chosen.exact, chosen.cu_seqlens, exact[1], **others, scale=scale)
    assert_close(found, wanted)
    assert not torch.allclose(wanted.float(), expected(chosen, qkv, table, 2, "per-image").float(), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_bias_table_may_be_of_float32(heads: int, dtype: torch.dtype) -> None:
    """As under autocast, which leaves the table alone."""
    chosen = select(2, 7, 9, share=0.5)
    qkv, table = inputs(chosen, heads, dtype)
    assert_close(attend(chosen, qkv, table.float(), heads, "batch"), expected(chosen, qkv, table, heads, "batch"))


def test_a_bias_table_at_an_odd_address_is_read_right() -> None:
    chosen = select(1, 5, 8, share=0.7, window=3)
    qkv, table = inputs(chosen, 2, torch.float16)
    odd = torch.cat([table.new_zeros(1), table.flatten()])[1:].view_as(table)
    assert odd.data_ptr() % 4 == 2
    assert torch.equal(attend(chosen, qkv, odd, 2, "batch"), attend(chosen, qkv, table, 2, "batch"))


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
def test_rows_past_the_last_kept_token_are_not_written(packing: str) -> None:
    chosen = select(3, 5, 8, share=0.5, window=3)
    qkv, table = inputs(chosen, 2, torch.float32)
    form = module.variant(torch.float32, 2, 3, packing)
    slots = chosen.token_of_slot.numel()
    o = qkv.new_full((slots, 64), NAN)
    form.launch(
        module.grid(form, slots, chosen.batch, chosen.tokens),
        *(qkv, chosen.token_of_slot, chosen.cu_seqlens, table, *module.sizes(slots, chosen.tokens, chosen.width), o),
    )
    assert torch.equal(o[: chosen.kept], attend(chosen, qkv, table, 2, packing))
    assert o[chosen.kept :].isnan().all()


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
def test_a_list_without_tail_gives_the_same_rows(packing: str) -> None:
    chosen = select(3, 5, 8, share=0.5, window=3)
    qkv, table = inputs(chosen, 1, torch.float32)
    exact = qkv[: chosen.kept], chosen.exact, chosen.cu_seqlens
    without = packed_attention(*exact, table, **sizes(chosen, 1, packing))
    assert torch.equal(without, attend(chosen, qkv, table, 1, packing))


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
def test_a_token_is_not_touched_by_what_other_images_hold(packing: str) -> None:
    chosen = select(3, 4, 5, share=0.5)  # all three in one container of 49, if packed across the batch
    qkv, table = inputs(chosen, 1, torch.float32)
    before = attend(chosen, qkv, table, 1, packing)
    first, last = chosen.cu_seqlens[1:3].tolist()
    others = torch.ones(chosen.kept, dtype=torch.bool, device=DEVICE)
    others[first:last] = False
    qkv[: chosen.kept][others] *= -50
    after = attend(chosen, qkv, table, 1, packing)
    assert torch.equal(after[first:last], before[first:last])
    assert not torch.equal(after[others], before[others])


def test_per_image_packing_gives_an_image_the_same_bits_alone_and_in_a_batch() -> None:
    chosen = select(3, 5, 8, share=0.6, window=3)
    qkv, table = inputs(chosen, 2, torch.float16)
    together = attend(chosen, qkv, table, 2, "per-image")
    for image in range(3):
        start, end = chosen.cu_seqlens[image : image + 2].tolist()
        lists = chosen.exact[start:end] - image * chosen.tokens, torch.tensor([0, end - start], device=DEVICE)
        alone = packed_attention(qkv[start:end], *lists, table, **sizes(chosen, 2, "per-image"))
        assert torch.equal(alone, together[start:end])


def test_large_scores_do_not_overflow() -> None:
    chosen = select(2, 7, 9, share=0.5)
    qkv, table = inputs(chosen, 2, torch.float16)
    qkv[: chosen.kept, :128] *= 50  # scores of thousands: exp of them is infinite in every dtype here
    found = attend(chosen, qkv, table, 2, "batch")
    assert_close(found, expected(chosen, qkv, table, 2, "batch"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": 9}, "Window 9, and the kernels take 1 to 8"),
        ({"heads": 33}, "1056 channels"),
        ({"packing": "static"}, "Packing 'static': choose one of batch, per-image"),
        ({"width": 7}, "40 tokens in rows of 7: give whole rows"),
        ({"qkv": torch.zeros(40, 95)}, "qkv is 40 x 95, expected 40 x 96"),
        ({"bias_table": torch.zeros(169, 1)}, "bias_table is 169 x 1, expected 25 x 1"),
        ({"bias_table": torch.zeros(25, 1).double()}, "bias_table is float64, and the kernels take"),
        ({"cu_seqlens": torch.zeros(2)}, "cu_seqlens is float32, expected int64"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(change: dict[str, Any], said: str) -> None:
    arguments = {
        "qkv": torch.zeros(40, 96),
        "token_of_slot": torch.full((40,), -1),
        "cu_seqlens": torch.zeros(2, dtype=torch.int64),
        "bias_table": torch.zeros(25, 1),
        **{"heads": 1, "window": 3, "tokens": 40, "width": 8, "packing": "batch"},
        **change,
    }
    with pytest.raises(UsageError, match=said):
        packed_attention(**{k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in arguments.items()})


@pytest.mark.skipif(DEVICE.type != "cuda", reason="large lists need a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("batch", "height", "width", "heads"), [(8, 50, 80, 12), (2, 25, 40, 32), (32, 14, 14, 3)])
def test_large_lists_equal_the_reference(
    batch: int, height: int, width: int, heads: int, packing: str, dtype: torch.dtype
) -> None:
    chosen = select(batch, height, width, share=0.25)
    qkv, table = inputs(chosen, heads, dtype)
    assert_close(attend(chosen, qkv, table, heads, packing), expected(chosen, qkv, table, heads, packing))

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spt_deploy.errors import UsageError
from spt_plugins import select_tokens as module
from spt_plugins.select_tokens import select_tokens
from spt_plugins.variant import Variant
from tests.spt_plugins.kernel_cases import DEVICE, KEPT, NAN, assert_lists, select

NOT_WRITTEN = -77


def launch(form: Variant, logits: Tensor, order: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One form of the kernel, on outputs that show what it leaves unwritten."""
    images, tokens = logits.shape
    outputs = (
        order.new_full((images * tokens,), NOT_WRITTEN),
        order.new_full((images, tokens), NOT_WRITTEN),
        order.new_full((images + 1,), NOT_WRITTEN),
    )
    form.launch(module.grid(form, images, tokens), logits, order, threshold, images, tokens, *outputs)
    return outputs


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kept", KEPT)
def test_lists_equal_the_reference_for_any_number_of_kept_tokens(kept: int | None, batch: int) -> None:
    chosen = select(batch, 7, 9, kept=kept)
    assert_lists(select_tokens(*chosen.scores), *chosen.scores)


@pytest.mark.parametrize("tile", module.TILES, ids=lambda tile: f"tile{tile.tile}")
@pytest.mark.parametrize("tokens", [37, 4097, 9000])
def test_every_form_writes_every_element_of_its_outputs(tile: module._Tile, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(3, tokens, generator=generator).to(DEVICE)
    order = torch.randperm(tokens, generator=generator).to(DEVICE)
    threshold = torch.tensor(0.5, device=DEVICE)
    assert_lists(launch(module.variant(tile.up_to), logits, order, threshold), logits, order, threshold)


def test_the_form_follows_the_size_of_an_image() -> None:
    forms = [module.variant(tokens) for tokens in (1, 512, 513, 16384, 16385, 2**31 - 1)]
    assert [form.constants["TILE"] for form in forms] == [256, 256, 1024, 1024, 4096, 4096]


def test_nan_scores_and_scores_at_the_threshold_are_dropped() -> None:
    logits = torch.tensor([[NAN, 0.5, 0.25, NAN], [0.25, 0.75, NAN, 1.0]], device=DEVICE)
    order = torch.tensor([3, 1, 0, 2], device=DEVICE)
    token_of_slot, slot_of_token, cu_seqlens = select_tokens(logits, order, torch.tensor(0.25, device=DEVICE))
    assert token_of_slot.tolist() == [1, 7, 5, -1, -1, -1, -1, -1]
    assert slot_of_token.tolist() == [[-1, 0, -1, -1], [-1, 2, -1, 1]]
    assert cu_seqlens.tolist() == [0, 1, 3]


@pytest.mark.parametrize(("threshold", "kept"), [(float("-inf"), 6), (float("inf"), 0), (NAN, 0)])
def test_thresholds_that_are_no_number_select_as_comparison_does(threshold: float, kept: int) -> None:
    logits = torch.arange(6.0, device=DEVICE).view(2, 3)
    order = torch.arange(3, device=DEVICE)
    assert select_tokens(logits, order, torch.tensor(threshold, device=DEVICE))[2][-1] == kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_threshold_that_was_converted_with_its_model_is_taken(dtype: torch.dtype) -> None:
    chosen = select(2, 7, 9, share=0.5)
    threshold = chosen.threshold.to(dtype)
    assert_lists(select_tokens(chosen.logits, chosen.order, threshold), chosen.logits, chosen.order, threshold.float())


def test_strided_scores_are_read_in_their_order() -> None:
    chosen = select(3, 7, 9, share=0.5)
    strided = chosen.logits.t().contiguous().t()
    assert not strided.is_contiguous()
    assert_lists(select_tokens(strided, chosen.order, chosen.threshold), *chosen.scores)


def test_no_image_gives_empty_lists() -> None:
    order = torch.arange(5, device=DEVICE)
    lists = select_tokens(torch.empty(0, 5, device=DEVICE), order, torch.tensor(0.0, device=DEVICE))
    assert [tuple(each.shape) for each in lists] == [(0,), (0, 5), (1,)]
    assert lists[2].item() == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logits": torch.zeros(2, 5, dtype=torch.float16)}, "logits is float16, expected float32"),
        ({"logits": torch.zeros(5)}, "logits has 1 dimensions, expected 2"),
        ({"order": torch.arange(5, dtype=torch.int32)}, "order is int32, expected int64"),
        ({"order": torch.arange(6)}, "order is 6, expected 5"),
        ({"threshold": torch.tensor(0)}, "threshold is int64, and the kernels take float16, bfloat16 or float32"),
        ({"threshold": torch.zeros(1)}, "threshold is 1, expected scalar"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(change: dict[str, Tensor], said: str) -> None:
    inputs = {"logits": torch.zeros(2, 5), "order": torch.arange(5), "threshold": torch.tensor(0.0)} | change
    with pytest.raises(UsageError, match=said):
        select_tokens(**{name: tensor.to(DEVICE) for name, tensor in inputs.items()})


@pytest.mark.skipif(DEVICE.type != "cuda", reason="large lists need a GPU")
@pytest.mark.parametrize(("batch", "tokens"), [(32, 4000), (8, 64000), (1, 64000)])
def test_large_lists_equal_the_reference(batch: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    logits = torch.randn(batch, tokens, generator=generator).to(DEVICE)
    order = torch.randperm(tokens, generator=generator).to(DEVICE)
    threshold = torch.tensor(0.5, device=DEVICE)
    assert_lists(select_tokens(logits, order, threshold), logits, order, threshold)

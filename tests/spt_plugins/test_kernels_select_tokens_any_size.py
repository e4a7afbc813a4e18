"""A file of its own: machines with a GPU need not have hypothesis, and run the kernel's other tests without it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_plugins.select_tokens import select_tokens
from tests.spt_plugins.kernel_cases import DEVICE, assert_lists


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 5), tokens=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_lists_equal_the_reference_for_any_size_order_and_share(
    batch: int, tokens: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(batch, tokens, generator=generator).to(DEVICE)
    order = torch.randperm(tokens, generator=generator).to(DEVICE)
    threshold = torch.tensor(1 - share, device=DEVICE)
    assert_lists(select_tokens(logits, order, threshold), logits, order, threshold)

"""Batch ranges: what is written is what is meant, and every batch fits a size that is run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.engine.batches import LARGEST, BatchRange
from spt_deploy.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8", (8, 8, 8)), ("1:8:16", (1, 8, 16)), ("1:1:1", (1, 1, 1)), (" 2 : 3 : 4 ", (2, 3, 4))],
)
def test_a_number_is_fixed_and_three_are_a_range(text: str, expected: tuple[int, int, int]) -> None:
    batch = BatchRange.parse(text)
    assert (batch.smallest, batch.usual, batch.largest) == expected
    assert batch.is_fixed == (expected[0] == expected[2])
    assert BatchRange.parse(str(batch)) == batch


@pytest.mark.parametrize("text", ["", "a", "1:8", "1:2:3:4", "-1", "1:8:", "8:1:16", "16:8:1", "0", "0:1:2", "9999999"])
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match=r"1:8:16|MIN:OPT:MAX"):
        BatchRange.parse(text)


@given(st.lists(st.integers(1, LARGEST), min_size=3, max_size=3), st.data())
def test_every_batch_up_to_the_largest_fits_a_size_of_the_range(numbers: list[int], data: st.DataObject) -> None:
    batch = BatchRange(*sorted(numbers))
    images = data.draw(st.integers(1, batch.largest))
    size = batch.padded(images)
    assert batch.smallest <= size <= batch.largest
    assert size >= images
    assert size in batch.sizes
    # Never more padding than images, but for what the smallest size asks.
    assert size == batch.smallest or size < 2 * images
    assert len(batch.sizes) <= LARGEST.bit_length() + 3


def test_the_usual_size_is_never_padded() -> None:
    assert BatchRange(1, 6, 12).padded(6) == 6
    assert BatchRange(1, 6, 12).padded(7) == 8
    assert BatchRange(8, 8, 8).sizes == (8,)

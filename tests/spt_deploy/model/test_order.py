from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.model.order import (
    effective_shift,
    relative_position_index,
    shift_mask,
    window_order,
    window_place,
)
from tests.spt_deploy.model.brute_force import token_order

CPU = torch.device("cpu")
SIDE = st.integers(1, 30)


@given(height=SIDE, width=SIDE, window=st.integers(1, 8), data=st.data())
def test_window_order_is_a_permutation_listed_window_by_window(
    height: int, width: int, window: int, data: st.DataObject
) -> None:
    shift = data.draw(st.integers(0, window - 1))
    order = window_order(height, width, window, shift, CPU)
    assert sorted(order.tolist()) == list(range(height * width))
    assert order.tolist() == token_order(height, width, window, shift)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (14, 21), (28, 7)])
def test_window_order_on_whole_windows_is_roll_then_partition(height: int, width: int, shift: int) -> None:
    tokens = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    partition = tokens.view(height // 7, 7, width // 7, 7).transpose(1, 2).flatten()
    assert torch.equal(window_order(height, width, 7, shift, CPU), partition)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_relative_position_index_counts_the_difference_of_rows_then_columns(window: int) -> None:
    index = relative_position_index(window, CPU)
    for i in range(window * window):
        for j in range(window * window):
            dy, dx = i // window - j // window, i % window - j % window
            assert index[i, j] == (dy + window - 1) * (2 * window - 1) + dx + window - 1


def test_shift_mask_separates_tokens_that_were_no_neighbours_before_the_roll() -> None:
    height, width, window, shift = 14, 21, 7, 3
    mask = shift_mask(height, width, window, shift, CPU)
    place = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    windows = place.view(2, 7, 3, 7).transpose(1, 2).reshape(6, 49)
    y, x = windows // width, windows % width
    near = ((y[:, :, None] - y[:, None, :]).abs() < window) & ((x[:, :, None] - x[:, None, :]).abs() < window)
    assert torch.equal(mask == 0, near)
    assert torch.equal(mask == -100, ~near)


@pytest.mark.parametrize(
    ("height", "width", "shift"),
    [(7, 7, 0), (7, 100, 0), (100, 5, 0), (8, 8, 3), (100, 8, 3)],
)
def test_blocks_do_not_shift_where_one_window_spans_the_shorter_side(height: int, width: int, shift: int) -> None:
    assert effective_shift(height, width, 7, 3) == shift


@pytest.mark.parametrize(("height", "width", "shift"), [(14, 14, 0), (14, 14, 3), (9, 20, 0), (9, 20, 3), (8, 8, 3)])
def test_window_place_takes_each_token_back_to_where_it_was(height: int, width: int, shift: int) -> None:
    window = 7
    padded = height + -height % window, width + -width % window
    numbers = torch.arange(padded[0] * padded[1])
    in_windows = numbers[window_order(*padded, window, shift, CPU)]
    back = in_windows[window_place(height, width, window, shift, CPU)]
    assert back.equal(numbers.view(padded)[:height, :width].reshape(-1))
    rolled = torch.roll(numbers.view(padded), (-shift, -shift), (0, 1))
    by_window = rolled.view(padded[0] // window, window, padded[1] // window, window).transpose(1, 2)
    assert in_windows.equal(by_window.reshape(-1))

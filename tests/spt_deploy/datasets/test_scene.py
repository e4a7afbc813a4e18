"""The mask of a scene covers its objects, at any size."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.datasets.scene import mask_in_input, resize_mask
from spt_deploy.preprocess import Preprocessing
from tests.spt_deploy.datasets.data_formats import Thing
from tests.spt_deploy.datasets.scenes import drawn_scene


def test_a_mask_of_outlines_is_no_larger_than_the_shapes() -> None:
    scene = drawn_scene([(10, 10, 12, 8, True)], outlines=True)
    preprocessing = Preprocessing(size=(96, 128), mode="letterbox")
    mask = mask_in_input(scene, preprocessing)
    assert mask.sum() == 4 * Thing("car", (10, 10, 34, 26), is_l=True).mask().sum()
    assert mask_in_input(drawn_scene([(10, 10, 12, 8, True)], outlines=False), preprocessing).sum() == 4 * 24 * 16


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_mask_of_another_size_has_every_pixel_that_a_one_touches(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < 0.1).astype(np.uint8)
    out = resize_mask(mask, (new_height, new_width))
    expected = np.zeros((new_height, new_width), dtype=np.uint8)
    for y, x in zip(*np.nonzero(mask), strict=True):
        rows = slice(y * new_height // height, -(-(y + 1) * new_height // height))
        columns = slice(x * new_width // width, -(-(x + 1) * new_width // width))
        expected[rows, columns] = 1
    np.testing.assert_array_equal(out, expected)

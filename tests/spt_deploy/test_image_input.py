"""What a model takes: buffers, batches and made-up images of the one kind or the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spt_deploy.errors import InputError
from spt_deploy.image_input import ImageInput, same_for_both
from spt_deploy.preprocess import Preprocessing

PREPROCESSING = Preprocessing((40, 72), "letterbox")
NUMBERS, BYTES = ImageInput(PREPROCESSING), ImageInput(PREPROCESSING, uint8=True)
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 40, 72), dtype=np.float32)


def test_each_kind_says_what_it_takes() -> None:
    assert str(NUMBERS) == "B x 3 x 40 x 72 float32, RGB, normalised"
    assert str(BYTES) == "B x 40 x 72 x 3 uint8, RGB, not normalised"


@pytest.mark.parametrize("taken", [NUMBERS, BYTES], ids=str)
def test_what_is_prepared_fills_a_buffer_and_is_a_batch(taken: ImageInput) -> None:
    buffer = taken.empty(2)
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    for row in buffer:
        assert taken.prepare(image, out=row) is row
    taken.check(buffer, "x.onnx")
    np.testing.assert_array_equal(buffer, np.stack([taken.prepare(image)] * 2))


@pytest.mark.parametrize(
    ("taken", "images", "match"),
    [
        (BYTES, IMAGES, r"shape \(2, 3, 40, 72\) and dtype float32; x\.onnx takes B x 40 x 72 x 3 uint8, RGB, not"),
        (NUMBERS, BYTES.empty(1), r"shape \(1, 40, 72, 3\) and dtype uint8; x\.onnx takes B x 3 x 40 x 72 float32"),
        (BYTES, BYTES.empty(0), "B >= 1"),
        (BYTES, BYTES.empty(1)[0], "B >= 1"),
        (BYTES, BYTES.empty(1).astype(np.float32), "takes .* uint8"),
        (BYTES, np.zeros((1, 3, 40, 72), np.uint8), "takes B x 40 x 72 x 3"),
    ],
    ids=["numbers for bytes", "bytes for numbers", "no image", "no batch", "numbers by pixel", "planes of bytes"],
)
def test_what_is_no_batch_is_named_with_what_is_expected(taken: ImageInput, images: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        taken.check(images, "x.onnx")


def test_images_of_one_kind_become_the_other() -> None:
    rounded = BYTES.of(IMAGES)
    BYTES.check(rounded, "")
    back = NUMBERS.of(rounded)
    NUMBERS.check(back, "")
    between = np.abs(IMAGES) < 1.5  # no byte is blacker than black
    assert np.abs(back - IMAGES)[between].max() < 0.5 / 255 / 0.224 + 1e-5
    assert NUMBERS.of(IMAGES) is IMAGES
    assert BYTES.of(rounded) is rounded


@pytest.mark.parametrize(("one", "other"), [(BYTES, NUMBERS), (NUMBERS, BYTES), (BYTES, BYTES)], ids=str)
def test_two_of_which_one_takes_bytes_see_the_same_picture(one: ImageInput, other: ImageInput) -> None:
    first, second = same_for_both(one, other, IMAGES)
    one.check(first, "")
    other.check(second, "")
    np.testing.assert_array_equal(NUMBERS.of(first), NUMBERS.of(second))


def test_two_that_take_numbers_see_the_very_images() -> None:
    first, second = same_for_both(NUMBERS, NUMBERS, IMAGES)
    assert first is IMAGES
    assert second is IMAGES

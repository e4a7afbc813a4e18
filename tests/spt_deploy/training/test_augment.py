"""Boxes stay on their objects through flips, crops and preprocessing."""

from __future__ import annotations

import numpy as np
import pytest

from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import Crop, augment, crop, flip
from spt_deploy.training.dataset import box_mask

HEIGHT, WIDTH = 60, 90


def scene(x: int, y: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Black, with a white square and its box."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[y : y + side, x : x + side] = 255
    return image, np.array([[x, y, x + side, y + side]], dtype=np.float32)


def bounds(bright: np.ndarray) -> list[int]:
    """xyxy of the true pixels, x1 and y1 past the last."""
    rows, columns = np.nonzero(bright)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", range(25))
def test_a_box_follows_its_square_through_all_augmentation(seed: int) -> None:
    random = np.random.default_rng(seed)
    image, boxes = scene(int(random.integers(20, 50)), int(random.integers(15, 25)), 18)
    out, moved = augment(image, boxes, random)
    assert moved is not None
    # The brightest that background becomes is far below the darkest that the square becomes; the fill is between.
    np.testing.assert_array_equal(bounds(out.min(axis=2) > 150), moved[0])


@pytest.mark.parametrize("seed", range(10))
def test_a_label_mask_covers_the_square_in_the_models_input(seed: int) -> None:
    random = np.random.default_rng(seed)
    image, boxes = augment(*scene(40, 20, 21), random)
    assert boxes is not None
    preprocessing = Preprocessing(size=(64, 96), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    bright = preprocessing.apply(image).min(axis=0) > 0.6
    mask = box_mask(preprocessing.boxes_to_input(boxes, image.shape[:2]), preprocessing.size)
    assert mask[bright].all()
    assert mask.sum() <= 1.3 * bright.sum()  # and not much more: one pixel of blur on each side


def test_flipping_twice_is_nothing() -> None:
    image, boxes = scene(10, 20, 15)
    again, box = flip(*flip(image, boxes))
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(box, boxes)


def test_a_box_that_leaves_the_image_is_gone_and_one_at_the_edge_is_cut() -> None:
    image, _ = scene(0, 0, 5)
    boxes = np.array([[0, 0, 10, 10], [30, 20, 50, 40]], dtype=np.float32)
    _, left = crop(image, boxes, Crop(top=10, left=20, height=20, width=20))
    np.testing.assert_array_equal(left, [[10, 10, 20, 20]])


def test_a_crop_past_the_edge_is_filled_with_the_mean_colour() -> None:
    image, _ = scene(0, 0, 5)
    out, _ = crop(image, None, Crop(top=-6, left=-8, height=HEIGHT + 12, width=WIDTH + 16))
    assert out.shape == (HEIGHT + 12, WIDTH + 16, 3)
    np.testing.assert_array_equal(out[6:-6, 8:-8], image)
    normalised = Preprocessing(size=(HEIGHT + 12, WIDTH + 16)).apply(out)
    assert np.abs(normalised[:, :6]).max() < 0.01


def test_the_same_seed_gives_the_same_image() -> None:
    image, boxes = scene(10, 20, 15)
    first, second = (augment(image, boxes, np.random.default_rng((3, 1, 4))) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[0], augment(image, boxes, np.random.default_rng((3, 2, 4)))[0])


def test_a_mask_has_every_pixel_that_a_box_touches() -> None:
    mask = box_mask(np.array([[1.5, 2.0, 3.2, 4.00001], [-5.0, 7.5, 1.0, 99.0]], dtype=np.float32), (9, 6))
    expected = np.zeros((9, 6), dtype=np.uint8)
    expected[2:4, 1:4] = 1
    expected[7:, :1] = 1
    np.testing.assert_array_equal(mask, expected)

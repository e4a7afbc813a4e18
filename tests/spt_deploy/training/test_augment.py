"""Boxes stay on their objects through flips, crops and preprocessing."""

from __future__ import annotations

import numpy as np
import pytest

from spt_deploy.datasets.objects import Objects, box_mask
from spt_deploy.datasets.scene import Scene, mask_in_input
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import Augmentation, Crop, augment, crop, flip

HEIGHT, WIDTH = 60, 90


def scene(x: int, y: int, side: int) -> Scene:
    """Black, with a white square and its box."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[y : y + side, x : x + side] = 255
    return Scene.of(image, Objects.from_boxes([x, y, x + side, y + side], 0))


def bounds(bright: np.ndarray) -> list[int]:
    """xyxy of the true pixels, x1 and y1 past the last."""
    rows, columns = np.nonzero(bright)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", range(25))
def test_a_box_follows_its_square_through_all_augmentation(seed: int) -> None:
    random = np.random.default_rng(seed)
    before = scene(int(random.integers(20, 50)), int(random.integers(15, 25)), 18)
    after = augment(before, Augmentation(), random)
    # The brightest that background becomes is far below the darkest that the square becomes; the fill is between.
    np.testing.assert_array_equal(bounds(after.image.min(axis=2) > 150), after.boxes[0])


@pytest.mark.parametrize("seed", range(10))
def test_a_label_mask_covers_the_square_in_the_models_input(seed: int) -> None:
    random = np.random.default_rng(seed)
    after = augment(scene(40, 20, 21), Augmentation(), random)
    preprocessing = Preprocessing(size=(64, 96), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    bright = preprocessing.apply(after.image).min(axis=0) > 0.6
    mask = mask_in_input(after, preprocessing)
    assert mask[bright].all()
    assert mask.sum() <= 1.3 * bright.sum()  # and not much more: one pixel of blur on each side


def test_an_image_is_mirrored_as_often_as_flip_says() -> None:
    left = scene(0, 20, 20)

    def mirrored(share: float) -> int:
        how = Augmentation(share, window=(1.0, 1.0), aspect=0.0)
        after = [augment(left, how, np.random.default_rng(seed)) for seed in range(40)]
        return sum(bool(one.boxes[0, 0] > WIDTH / 2) for one in after)

    assert (mirrored(0.0), mirrored(1.0)) == (0, 40)
    assert 10 < mirrored(0.5) < 30


def test_flipping_twice_is_nothing() -> None:
    once = scene(10, 20, 15)
    again = flip(flip(once))
    np.testing.assert_array_equal(again.image, once.image)
    np.testing.assert_array_equal(again.boxes, once.boxes)


def test_a_box_that_leaves_the_image_is_gone_and_one_at_the_edge_is_cut() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    objects = Objects.from_boxes([[0, 0, 10, 10], [30, 20, 50, 40], [38, 25, 80, 28]], [1, 2, 3])
    cut = crop(Scene.of(image, objects), Crop(top=10, left=20, height=20, width=20))
    np.testing.assert_array_equal(cut.boxes, [[10, 10, 20, 20], [18, 15, 20, 18]])
    assert cut.labels.tolist() == [2, 3]
    assert cut.crowd.tolist() == [False, True]  # of the last, a twentieth is left: too little to be found


def test_a_crop_past_the_edge_is_filled_with_the_mean_colour() -> None:
    before = scene(0, 0, 5)
    out = crop(before, Crop(top=-6, left=-8, height=HEIGHT + 12, width=WIDTH + 16)).image
    assert out.shape == (HEIGHT + 12, WIDTH + 16, 3)
    np.testing.assert_array_equal(out[6:-6, 8:-8], before.image)
    normalised = Preprocessing(size=(HEIGHT + 12, WIDTH + 16)).apply(out)
    assert np.abs(normalised[:, :6]).max() < 0.01


def test_the_same_seed_gives_the_same_image() -> None:
    first, second, other = (
        augment(scene(10, 20, 15), Augmentation(), np.random.default_rng(seed)).image
        for seed in ((3, 1, 4), (3, 1, 4), (3, 2, 4))
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_mask_has_every_pixel_that_a_box_touches() -> None:
    mask = box_mask(np.array([[1.5, 2.0, 3.2, 4.00001], [-5.0, 7.5, 1.0, 99.0]], dtype=np.float32), (9, 6))
    expected = np.zeros((9, 6), dtype=np.uint8)
    expected[2:4, 1:4] = 1
    expected[7:, :1] = 1
    np.testing.assert_array_equal(mask, expected)

"""Outlines as files write them, drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from spt_deploy.datasets.objects import Objects
from spt_deploy.datasets.outlines import NumberedImage, Polygons, RunLength, counts_of
from spt_deploy.errors import SourceError


def test_a_polygon_covers_the_pixels_whose_centre_it_holds() -> None:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:20, :30] + 0.5
    for _ in range(50):
        ring = (random.random((int(random.integers(3, 8)), 2)) * (40, 30) - 5).astype(np.float32)
        expected = np.zeros((20, 30), dtype=bool)
        for (x0, y0), (x1, y1) in zip(ring.astype(float), np.roll(ring, -1, axis=0).astype(float), strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                expected ^= ((y0 <= rows) != (y1 <= rows)) & (columns >= x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
        mask = np.zeros((20, 30), dtype=np.uint8)
        assert Polygons((ring,)).draw(mask) == expected.any()
        np.testing.assert_array_equal(mask, expected)


def test_an_outline_thinner_than_a_pixel_leaves_its_box() -> None:
    plain = Objects.from_boxes([[3, 3, 9, 4]], 0)
    thin = Polygons((np.array([[3, 3.1], [9, 3.1], [9, 3.2]], dtype=np.float32),))
    objects = Objects(plain.boxes, plain.labels, plain.crowd, plain.areas, (thin,))
    assert objects.mask((10, 12)).sum() == 6


def test_run_lengths_as_numbers_and_as_cocos_text_are_the_same() -> None:
    # An image of 4 x 6 with one run over a column's end; the text is pycocotools' own for it.
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[2:, 1] = mask[:3, 2] = 1
    assert counts_of(mask) == [6, 5, 13]
    for counts in (np.array([6, 5, 13], dtype=np.int32), "65="):
        out = np.zeros_like(mask)
        assert RunLength((4, 6), counts, "here").draw(out)
        np.testing.assert_array_equal(out, mask)


def test_run_lengths_of_another_size_are_named() -> None:
    with pytest.raises(SourceError, match=r"here has a mask of 6 x 4 pixels in an image of 4 x 4"):
        RunLength((4, 6), "65=", "here").draw(np.zeros((4, 4), dtype=np.uint8))
    with pytest.raises(SourceError, match=r"here has a mask whose runs are 11 pixels long together; expected 24"):
        RunLength((4, 6), np.array([6, 5], dtype=np.int32), "here").draw(np.zeros((4, 6), dtype=np.uint8))


def test_object_numbers_that_are_no_image_or_of_other_colours_are_named(tmp_path: Path) -> None:
    path = tmp_path / "numbers.png"
    path.write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"numbers\.png is no 8-bit image"):
        NumberedImage(path, 1).draw(np.zeros((4, 4), dtype=np.uint8))
    other = tmp_path / "other.png"
    cv2.imwrite(str(other), np.full((4, 4, 3), 77, dtype=np.uint8))
    with pytest.raises(SourceError, match=r"other\.png has colours that are not of VOC's palette"):
        NumberedImage(other, 1).draw(np.zeros((4, 4), dtype=np.uint8))

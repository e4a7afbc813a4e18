"""What is drawn stays inside its box and its mask through all that augmentation and preprocessing do."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.errors import SourceError
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import Augmentation, augment
from spt_deploy.training.dataset import Broken, Key, Record, Sample, Samples
from spt_deploy.training.mosaic import mosaic
from spt_deploy.training.objects import Objects
from spt_deploy.training.outlines import NumberedImage, Polygons, RunLength, counts_of
from spt_deploy.training.scene import Scene, mask_in_input, resize_mask
from tests.spt_deploy.training.data_formats import HEIGHT, WIDTH, Thing

DETECT = Augmentation.for_task("detect")
HUES = 255 * np.eye(3, dtype=np.uint8)  # one channel a class, BGR


def scene_of(things: list[tuple[int, int, int, int, bool]], outlines: bool) -> Scene:
    """Grey, with a rectangle or an L for each x, y, half width, half height, whether an L; later ones hide earlier."""
    image = np.full((HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
    shapes, boxes, labels = [], [], []
    for index, (x, y, half_width, half_height, is_l) in enumerate(things):
        thing = Thing("car", (x, y, min(WIDTH, x + 2 * half_width), min(HEIGHT, y + 2 * half_height)), is_l=is_l)
        image[thing.mask() > 0] = HUES[index % 3]
        boxes.append(thing.box)
        labels.append(index % 3)
        shapes.append(Polygons((np.array(thing.polygon(), dtype=np.float32).reshape(-1, 2),)))
    plain = Objects.from_boxes(boxes, labels)
    objects = Objects(plain.boxes, plain.labels, plain.crowd, plain.areas, tuple(shapes) if outlines else None)
    return Scene.of(image, objects)


things = st.tuples(
    st.integers(0, WIDTH - 6), st.integers(0, HEIGHT - 6), st.integers(3, 14), st.integers(3, 14), st.booleans()
)


def check_colours_are_covered(scene: Scene, size: tuple[int, int]) -> None:
    """Every pixel of a class's colour lies in a box of the class, and in the mask."""
    preprocessing = Preprocessing(size=size, mode="letterbox", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = preprocessing.apply(scene.image)[::-1]  # BGR
    boxes = preprocessing.boxes_to_input(scene.boxes, scene.size)
    mask = mask_in_input(scene, preprocessing)
    for label in range(3):
        others = np.delete(image, label, axis=0).max(axis=0)
        rows, columns = np.nonzero(image[label] - others > 0.55)
        x, y = columns[:, None] + 0.5, rows[:, None] + 0.5
        x0, y0, x1, y1 = boxes[scene.labels == label].T
        inside = (x0 - 0.6 <= x) & (x <= x1 + 0.6) & (y0 - 0.6 <= y) & (y <= y1 + 0.6)
        assert inside.any(axis=1).all()
        assert mask[rows, columns].all()


@settings(max_examples=40, deadline=None)
@given(st.lists(things, max_size=4), st.booleans(), st.integers(0, 2**32 - 1))
def test_objects_stay_in_their_boxes_and_mask_through_augmentation(
    drawn: list[tuple[int, int, int, int, bool]], outlines: bool, seed: int
) -> None:
    after = augment(scene_of(drawn, outlines), DETECT, np.random.default_rng(seed))
    check_colours_are_covered(after, (64, 96))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(things, max_size=2), min_size=4, max_size=4), st.booleans(), st.integers(0, 2**32 - 1))
def test_objects_stay_in_their_boxes_and_mask_through_a_mosaic(
    drawn: list[list[tuple[int, int, int, int, bool]]], outlines: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    whole = mosaic([scene_of(of_one, outlines) for of_one in drawn], (64, 96), random)
    assert whole.size == (64, 96)
    check_colours_are_covered(whole, (64, 96))
    check_colours_are_covered(augment(whole, DETECT, random), (96, 64))


def test_a_mask_of_outlines_is_no_larger_than_the_shapes() -> None:
    scene = scene_of([(10, 10, 12, 8, True)], outlines=True)
    preprocessing = Preprocessing(size=(96, 128), mode="letterbox")
    mask = mask_in_input(scene, preprocessing)
    assert mask.sum() == 4 * Thing("car", (10, 10, 34, 26), is_l=True).mask().sum()
    assert mask_in_input(scene_of([(10, 10, 12, 8, True)], outlines=False), preprocessing).sum() == 4 * 24 * 16


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


def write(folder: Path, count: int = 4) -> tuple[Record, ...]:
    folder.mkdir()
    records = []
    for index in range(count):
        scene = scene_of([(5 + 9 * index, 8, 6, 5 + index, True), (30, 20, 8, 8, False)], outlines=True)
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), scene.image)
        outlines = (
            None,
            RunLength((HEIGHT, WIDTH), np.array(counts_of(scene.image[:, :, 1] // 255), dtype=np.int32), "here"),
        )
        boxes = Objects.from_boxes(scene.boxes, scene.labels, [False, True])
        objects = Objects(boxes.boxes, boxes.labels, boxes.crowd, boxes.areas, outlines)
        records.append(Record(path, labels=(0, 1), objects=objects, image_id=10 * index, size=(HEIGHT, WIDTH)))
    return tuple(records)


def test_a_sample_has_what_its_record_says_in_pixels_of_the_input(tmp_path: Path) -> None:
    records = write(tmp_path / "images")
    preprocessing = Preprocessing(size=(96, 96), mode="letterbox")  # 64 x 48 becomes 96 x 72, 12 rows above
    sample = Samples(records, preprocessing, classes=5)[Key(0, 1)]
    assert isinstance(sample, Sample)
    assert sample.image_id == 10
    assert sample.source_size == (HEIGHT, WIDTH)
    assert sample.label == -1
    assert sample.targets.tolist() == [1, 1, 0, 0, 0]
    assert sample.boxes.tolist() == [[21, 24, 39, 42], [45, 42, 69, 66]]
    assert sample.box_labels.tolist() == [0, 1]
    assert sample.crowd.tolist() == [False, True]
    assert sample.mask is not None
    assert sample.mask.sum() == (1.5 * 12) * (1.5 * 12) + (1.5 * 16) * (1.5 * 16)  # the first has but its box


def test_a_mosaic_is_the_same_in_every_process_and_survives_a_broken_image(tmp_path: Path) -> None:
    records = write(tmp_path / "images")
    preprocessing = Preprocessing(size=(64, 96), mode="letterbox")
    how = Augmentation.for_task("detect", mosaic=1.0)
    first, second = (
        Samples(records, preprocessing, classes=3, augment_seed=1, augmentation=how, cache_bytes=cache)
        for cache in (0, 1 << 20)
    )
    counts = set()
    for place in (2, 0, 1, 3):
        one, other = first[Key(1, place)], second[Key(1, place)]
        assert isinstance(one, Sample)
        assert isinstance(other, Sample)
        assert one.image.equal(other.image)
        assert one.boxes.equal(other.boxes)
        counts.add(len(one.boxes))
    assert max(counts) > 2  # of several images
    records[3].path.write_bytes(b"no image")
    broken = Samples(records, preprocessing, classes=3, augment_seed=1, augmentation=how)
    assert [isinstance(broken[Key(1, place)], Broken) for place in range(4)] == [False, False, False, True]


def test_annotations_of_another_size_or_outside_are_named(tmp_path: Path) -> None:
    record = write(tmp_path / "images", count=1)[0]
    preprocessing = Preprocessing(size=(64, 64), mode="letterbox")
    for wrong, sentence in (
        (
            Record(record.path, objects=record.objects, size=(WIDTH, HEIGHT)),
            "64 x 48 pixels and its annotations .*48 x 64",
        ),
        (
            Record(record.path, objects=Objects.from_boxes([[5, 5, 99, 9]], 0)),
            r"box 5, 5, 99, 9 .* object 0 lies outside",
        ),
    ):
        broken = Samples((wrong,), preprocessing)[Key(0, 0)]
        assert isinstance(broken, Broken)
        assert re.search(sentence, broken.reason)


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

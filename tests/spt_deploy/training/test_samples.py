"""What is drawn stays inside its box and its mask through all that augmentation and preprocessing do."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.datasets.dataset import Broken, Record
from spt_deploy.datasets.objects import Objects
from spt_deploy.datasets.outlines import RunLength, counts_of
from spt_deploy.datasets.scene import Scene, mask_in_input
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import Augmentation, augment
from spt_deploy.training.mosaic import mosaic
from spt_deploy.training.samples import Key, Sample, Samples
from tests.spt_deploy.datasets.data_formats import HEIGHT, WIDTH
from tests.spt_deploy.datasets.scenes import drawn_scene

DETECT = Augmentation.for_task("detect")

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
    after = augment(drawn_scene(drawn, outlines), DETECT, np.random.default_rng(seed))
    check_colours_are_covered(after, (64, 96))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(things, max_size=2), min_size=4, max_size=4), st.booleans(), st.integers(0, 2**32 - 1))
def test_objects_stay_in_their_boxes_and_mask_through_a_mosaic(
    drawn: list[list[tuple[int, int, int, int, bool]]], outlines: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    whole = mosaic([drawn_scene(of_one, outlines) for of_one in drawn], (64, 96), random)
    assert whole.size == (64, 96)
    check_colours_are_covered(whole, (64, 96))
    check_colours_are_covered(augment(whole, DETECT, random), (96, 64))


def write(folder: Path, count: int = 4) -> tuple[Record, ...]:
    folder.mkdir()
    records = []
    for index in range(count):
        scene = drawn_scene([(5 + 9 * index, 8, 6, 5 + index, True), (30, 20, 8, 8, False)], outlines=True)
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

"""Every reader finds the truth that a data set was written from, as whatever tool writes it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spt_deploy.datasets.bdd_json import CLASSES_2018, CLASSES_2020
from spt_deploy.datasets.dataset import Record
from spt_deploy.datasets.formats import FORMATS, read_data
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import Augmentation
from spt_deploy.training.loader import Loader
from spt_deploy.training.samples import Samples
from tests.spt_deploy.datasets.data_formats import (
    CATEGORY_IDS,
    CVAT,
    HEIGHT,
    NAMES,
    SPLITS,
    WIDTH,
    Picture,
    Truth,
    Writer,
    make_truth,
    write_bdd,
    write_bdd_of_images,
    write_coco,
    write_voc,
    write_voc_by_folder,
    write_voc_of_cvat,
    write_yolo,
)


def write_coco_of_cvat(folder: Path, truth: Truth) -> Path:
    write_coco(folder, truth)
    (folder / "images").mkdir()
    for split, name in CVAT.items():
        (folder / f"{split}2017").rename(folder / "images" / name)
        (folder / f"annotations/instances_{split}2017.json").rename(folder / f"annotations/instances_{name}.json")
    return folder


def write_coco_without_sizes(folder: Path, truth: Truth) -> Path:
    write_coco(folder, truth)
    for number, path in enumerate(sorted((folder / "annotations").iterdir())):
        content = json.loads(path.read_text(encoding="utf-8"))
        for image in content["images"]:
            image |= {"height": None, "width": None} if number else {"height": image.pop("width")}
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


# name, how it is written, format, whether it has outlines
DATA: list[tuple[str, Writer, str, bool]] = [
    ("coco", write_coco, "coco", True),
    ("coco with short names", lambda f, t: write_coco(f, t, "short"), "coco", True),
    ("coco of Roboflow", lambda f, t: write_coco(f, t, "roboflow"), "coco", True),
    ("coco of CVAT", write_coco_of_cvat, "coco", True),
    ("coco of Label Studio, without sizes", write_coco_without_sizes, "coco", True),
    ("coco with boxes only", lambda f, t: write_coco(f, t, outlines=False), "coco", False),
    ("yolo", write_yolo, "yolo", True),
    ("yolo of Roboflow", lambda f, t: write_yolo(f, t, "roboflow"), "yolo", True),
    ("yolo with lists", lambda f, t: write_yolo(f, t, "list"), "yolo", True),
    ("yolo with boxes only", lambda f, t: write_yolo(f, t, outlines=False), "yolo", False),
    ("voc", write_voc, "voc", True),
    ("voc in a folder above", lambda f, t: write_voc(f / "VOCdevkit/VOC2012", t) and f, "voc", True),
    ("voc of CVAT", write_voc_of_cvat, "voc", True),
    ("voc of Roboflow", write_voc_by_folder, "voc", False),
    ("voc with XML in a folder", lambda f, t: write_voc_by_folder(f, t, "images", "annotations"), "voc", False),
    ("voc with boxes only", lambda f, t: write_voc(f, t, outlines=False), "voc", False),
    ("bdd of 2018", lambda f, t: write_bdd(f, t, "labels/bdd100k_labels_images_{}.json"), "bdd", False),
    ("bdd with a file an image", write_bdd_of_images, "bdd", False),
    ("bdd with a file an image, as unzipped", lambda f, t: write_bdd_of_images(f, t, "100k"), "bdd", False),
    ("bdd with short names", lambda f, t: write_bdd(f, t, "labels/{}.json"), "bdd", False),
]


def check_record(
    record: Record, picture: Picture, names: tuple[str, ...], outlines: bool, difficult: bool = False
) -> None:
    """``difficult``: what is crowd elsewhere is hard to see here, and says nothing of the image's classes."""
    assert record.path.stem == picture.name
    assert record.path.is_file()
    assert record.label is None
    objects = record.objects
    assert objects is not None
    np.testing.assert_array_equal(objects.boxes, np.array([t.box for t in picture.things]).reshape(-1, 4))
    assert [names[i] for i in objects.labels] == [t.name for t in picture.things]
    assert objects.crowd.tolist() == [t.crowd for t in picture.things]
    assert {names[i] for i in record.labels or ()} == {t.name for t in picture.things if not (t.crowd and difficult)}
    union = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for thing in picture.things:
        if outlines:
            union |= thing.mask()
        else:
            union[thing.box[1] : thing.box[3], thing.box[0] : thing.box[2]] = 1
    np.testing.assert_array_equal(objects.mask((HEIGHT, WIDTH)), union)


@pytest.mark.parametrize(("write", "name", "outlines"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])
def test_a_reader_finds_the_truth(tmp_path: Path, write: Writer, name: str, outlines: bool) -> None:
    truth = make_truth()
    if name == "voc" and outlines:
        truth = {split: [without_overlaps(p) for p in pictures] for split, pictures in truth.items()}
    if name == "yolo":
        truth = {split: [without_crowds(p) for p in pictures] for split, pictures in truth.items()}
    folder = write(tmp_path / "data", truth)
    data = read_data(folder, "detect")
    assert data.format == name
    assert data.broken == ()
    assert set(NAMES) <= set(data.class_names)
    assert len(data.category_ids) == len(data.class_names)
    for split, records in (("train", data.train), ("val", data.val)):
        assert len({r.image_id for r in records}) == len(records)
        for record, picture in zip(records, truth[split], strict=True):
            check_record(record, picture, data.class_names, outlines, difficult=name == "voc")
    assert re.fullmatch(rf"{re.escape(str(folder))} is {FORMATS[name].title} \(.+ and .+\)", data.found)


def without_crowds(picture: Picture) -> Picture:
    return replace(picture, things=tuple(replace(thing, crowd=False) for thing in picture.things))


def without_overlaps(picture: Picture) -> Picture:
    """An image of object numbers gives each pixel to one object: the later ones of these cover no earlier one."""
    things: list[Any] = []
    for thing in picture.things:
        if not any((thing.mask() & other.mask()).any() for other in things):
            things.append(thing)
    return Picture(picture.name, tuple(things))


def test_coco_has_its_own_ids_sizes_and_areas(tmp_path: Path) -> None:
    truth = make_truth()
    data = read_data(write_coco(tmp_path, truth), "detect")
    assert data.class_names == NAMES
    assert data.category_ids == CATEGORY_IDS
    assert [r.image_id for r in data.train] == [1000 - 7 * i for i in range(len(data.train))]
    assert {r.size for r in data.train} == {(HEIGHT, WIDTH)}
    objects = data.train[0].objects
    assert objects is not None
    assert objects.areas.tolist() == [t.mask().sum() for t in truth["train"][0].things]


def test_the_classes_of_bdd_are_those_of_the_year(tmp_path: Path) -> None:
    truth = make_truth()
    path = write_bdd(tmp_path, truth) / "labels/det_20/det_train.json"
    assert read_data(tmp_path, "detect").class_names == CLASSES_2018  # "person" is of 2018
    for split in SPLITS:
        path = tmp_path / f"labels/det_20/det_{split}.json"
        path.write_text(path.read_text().replace('"person"', '"pedestrian"').replace('"rider"', '"trailer"'))
    data = read_data(tmp_path, "detect")
    assert data.class_names == CLASSES_2020
    objects = data.train[0].objects
    assert objects is not None
    assert [data.class_names[i] for i in objects.labels] == ["car", "pedestrian", "truck"]
    assert objects.crowd[2]
    assert {data.class_names[i] for i in data.train[0].labels or ()} == {"car", "pedestrian"}  # a trailer is no truck


@pytest.mark.parametrize(
    "own", [("zebra", "ant", "mouse"), ("van", "bus", "car")], ids=["none of BDD's", "two of BDD's"]
)
def test_bdd_of_other_names_has_them_in_order(tmp_path: Path, own: tuple[str, ...]) -> None:
    truth = make_truth()
    write_bdd(tmp_path, truth)
    for split in SPLITS:
        path = tmp_path / f"labels/det_20/det_{split}.json"
        text = path.read_text()
        for new, old in zip(own, NAMES, strict=True):
            text = text.replace(f'"{old}"', f'"{new}_"')
        text = text.replace('_"', '"')
        path.write_text(text)
    data = read_data(tmp_path, "detect", max_broken=0.0)
    assert data.class_names == tuple(sorted(own))
    assert sum(len(record.objects or ()) for record in data.train) == sum(len(p.things) for p in truth["train"])


def test_the_class_file_of_voc_sets_the_order(tmp_path: Path) -> None:
    write_voc(tmp_path, make_truth())
    (tmp_path / "classes.txt").write_text("rider\nbus\nperson\ncar\n", encoding="utf-8")
    assert read_data(tmp_path, "multilabel").class_names == ("rider", "bus", "person", "car")


@pytest.mark.parametrize("suffix", [".PNG", ".webp", ".JPG"])
def test_an_image_of_voc_may_have_any_suffix_of_an_image(tmp_path: Path, suffix: str) -> None:
    folder = write_voc(tmp_path / "data", make_truth(train=2, val=2))
    renamed = (folder / "JPEGImages/train_001.png").rename(folder / f"JPEGImages/train_001{suffix}")
    assert [record.path for record in read_data(folder, max_broken=0.0).train][1] == renamed


def test_workers_give_the_same_boxes_and_masks_as_one_process(tmp_path: Path) -> None:
    data = read_data(write_coco(tmp_path, make_truth()), "detect")
    preprocessing = Preprocessing(size=(64, 96), mode="letterbox")
    how = Augmentation.for_task("detect", mosaic=0.5)
    alone, shared = (
        Loader(
            Samples(data.train, preprocessing, classes=3, augment_seed=4, augmentation=how),
            3,
            shuffle_seed=0,
            workers=workers,
        )
        for workers in (0, 2)
    )
    for epoch in (1, 2):
        for one, other in zip(alone.epoch(epoch), shared.epoch(epoch), strict=True):
            assert one.paths == other.paths
            assert one.image_ids == other.image_ids
            assert one.source_sizes == other.source_sizes
            assert torch.equal(one.masks, other.masks)
            assert torch.equal(one.targets, other.targets)
            for name in ("boxes", "box_labels", "crowd"):
                ours, theirs = getattr(one, name), getattr(other, name)
                assert [len(t) for t in ours] == [len(t) for t in theirs]
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

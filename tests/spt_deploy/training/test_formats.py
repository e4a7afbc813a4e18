"""Every reader finds the truth that a data set was written from, and names what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spt_deploy.errors import InputError, UsageError
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.augment import Augmentation
from spt_deploy.training.bdd_json import CLASSES_2018, CLASSES_2020
from spt_deploy.training.dataset import DataSet, Record, Samples
from spt_deploy.training.formats import FORMATS, find_format, read_data
from spt_deploy.training.loader import Loader
from spt_deploy.workflows.sparse_data import make_padded
from tests.spt_deploy.training.data_formats import (
    CATEGORY_IDS,
    HEIGHT,
    NAMES,
    SPLITS,
    WIDTH,
    Picture,
    make_truth,
    write_bdd,
    write_coco,
    write_voc,
)
from tests.spt_deploy.training.support import make_image_folder

Truth = dict[str, list[Picture]]
Writer = Callable[[Path, Truth], Path]

# name, how it is written, format, whether it has outlines
DATA: list[tuple[str, Writer, str, bool]] = [
    ("coco", write_coco, "coco", True),
    ("coco with short names", lambda f, t: write_coco(f, t, "short"), "coco", True),
    ("coco of Roboflow", lambda f, t: write_coco(f, t, "roboflow"), "coco", True),
    ("coco with boxes only", lambda f, t: write_coco(f, t, outlines=False), "coco", False),
    ("voc", write_voc, "voc", True),
    ("voc in a folder above", lambda f, t: write_voc(f / "VOCdevkit/VOC2012", t) and f, "voc", True),
    ("voc with boxes only", lambda f, t: write_voc(f, t, outlines=False), "voc", False),
    ("bdd of 2018", lambda f, t: write_bdd(f, t, "labels/bdd100k_labels_images_{}.json"), "bdd", False),
    ("bdd with short names", lambda f, t: write_bdd(f, t, "labels/{}.json"), "bdd", False),
]


def check_record(
    record: Record, picture: Picture, names: tuple[str, ...], outlines: bool, difficult: bool = False
) -> None:
    """``difficult``: what is crowd elsewhere is hard to see here, and says nothing of the image's classes."""
    assert record.path.name == f"{picture.name}.png"
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


def test_bdd_of_other_names_has_them_in_order(tmp_path: Path) -> None:
    write_bdd(tmp_path, make_truth())
    for split in SPLITS:
        path = tmp_path / f"labels/det_20/det_{split}.json"
        text = path.read_text()
        for new, old in zip(("zebra", "ant", "mouse"), NAMES, strict=True):
            text = text.replace(f'"{old}"', f'"{new}"')
        path.write_text(text)
    assert read_data(tmp_path, "detect").class_names == ("ant", "mouse", "zebra")


def test_the_class_file_of_voc_sets_the_order(tmp_path: Path) -> None:
    write_voc(tmp_path, make_truth())
    (tmp_path / "classes.txt").write_text("rider\nbus\nperson\ncar\n", encoding="utf-8")
    assert read_data(tmp_path, "multilabel").class_names == ("rider", "bus", "person", "car")


# What breaks in which file of which format, how, and what the sentence says.
def _coco(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def _first(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(values)


LONG_RUN = {"size": [HEIGHT, WIDTH], "counts": [2**40, 1]}


def _voc(old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "Annotations/train_000.xml"
        path.write_text(re.sub(old, new, path.read_text(), count=1))

    return apply


def _bdd(change: Callable[[list[Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "labels/det_20/det_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


BREAKS: list[tuple[str, Writer, Callable[[Path], None], str]] = [
    ("coco: x1 < x0", write_coco, _coco(_first(bbox=[9, 9, -3, 4])), r"train2017\.json: annotation 0 .*x0 < x1"),
    ("coco: outside", write_coco, _coco(_first(bbox=[60, 9, 30, 4])), r"annotation 0 of train_000\.png .*outside its"),
    ("coco: no box", write_coco, _coco(_first(bbox=None)), "annotation 0 .*the bbox None; expected 4 numbers"),
    ("coco: category", write_coco, _coco(_first(category_id=4)), "annotation 0 .*the category_id 4, which no"),
    ("coco: image", write_coco, _coco(_first(image_id=4)), "annotation 0 .*the image_id 4, which no image has"),
    ("coco: polygon", write_coco, _coco(_first(segmentation=[[1, 2, 3]])), "annotation 0 .*expected x, y of each"),
    ("coco: no polygon", write_coco, _coco(_first(segmentation=[[1, 2, 3, float("nan"), 9, 9]])), "6 numbers"),
    ("coco: run too long", write_coco, _coco(_first(segmentation=LONG_RUN)), "annotation 0 .*the segmentation counts"),
    ("coco: list for an id", write_coco, _coco(_first(image_id=[7])), r"annotation 0 .*the image_id \[7\], which no"),
    ("coco: no category", write_coco, _coco(_first(category_id={})), r"annotation 0 .*the category_id \{\}, which no"),
    (
        "coco: image's id",
        write_coco,
        _coco(lambda c: c["images"].append({**c["images"][0], "id": [1]})),
        "image 8 is .*expected id",
    ),
    ("coco: mask", write_coco, _coco(_first(segmentation={"size": [1, 2], "counts": [2]})), "annotation 0 .*size"),
    ("coco: item", write_coco, _coco(lambda c: c["annotations"].append(7)), "annotation .*not the fields of an object"),
    ("coco: file", write_coco, lambda f: (f / "train2017/train_002.png").unlink(), "train_002.png has no file; looked"),
    ("coco: image item", write_coco, _coco(lambda c: c["images"].append({})), r"image 8 is \{\}; expected id"),
    ("voc: no XML", write_voc, lambda f: (f / "Annotations/train_000.xml").unlink(), "train_000.xml cannot be read"),
    ("voc: no image", write_voc, lambda f: (f / "JPEGImages/train_002.png").unlink(), "lists train_002, which has no"),
    ("voc: damaged", write_voc, _voc("</size>", ""), "train_000.xml is no annotation of an image: mismatched tag"),
    ("voc: no size", write_voc, _voc("<width>.*?</width>", ""), "train_000.xml is no annotation .*no size/width"),
    ("voc: encoding", write_voc, _voc("^", '<?xml version="1.0" encoding="klingon"?>'), "no annotation .*klingon"),
    ("voc: no number", write_voc, _voc(r"<xmin>\d+", "<xmin>x"), "train_000.xml: object 1 cannot be read: .*'x'"),
    ("voc: x1 < x0", write_voc, _voc(r"<xmax>\d+", "<xmax>0"), "train_000.xml: object 1 has .*expected x0 < x1"),
    ("bdd: no corner", write_bdd, _bdd(lambda c: c[0]["labels"][1]["box2d"].pop("x1")), "label 1 of train_000.png"),
    ("bdd: category", write_bdd, _bdd(lambda c: c[0]["labels"][1].update(category="cat")), "category cat; known are"),
    ("bdd: no name", write_bdd, _bdd(lambda c: c[0].pop("name")), "det_train.json: image 0 cannot be read"),
    ("bdd: no file", write_bdd, _bdd(lambda c: c[0].update(name="a.jpg")), "image a.jpg has no file; looked in"),
]


@pytest.mark.parametrize(("write", "damage", "sentence"), [b[1:] for b in BREAKS], ids=[b[0] for b in BREAKS])
def test_what_is_broken_is_named_and_left_out_up_to_a_share(
    tmp_path: Path, write: Writer, damage: Callable[[Path], None], sentence: str
) -> None:
    folder = write(tmp_path, make_truth())
    before = read_data(folder, "detect")
    damage(folder)
    after = read_data(folder, "detect", max_broken=0.1)
    assert len(after.broken) == 1
    assert re.search(sentence, after.broken[0].reason)
    assert counts(before) - 4 <= counts(after) <= counts(before)  # an object, or an image and its three
    with pytest.raises(InputError, match=r"1 of \d images of .* more than the 0% .*the last one: "):
        read_data(folder, "detect", max_broken=0.0)


@pytest.mark.parametrize(
    ("write", "image"),
    [
        (write_coco, "train2017/train_000.png"),
        (write_voc, "JPEGImages/train_000.png"),
        (write_bdd, "images/100k/train/train_000.png"),
    ],
)
def test_where_every_image_is_left_out_the_last_reason_is_said(tmp_path: Path, write: Writer, image: str) -> None:
    folder = write(tmp_path, make_truth(train=1))
    (folder / image).unlink()
    with pytest.raises(
        InputError, match=r"train\S* has no image that can be used; the last one: .*train_000\S*,? .*no file"
    ):
        read_data(folder, "detect")


def _as_text(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image |= {key: str(image[key]) for key in ("id", "width", "height")}
    for annotation in content["annotations"]:
        annotation |= {key: str(annotation[key]) for key in ("image_id", "category_id", "iscrowd")}


def _in_lists(change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for path in (folder / "ImageSets/Main").glob("*.txt"):
            path.write_text(change(path.read_text()), encoding="utf-8")

    return apply


# What is odd, how it is written, and whether outlines survive it.
ODD: list[tuple[str, Writer, Callable[[Path], None], bool]] = [
    ("coco: empty outline", write_coco, _coco(_first(segmentation=[[]])), False),
    ("coco: two points", write_coco, _coco(_first(segmentation=[[1, 2, 3, 4]])), False),
    ("coco: numbers as text", write_coco, _coco(_as_text), True),
    ("voc: size with a point", write_voc, _voc(f"<width>{WIDTH}<", f"<width>{WIDTH}.0<"), True),
    ("voc: list with a mark", write_voc, _in_lists(lambda text: "\ufeff" + text), True),
    ("voc: list with a column", write_voc, _in_lists(lambda text: text.replace("\n", "  -1\n")), True),
]


@pytest.mark.parametrize(("write", "change", "outlines"), [o[1:] for o in ODD], ids=[o[0] for o in ODD])
def test_what_is_odd_and_clear_is_understood(
    tmp_path: Path, write: Writer, change: Callable[[Path], None], outlines: bool
) -> None:
    folder = write(tmp_path, make_truth())
    before = read_data(folder, "detect")
    change(folder)
    after = read_data(folder, "detect", max_broken=0.0)
    assert after.broken == ()
    for old, new in zip(before.train + before.val, after.train + after.val, strict=True):
        assert (new.path, new.labels, new.image_id, new.size) == (old.path, old.labels, old.image_id, old.size)
        assert old.objects is not None
        assert new.objects is not None
        np.testing.assert_array_equal(new.objects.boxes, old.objects.boxes)
        np.testing.assert_array_equal(new.objects.crowd, old.objects.crowd)
        assert (new.objects.has_outline == old.objects.has_outline).all() == (outlines or new is not after.train[0])


def test_names_of_voc_may_have_spaces_and_folders(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data", make_truth(), outlines=False)
    for old, new in (("train_000", "a street"), ("train_001", "night/train_001")):
        for kind, suffix in (("JPEGImages", ".png"), ("Annotations", ".xml")):
            target = folder / kind / f"{new}{suffix}"
            target.parent.mkdir(exist_ok=True)
            (folder / kind / f"{old}{suffix}").rename(target)
        _in_lists(lambda text, old=old, new=new: text.replace(old, new))(folder)  # type: ignore[misc]
    data = read_data(folder, "detect")
    assert data.broken == ()
    assert [r.path.relative_to(folder / "JPEGImages").as_posix() for r in data.train[:2]] == [
        "a street.png",
        "night/train_001.png",
    ]
    make_padded(folder, tmp_path / "padded")
    assert [r.path.name for r in read_data(tmp_path / "padded").train] == [r.path.name for r in data.train]


def counts(data: DataSet) -> int:
    """Images and objects of training."""
    return sum(1 + len(r.objects or ()) for r in data.train)


def test_a_box_that_tools_rounded_past_the_edge_is_cut(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, make_truth())
    _coco(_first(bbox=[-0.6, 0, WIDTH + 1.2, HEIGHT]))(folder)
    data = read_data(folder, "detect")
    objects = data.train[0].objects
    assert data.broken == ()
    assert objects is not None
    assert objects.boxes[0].tolist() == [0, 0, WIDTH, HEIGHT]


# How a folder is damaged, and the sentence.
FAILURES: list[tuple[str, Writer, Callable[[Path], None], str]] = [
    (
        "coco: no JSON",
        write_coco,
        lambda f: (f / "annotations/instances_val2017.json").write_text("{"),  # type: ignore[list-item, return-value]
        "instances_val2017.json is no JSON",
    ),
    (
        "coco: no lists",
        write_coco,
        lambda f: (f / "annotations/instances_val2017.json").write_text("{}"),  # type: ignore[list-item, return-value]
        "is no COCO JSON; expected an object with the lists images, annotations, categories",
    ),
    (
        "coco: other classes",
        write_coco,
        _coco(lambda c: c["categories"].pop()),
        "have different categories: .*3, 'car'",
    ),
    ("coco: no image", write_coco, _coco(lambda c: c["images"].clear()), "train2017.json has an empty list of images"),
    ("coco: id twice", write_coco, _coco(lambda c: c["categories"].append(c["categories"][0])), "id or name twice"),
    (
        "voc: no list",
        write_voc,
        lambda f: (f / "ImageSets/Main/val.txt").unlink(),
        "Main has no val.txt and no test.txt; list the val images there",
    ),
    ("bdd: no list", write_bdd, lambda f: _bdd(lambda c: c.clear())(f), "det_train.json is no list of images"),
]


@pytest.mark.parametrize(("write", "damage", "sentence"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_a_file_that_is_no_such_file_is_an_error(
    tmp_path: Path, write: Writer, damage: Callable[[Path], None], sentence: str
) -> None:
    folder = write(tmp_path, make_truth())
    damage(folder)
    with pytest.raises(InputError, match=sentence):
        read_data(folder, "detect")


def test_a_folder_of_no_format_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no data set of a known format; looked for COCO JSON: .*Pascal.*BDD.*image fold"
    ):
        read_data(tmp_path, "detect")
    with pytest.raises(InputError, match="there is no folder"):
        read_data(tmp_path / "nowhere", "detect")
    with pytest.raises(UsageError, match="format is 'yolo'; known are coco, voc, bdd, folder"):
        read_data(tmp_path, "detect", "yolo")
    with pytest.raises(InputError, match="has no COCO JSON files; looked for"):
        read_data(tmp_path, "detect", "coco")


@pytest.mark.parametrize(
    ("write", "missing", "sentence"),
    [
        (
            write_coco,
            "annotations/instances_val2017.json",
            r"has annotations/instances_train2017\.json and no such file for val, which makes half of COCO JSON",
        ),
        (
            lambda f, t: write_coco(f, t, "roboflow"),
            "train/_annotations.coco.json",
            r"has va\w+/_annotations\.coco\.json and no such file for train, which makes half of COCO JSON",
        ),
        (write_bdd, "labels/det_20/det_val.json", r"det_train\.json and no such file for val, .* half of BDD100K"),
        (write_voc, "Annotations", r"has JPEGImages/ and not Annotations/, which makes half of Pascal VOC XML"),
    ],
    ids=["coco", "coco of Roboflow", "bdd", "voc"],
)
def test_half_a_data_set_is_told_what_it_lacks(tmp_path: Path, write: Writer, missing: str, sentence: str) -> None:
    folder = write(tmp_path / "data", make_truth())
    (folder / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=sentence):
        read_data(folder, "detect")


def test_a_format_that_is_named_is_told_what_it_lacks(tmp_path: Path) -> None:
    (write_coco(tmp_path, make_truth()) / "annotations/instances_val2017.json").unlink()
    with pytest.raises(InputError, match=r"has annotations/.*json and no such file for val; looked for annotations/"):
        read_data(tmp_path, "detect", "coco")


def test_a_folder_of_two_formats_asks_which(tmp_path: Path) -> None:
    write_coco(tmp_path, make_truth())
    write_bdd(tmp_path, make_truth())
    with pytest.raises(UsageError, match=r"could be coco \(.*\), bdd \(.*\); say which with --format"):
        find_format(tmp_path)
    assert read_data(tmp_path, "detect", "bdd").format == "bdd"


def test_a_format_that_does_not_suit_the_task_says_which_do(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "colours", train=2, val=1)
    with pytest.raises(UsageError, match=r"task is detect and .* is an image folder.*COCO JSON, Pascal VOC XML, BDD"):
        read_data(tmp_path / "colours", "detect")
    with pytest.raises(
        UsageError, match="one class an image and is for the task classify; give data of the format COCO"
    ):
        read_data(tmp_path / "colours", "multilabel")
    write_coco(tmp_path / "things", make_truth())
    with pytest.raises(
        UsageError, match=r"task is classify and .* is COCO JSON, .*is for the task multilabel or detect"
    ):
        read_data(tmp_path / "things", "classify")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
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

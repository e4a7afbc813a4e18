"""What is wrong in a data set is named and left out up to a share; what is odd and clear is understood."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spt_deploy.datasets.dataset import DataSet
from spt_deploy.datasets.formats import read_data
from spt_deploy.errors import InputError
from spt_deploy.workflows.sparse_data import make_padded
from tests.spt_deploy.datasets.data_formats import (
    HEIGHT,
    WIDTH,
    Writer,
    make_truth,
    write_bdd,
    write_bdd_of_images,
    write_coco,
    write_voc,
)


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
    (
        "coco: no size",
        write_coco,
        lambda f: (
            _coco(lambda c: c["images"][2].update(height=None))(f),
            (f / "train2017/train_002.png").write_bytes(b"no image"),
        ),
        "train_002.png is no image",
    ),
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


def _as_on_windows(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["file_name"] = f"train2017\\{image['file_name']}"


def _with_heading(folder: Path) -> None:
    """As Roboflow writes it for a project that is called what its class is called."""
    for path in folder.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        categories = [category | {"supercategory": "car"} for category in content["categories"]]
        content["categories"] = [{"id": 0, "name": "car", "supercategory": "none"}, *categories]
        path.write_text(json.dumps(content))


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
    ("coco: backslashes", write_coco, _coco(_as_on_windows), True),
    ("coco: a heading of a class's name", write_coco, _with_heading, True),
    ("voc: size with a point", write_voc, _voc(f"<width>{WIDTH}<", f"<width>{WIDTH}.0<"), True),
    ("voc: list with a mark", write_voc, _in_lists(lambda text: "\ufeff" + text), True),
    ("voc: list with a column", write_voc, _in_lists(lambda text: text.replace("\n", "  -1\n")), True),
    ("voc: list with suffixes", write_voc, _in_lists(lambda text: text.replace("\n", ".png\n")), True),
    ("voc: list of VoTT", write_voc, _in_lists(lambda text: text.replace("\n", ".png 1\n")), True),
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
    for old, new in (("train_000", "street 1"), ("train_001", "night/train_001"), ("train_002", "street 0")):
        for kind, suffix in (("JPEGImages", ".png"), ("Annotations", ".xml")):
            target = folder / kind / f"{new}{suffix}"
            target.parent.mkdir(exist_ok=True)
            (folder / kind / f"{old}{suffix}").rename(target)
        _in_lists(lambda text, old=old, new=new: text.replace(old, new))(folder)  # type: ignore[misc]
    data = read_data(folder, "detect")
    assert data.broken == ()
    assert [r.path.relative_to(folder / "JPEGImages").as_posix() for r in data.train[:3]] == [
        "street 1.png",
        "night/train_001.png",
        "street 0.png",
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
        "Main has none of val.txt, .*, test.txt, Test.txt; list the val images there",
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


def test_files_of_an_image_that_are_no_label_files_are_named_and_left_out(tmp_path: Path) -> None:
    folder = write_bdd_of_images(tmp_path, make_truth(train=8, val=2))
    labels = folder / "labels/100k/train"
    (labels / "train_003.json").write_text("{", encoding="utf-8")
    (labels / "train_004.json").write_text('{"name": "train_004", "frames": null}', encoding="utf-8")
    data = read_data(folder, "detect", max_broken=0.25)
    assert {record.path.stem for record in data.train} == {f"train_00{n}" for n in (0, 1, 2, 5, 6, 7)}
    one, other = (broken.reason for broken in data.broken)
    assert f"{labels}/train_003.json is no JSON" in one
    assert f"{labels}/train_004.json is no label file of an image" in other
    with pytest.raises(InputError, match=r"2 of 8 images of .*100k/train have broken annotations"):
        read_data(folder, "detect")

"""YOLO's labels beyond the truth that every format is read for: layouts, odd lines, and what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spt_deploy.datasets.dataset import DataSet
from spt_deploy.datasets.formats import find_format, read_data
from spt_deploy.datasets.yolo import label_file
from spt_deploy.datasets.yolo_layout import layout_file
from spt_deploy.errors import InputError
from spt_deploy.images import read_image, read_size
from tests.spt_deploy.datasets.data_formats import make_truth, write_yolo
from tests.spt_deploy.training.support import make_image_folder

WIDTH, HEIGHT = 40, 20


def make(folder: Path, label: str, yaml: str = "names: [car, person]\n", count: int = 1) -> Path:
    """One training image (or several alike) with these lines, and a validation image with a car in the middle."""
    for split, text, number in (("train", label, count), ("val", "0 0.5 0.5 0.5 0.5\n", 1)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for place in range(number):
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"images/{split}/{place}.png")
            (folder / f"labels/{split}/{place}.txt").write_text(text, encoding="utf-8")
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\n{yaml}", encoding="utf-8")
    return folder


def boxes(data: DataSet) -> list[list[float]]:
    (record,) = data.train
    assert record.objects is not None
    return [[float(v) for v in box] for box in record.objects.boxes]


def test_boxes_are_shares_of_the_images_sides(tmp_path: Path) -> None:
    data = read_data(make(tmp_path, "1 0.5 0.5 0.25 0.5\n\n0 0.125 0.25 0.25 0.5\n"))
    assert boxes(data) == [[15, 5, 25, 15], [0, 0, 10, 10]]
    assert data.train[0].labels == (0, 1)
    assert data.class_names == ("car", "person")


def test_an_image_that_lies_on_its_side_is_upright_for_its_labels_as_for_the_model(tmp_path: Path) -> None:
    folder = make(tmp_path, "0 0.5 0.25 1 0.5\n")
    (folder / "images/train/0.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images/train/0.jpg", exif=exif)
    assert read_size(folder / "images/train/0.jpg") == read_image(folder / "images/train/0.jpg").shape[:2]
    assert boxes(read_data(folder)) == [[0, 0, HEIGHT, WIDTH / 2]]


def test_a_size_is_read_where_pillow_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError("not this one")

    folder = make(tmp_path, "0 0.5 0.25 1 0.5\n")
    monkeypatch.setattr(Image, "open", refuse)
    assert boxes(read_data(folder)) == [[0, 0, WIDTH, HEIGHT / 2]]


def test_keypoints_behind_a_box_are_no_outline(tmp_path: Path) -> None:
    folder = make(tmp_path, "0 0.5 0.5 0.5 0.5 0.1 0.1 0.9 0.9\n", "kpt_shape: [2, 2]\nnames: [person]\n")
    data = read_data(folder)
    assert boxes(data) == [[10, 5, 30, 15]]
    assert data.train[0].objects is not None
    assert data.train[0].objects.outlines is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("7 0.5 0.5 0.5 0.5", "the class 7, which has no name"),
        ("0 0.5 0.5 0.5", "the line '0 0.5 0.5 0.5'; expected class x y width height, or"),
        ("0 0.5 0.5 0.5 0.5 0.9", "expected class x y width height, or"),
        ("0 0.5 0.5 nan 0.5", "expected class x y width height, or"),
        ("car 0.5 0.5 0.5 0.5", "the line 'car 0.5 0.5 0.5 0.5'; expected numbers alone"),
        ("0 0.5 0.5 0 0.5", "expected x0 < x1"),
        ("0 20 10 10 10", r"outside its image of 40 x 20 pixels"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    folder = make(tmp_path, f"0 0.5 0.5 0.5 0.5\n{line}\n")
    data = read_data(folder)
    assert boxes(data) == [[10, 5, 30, 15]]
    (broken,) = data.broken
    assert broken.path == folder / "labels/train/0.txt"
    assert broken.reason.startswith(f"{folder / 'labels/train/0.txt'}: object 2 has ")
    assert re.search(sentence, broken.reason)
    with pytest.raises(InputError, match=r"1 of 1 images of .*data\.yaml have broken annotations"):
        read_data(folder, max_broken=0.0)


def test_labels_of_an_image_lie_apart_or_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "images/a/images/b"
    place.mkdir(parents=True)
    assert label_file(place / "1.jpg") == tmp_path / "images/a/labels/b/1.txt"
    (place / "1.txt").touch()
    assert label_file(place / "1.jpg") == place / "1.txt"
    assert label_file(tmp_path / "photos/1.jpg") == tmp_path / "photos/1.txt"


def test_the_yaml_file_may_be_given_and_have_another_root(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data", make_truth())
    path = tmp_path / "road.yml"
    path.write_text("path: data\ntrain: [images/train]\nvalid: images/val\nnames: [car, person, rider]\n")
    given, lies_there = read_data(path, "detect"), read_data(folder, "detect")
    assert [record.path for record in given.train] == [record.path for record in lies_there.train]
    assert find_format(path)[0] == find_format(tmp_path)[0] == "yolo"
    path.write_text("a: 1\n", encoding="utf-8")
    with pytest.raises(InputError, match="is a file and no folder"):
        read_data(path)


@pytest.mark.parametrize("val", ["valid", "val", "validation"])
def test_darknets_file_is_read_as_cvat_writes_it(tmp_path: Path, val: str) -> None:
    truth = make_truth()
    folder = write_yolo(tmp_path / "data", truth)
    expected = read_data(folder)
    for split in ("train", "val"):
        (folder / "images" / split).rename(folder / f"obj_{split}_data")
        for label in (folder / "labels" / split).iterdir():
            label.rename(folder / f"obj_{split}_data" / label.name)
        names = "".join(f"data/obj_{split}_data/{picture.name}.png\n" for picture in truth[split])
        (folder / f"{split}.txt").write_text(names, encoding="utf-8")
    (folder / "data.yaml").unlink()
    (folder / "obj.names").write_text("car\nperson\nrider\n", encoding="utf-8")
    lines = ["classes = 3", f"{val} = data/val.txt", "train = data/train.txt", "backup =", "names = data/obj.names"]
    (folder / "obj.data").write_text("\n".join(lines), encoding="utf-8")
    data = read_data(folder)
    assert data.found.endswith("is YOLO labels (obj.data and train.txt)")
    assert data.class_names == expected.class_names
    for split, records in data.splits.items():
        assert [record.labels for record in records] == [record.labels for record in expected.splits[split]]
        assert {record.path.parent.name for record in records} == {f"obj_{split}_data"}
    (folder / "obj.data").write_text("\n".join(["classes = 4", *lines[1:]]), encoding="utf-8")
    with pytest.raises(InputError, match=r"obj\.data says 4 classes and has 3 names"):
        read_data(folder)


def test_a_list_may_name_images_that_are_not_there_up_to_the_share(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data", make_truth(), "list")
    with (folder / "train.txt").open("a", encoding="utf-8") as file:
        file.write("images\\train\\train_000.png\n./images/train/gone.png\n")
    data = read_data(folder, max_broken=0.1)
    assert [record.path.name for record in data.train[-2:]] == ["train_007.png", "train_000.png"]
    assert [broken.reason.split(" lists ")[1] for broken in data.broken] == [
        "./images/train/gone.png, which has no file"
    ]


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("names: []\n", r"data.yaml has the names \[\]; expected each class's, once"),
        ("names: [a, a]\n", "expected each class's, once"),
        ("names: {a: 0}\n", "expected a list, or numbers with a name each"),
        ("nc: 2\n", "has the names None"),
        ("nc: 3\nnames: [a, b]\n", "says 3 classes and has 2 names; make them agree"),
        ("names: [a\n", "cannot be read as YAML"),
    ],
)
def test_a_yaml_file_that_does_not_say_its_classes_is_told_so(tmp_path: Path, yaml: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_data(make(tmp_path, "0 0.5 0.5 0.5 0.5\n", yaml))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = make(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    text = (folder / "data.yaml").read_text(encoding="utf-8")
    (folder / "data.yaml").write_text(text.replace("val:", "test:"), encoding="utf-8")
    with pytest.raises(InputError, match=r"data\.yaml has no val:; add a line"):
        read_data(folder)
    (folder / "data.yaml").write_text(text.replace("images/val", "photos"), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"data\.yaml names photos, which is not in .*; name a folder or a file that is there"
    ):
        read_data(folder)
    (folder / "data.yaml").unlink()
    with pytest.raises(InputError, match=r"has labels/train and no data\.yaml .* half of YOLO labels; looked for data"):
        read_data(folder)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    (folder / "labels/val/0.txt").unlink()
    with pytest.raises(
        InputError, match=r"no val image of .*data\.yaml has a label file; looked for .*labels/val/0\.txt"
    ):
        read_data(folder)


def test_darknets_files_are_told_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "obj.data").write_text("classes = 1\ntrain = data/train.txt\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"has obj\.data and no data\.yaml"):
        read_data(tmp_path)


def test_darknets_files_without_an_object_are_told_that_outlines_are_lost(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / split / "a.png")
        (tmp_path / split / "a.txt").touch()
    (tmp_path / "obj.names").write_text("car\n", encoding="utf-8")
    (tmp_path / "obj.data").write_text("train = train\nvalid = valid\nnames = obj.names\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"no label file of .*obj\.data has an object; YOLO 1\.1 has boxes alone"):
        read_data(tmp_path)


def test_a_large_file_of_another_kind_is_not_read(tmp_path: Path) -> None:
    lines = b"train = train\nvalid = valid\nnames = obj.names\n"
    (tmp_path / "model.onnx.data").write_bytes(lines)
    assert layout_file(tmp_path) == tmp_path / "model.onnx.data"
    (tmp_path / "model.onnx.data").write_bytes(lines + bytes(1 << 16))
    assert layout_file(tmp_path) is None


def test_folders_of_images_and_labels_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind, name in (("images", "1.png"), ("labels", "1.txt")):
            (tmp_path / split / kind).mkdir(parents=True)
            (tmp_path / split / kind / name).touch()
    with pytest.raises(InputError, match=r"has train/labels and no data\.yaml"):
        read_data(tmp_path)
    (tmp_path / "data.yaml").write_text("train: train\nval: val\nnc: 1\n", encoding="utf-8")
    with pytest.raises(InputError, match="has the names None"):
        read_data(tmp_path)


def test_a_class_called_labels_is_no_yolo(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path, train=2, val=1)
    for split in ("train", "val"):
        (folder / split / "red").rename(folder / split / "labels")
    (folder / "data.yaml").write_text("train: x\nnames: []\n", encoding="utf-8")
    assert find_format(folder)[0] == "folder"


def test_a_polygon_has_the_box_of_its_corners(tmp_path: Path) -> None:
    data = read_data(make(tmp_path, "0 0.25 0.5 0.75 0.25 0.75 0.75\n"))
    assert boxes(data) == [[10, 5, 30, 15]]
    assert data.train[0].objects is not None
    mask = data.train[0].objects.mask((HEIGHT, WIDTH))
    assert mask.sum() == pytest.approx(100, abs=4)  # half of the box
    assert np.flatnonzero(mask.any(0)).tolist() == list(range(mask.any(0).argmax(), 30))

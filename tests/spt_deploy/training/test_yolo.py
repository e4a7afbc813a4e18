"""YOLO's labels are told apart from what is read, and the error says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from spt_deploy.errors import InputError
from spt_deploy.training.formats import find_format, read_data
from tests.spt_deploy.training.support import make_image_folder

# files of a data set, and what is named of it
LAYOUTS = {
    "Ultralytics": (
        ("images/train/1.jpg", "images/val/2.jpg", "labels/train/1.txt", "labels/val/2.txt"),
        "labels/train",
    ),
    "darknet": (("images/1.jpg", "labels/1.txt"), "labels"),
    "Roboflow": (
        ("train/images/1.jpg", "train/labels/1.txt", "valid/images/2.jpg", "valid/labels/2.txt"),
        "train/labels",
    ),
    "with val": (("train/images/1.jpg", "train/labels/1.txt", "val/images/2.jpg", "val/labels/2.txt"), "train/labels"),
    "by its file": (("data.yaml",), "data.yaml"),
}


@pytest.mark.parametrize(("files", "named"), LAYOUTS.values(), ids=LAYOUTS)
def test_labels_of_yolo_are_named_with_a_remedy(tmp_path: Path, files: tuple[str, ...], named: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("train: images\nval: images\nnames: [a]\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=rf"YOLO labels \(\S+/{named}\), which are not read; convert them to COCO JSON"
    ):
        read_data(tmp_path, "detect")


def test_the_file_that_names_the_splits_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("path: ..\ntrain: images\nval: images\nnc: 3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"data\.yaml holds YOLO labels .*convert them to COCO JSON"):
        read_data(path)
    path.write_text("a: 1\n", encoding="utf-8")
    with pytest.raises(InputError, match="there is no folder"):
        read_data(path)


def test_a_class_called_labels_is_no_yolo(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path, train=2, val=1)
    for split in ("train", "val"):
        (folder / split / "red").rename(folder / split / "labels")
    (folder / "data.yaml").write_text("train: x\nnames: []\n", encoding="utf-8")
    assert find_format(folder)[0] == "folder"

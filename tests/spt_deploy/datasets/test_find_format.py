"""Of which format a folder is; one that is of none, of half of one or of several is told why, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from spt_deploy.datasets.formats import find_format, read_data
from spt_deploy.errors import InputError, UsageError, notes_of
from tests.spt_deploy.datasets.data_formats import (
    SPLITS,
    Writer,
    make_truth,
    write_bdd,
    write_coco,
    write_voc,
    write_voc_by_folder,
    write_yolo,
)
from tests.spt_deploy.datasets.unsplit_formats import (
    write_coco_of_cvat,
    write_voc_of_labelimg,
    write_voc_without_lists,
    write_yolo_of_label_studio,
    write_yolo_of_roboflow,
)
from tests.spt_deploy.training.support import make_image_folder


def test_a_folder_of_no_format_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no data set of a known format; looked for COCO JSON: .*YOLO.*Pascal.*BDD.*image fold"
    ):
        read_data(tmp_path, "detect")
    for split in SPLITS:
        (tmp_path / "labelme" / split).mkdir(parents=True)
        for suffix in ("jpg", "json"):
            (tmp_path / "labelme" / split / f"0.{suffix}").touch()
    with pytest.raises(InputError, match=r"labelme is no data set of a known format; looked for COCO JSON: .*CLASS"):
        read_data(tmp_path / "labelme", "detect")
    with pytest.raises(InputError, match="there is no folder"):
        read_data(tmp_path / "nowhere", "detect")
    with pytest.raises(UsageError, match="format is 'yaml'; known are coco, yolo, voc, bdd, folder"):
        read_data(tmp_path, "detect", "yaml")
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


@pytest.mark.parametrize(
    ("write", "part", "title"),
    [
        (make_image_folder, "train", "an image folder"),
        (write_coco, "train2017", "COCO JSON"),
        (write_yolo, "images/val", "YOLO labels"),
        (lambda f, t: write_yolo(f, t, "roboflow"), "train", "YOLO labels"),
        (write_voc, "JPEGImages", "Pascal VOC XML"),
        (write_bdd, "images/100k/train", "BDD100K JSON"),
    ],
    ids=["folder", "coco", "yolo", "yolo of Roboflow", "voc", "bdd"],
)
def test_a_part_of_a_data_set_is_told_where_the_whole_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, part: str, title: str
) -> None:
    folder = tmp_path / "data"
    write(folder) if write is make_image_folder else write(folder, make_truth())
    sentence = rf"is no data set by itself, and {folder}, above it, is {title} \(.*\); name that folder"
    with pytest.raises(InputError, match=sentence):
        find_format(folder / part)
    monkeypatch.chdir(folder / part)
    with pytest.raises(InputError, match=sentence):
        find_format(Path())


def test_a_folder_around_a_data_set_is_told_where_it_is(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "unpacked/coco", make_truth())
    with pytest.raises(
        InputError, match=rf"unpacked is no data set by itself, and {folder}, below it, is COCO JSON \(.*\);"
    ):
        find_format(tmp_path / "unpacked")


def test_a_locked_folder_of_annotations_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, make_truth())
    for split in SPLITS:
        (tmp_path / f"{split}2017").rename(tmp_path / split)  # as those of an image folder are called
    listed = Path.iterdir

    def locked(self: Path) -> Any:
        if self.name == "annotations":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", locked)  # root may read anything
    with pytest.raises(PermissionError, match="annotations"):
        find_format(tmp_path)


def test_coco_that_is_not_split_is_told_so(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, make_truth()) / "annotations"
    (folder / "instances_train2017.json").rename(folder / "instances_default.json")  # as CVAT writes it
    (folder / "instances_val2017.json").unlink()
    with pytest.raises(
        InputError, match=r"instances_default\.json and no such file for train and val, which .* COCO JSON"
    ):
        find_format(tmp_path)


@pytest.mark.parametrize("split", ["train", ""], ids=["of Roboflow", "of labelImg"])
def test_voc_files_of_one_split_beside_their_images_are_told_what_lacks(tmp_path: Path, split: str) -> None:
    folder = write_voc_by_folder(tmp_path / "data", make_truth())
    shutil.rmtree(folder / "valid")
    if not split:
        for path in (folder / "train").iterdir():
            path.rename(folder / path.name)
    sentence = r"has .*train_000\.xml beside its image, and not both train/ and valid/ with such files"
    with pytest.raises(InputError, match=f"{sentence}, which makes half of Pascal VOC"):
        find_format(folder)
    with pytest.raises(InputError, match=f"{sentence}; looked for Annotations/") as caught:
        read_data(folder, "detect", "voc")
    assert notes_of(caught.value)[0].startswith("to make train and val of it: spt-deploy data split")


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


def test_the_task_chooses_between_folders_of_classes_and_the_xml_files_in_them(tmp_path: Path) -> None:
    for split, pictures in make_truth().items():
        for number, picture in enumerate(pictures):
            write_voc_by_folder(tmp_path / f"{split}-{number}", {split: [picture]}, images=f"class {number % 2}")
    for place in sorted(tmp_path.iterdir()):
        for path in [path for path in place.rglob("*") if path.is_file()]:
            split, name = place.name.split("-")[0], place.name
            target = tmp_path / "data" / split / f"class {int(name[-1]) % 2}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    assert read_data(tmp_path / "data", "classify").format == "folder"
    assert read_data(tmp_path / "data", "detect").format == "voc"
    with pytest.raises(UsageError, match=r"could be voc \(.*\), folder \(.*\); say which with --format"):
        find_format(tmp_path / "data")


def test_xml_files_beside_labels_that_name_their_splits_are_passed_over(tmp_path: Path) -> None:
    write_yolo(tmp_path, make_truth(), "roboflow")
    write_voc_by_folder(tmp_path / "voc", make_truth())
    for split in ("train", "valid"):
        for path in (tmp_path / "voc" / split).glob("*.xml"):
            path.rename(tmp_path / split / "images" / path.name)
    shutil.rmtree(tmp_path / "voc")
    assert find_format(tmp_path)[0] == "yolo"


def test_a_format_that_does_not_suit_the_task_says_which_do(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "colours", train=2, val=1)
    with pytest.raises(
        UsageError, match=r"task is detect and .* is an image folder.*COCO JSON, YOLO labels, Pascal VOC"
    ):
        read_data(tmp_path / "colours", "detect")
    with pytest.raises(
        UsageError,
        match=r"; train with --task classify, or give COCO JSON, YOLO labels, Pascal VOC XML or BDD100K JSON",
    ):
        read_data(tmp_path / "colours", "multilabel")
    write_coco(tmp_path / "things", make_truth())
    with pytest.raises(
        UsageError, match=r"task is classify and .* is COCO JSON, .*; train with --task .*, or give an image folder$"
    ):
        read_data(tmp_path / "things", "classify")


def test_what_an_annotation_tool_exported_is_told_how_to_be_split(tmp_path: Path) -> None:
    pictures = make_truth()["train"]
    exports = (write_coco_of_cvat, write_yolo_of_label_studio, write_yolo_of_roboflow, write_voc_of_labelimg)
    for write in (*exports, write_voc_without_lists):
        folder = tmp_path / f"{write.__name__} 1"
        write(folder, pictures)
        with pytest.raises(InputError) as caught:
            read_data(folder, "detect")
        assert notes_of(caught.value) == [
            f"to make train and val of it: spt-deploy data split '{folder}' '{folder}-split'"
        ]
    folder = make_image_folder(tmp_path / "classes")
    with pytest.raises(InputError, match="is no data set by itself") as caught:
        read_data(folder / "train")
    assert notes_of(caught.value) == []
    (folder / "train").rename(tmp_path / "animals")
    with pytest.raises(
        InputError, match=r"animals is an image folder without train and val \(blue/ to red/\)"
    ) as caught:
        read_data(tmp_path / "animals")
    assert len(notes_of(caught.value)) == 1


def test_what_is_split_and_broken_is_not_told_to_be_split(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", make_truth())
    (tmp_path / "coco/annotations/instances_val2017.json").write_text("{", encoding="utf-8")
    write_voc_by_folder(tmp_path / "roboflow", make_truth())
    for path in (tmp_path / "roboflow/valid").glob("*.xml"):
        path.write_text("<annotation>", encoding="utf-8")
    for name in ("coco", "roboflow"):
        with pytest.raises(InputError) as caught:
            read_data(tmp_path / name)
        assert notes_of(caught.value) == []

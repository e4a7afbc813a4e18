"""What lies beside the images of an export is no image of it, and what a tool has split is not mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from spt_deploy.cli.data import UNSPLIT_NAMES
from spt_deploy.datasets.formats import read_data
from spt_deploy.datasets.unsplit import _FINDERS, find_unsplit
from spt_deploy.errors import InputError
from tests.spt_deploy.datasets.data_formats import Picture, coco_content, make_truth, write_yolo
from tests.spt_deploy.datasets.test_formats import without_crowds
from tests.spt_deploy.datasets.unsplit_formats import (
    write_coco_of_label_studio,
    write_voc_of_labelimg,
    write_yolo_of_cvat,
    write_yolo_of_label_studio,
    write_yolo_of_labelimg,
)
from tests.spt_deploy.training.support import make_image_folder


@pytest.fixture
def pictures() -> list[Picture]:
    return [without_crowds(picture) for picture in make_truth(train=6)["train"]]


def names_in(folder: Path, *, broken: int = 0) -> list[str]:
    """Names of the images that are found in an export."""
    found = find_unsplit(folder, max_broken=0.5)
    assert found is not None
    assert len(found.broken) == broken
    return [item.name.stem for item in found.items]


def test_images_of_coco_lie_anywhere_below_and_each_is_taken_once(tmp_path: Path, pictures: list[Picture]) -> None:
    write_coco_of_label_studio(tmp_path, pictures)
    (tmp_path / "images").rename(tmp_path / "data")  # FiftyOne's
    content = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    content["images"].append({**content["images"][0], "id": 5})
    (tmp_path / "result.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(tmp_path / "data/train_000.png", tmp_path / "data/unlabelled.png")
    assert sorted(names_in(tmp_path, broken=1)) == [f"train_00{n}" for n in range(6)]
    found = find_unsplit(tmp_path)
    assert found is not None
    assert found.notes == (
        "result.json has its images in other folders: images/train_000.png is taken to be data/train_000.png",
        "1 image that result.json does not name: left out",
    )


def test_of_yolo_masks_are_no_images_and_a_label_without_image_is_named(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    write_yolo_of_label_studio(tmp_path, pictures)
    shutil.copytree(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "labels/gone.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    assert sorted(names_in(tmp_path, broken=1)) == [f"train_00{n}" for n in range(6)]
    found = find_unsplit(tmp_path, max_broken=0.5)
    assert found is not None
    assert "6 images not in images/: left out" in found.notes
    assert "gone.txt has no image of its name" in found.broken[0].reason


def test_labels_without_any_image_are_told_where_the_images_go(tmp_path: Path, pictures: list[Picture]) -> None:
    write_yolo_of_labelimg(tmp_path, pictures)
    for image in tmp_path.glob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match=r"train_\d+\.txt has no image of its name; put each label file beside its im"):
        find_unsplit(tmp_path)


def test_two_lists_of_classes_that_differ_are_named(tmp_path: Path, pictures: list[Picture]) -> None:
    write_yolo_of_label_studio(tmp_path, pictures)
    (tmp_path / "labels/classes.txt").write_text("person\ncar\nrider\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"classes\.txt and .*labels/classes\.txt name other classes"):
        find_unsplit(tmp_path)


def test_an_empty_line_in_a_list_of_classes_shifts_no_number(tmp_path: Path, pictures: list[Picture]) -> None:
    write_yolo_of_label_studio(tmp_path, pictures)
    (tmp_path / "classes.txt").write_text("\ncar\n\nperson\n\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"classes\.txt has the empty line \d; each line names the class of its number"
    ):
        find_unsplit(tmp_path)
    (tmp_path / "classes.txt").write_text("car\nperson\nrider\n\n \n", encoding="utf-8")
    found = find_unsplit(tmp_path)
    assert found is not None
    assert found.names == {0: "car", 1: "person", 2: "rider"}


def test_a_list_of_classes_in_another_encoding_is_told_how_to_be_saved(tmp_path: Path, pictures: list[Picture]) -> None:
    write_yolo_of_label_studio(tmp_path, pictures)
    (tmp_path / "classes.txt").write_text("voiture\npiéton\ncycliste\n", encoding="latin-1")
    with pytest.raises(InputError, match=r"classes\.txt cannot be read as text: .*; save it as UTF-8"):
        find_unsplit(tmp_path)


def test_outlines_that_cvat_lost_are_said_to_be_lost(tmp_path: Path, pictures: list[Picture]) -> None:
    write_yolo_of_cvat(tmp_path, pictures)
    for label in (tmp_path / "obj_train_data").glob("*.txt"):
        label.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"has 6 label files and no object in any; YOLO 1\.1 has boxes alone: export"):
        find_unsplit(tmp_path)


def test_an_image_beside_its_labels_outside_of_images_is_not_counted_as_labelled(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    write_yolo_of_label_studio(tmp_path, pictures)
    for label in (tmp_path / "labels").iterdir():
        shutil.copy(label, tmp_path / label.name)
    for image in (tmp_path / "images").iterdir():
        shutil.copy(image, tmp_path / image.name)
    (tmp_path / "labels/train_000.txt").unlink()
    found = find_unsplit(tmp_path)
    assert found is not None
    missing = sum(item.labels is None for item in found.items)
    assert found.notes[0].startswith(f"{missing} image")


def test_the_command_offers_the_formats_that_are_found() -> None:
    assert set(UNSPLIT_NAMES) == set(_FINDERS)


def test_what_a_tool_has_split_is_not_mixed(tmp_path: Path, pictures: list[Picture]) -> None:
    for name, write in (("cvat", write_yolo_of_cvat), ("labelimg", write_voc_of_labelimg)):
        write(tmp_path / name, pictures)
    (tmp_path / "cvat/obj_valid_data").mkdir()
    for path in (tmp_path / "cvat/obj_train_data").glob("train_005.*"):
        path.rename(tmp_path / "cvat/obj_valid_data" / path.name)
    with pytest.raises(InputError, match=r"is split already, into obj_train_data/ and obj_valid_data/; write data"):
        find_unsplit(tmp_path / "cvat")
    for split, images in (("training", "train_00[0-3].*"), ("validation", "train_00[45].*")):
        (tmp_path / "voc" / split).mkdir(parents=True)
        for path in (tmp_path / "labelimg").glob(images):
            path.rename(tmp_path / "voc" / split / path.name)
    with pytest.raises(InputError, match=r"is split already, into training/ and validation/; rename these to train/"):
        find_unsplit(tmp_path / "voc")
    (tmp_path / "voc/training").rename(tmp_path / "voc/train")
    assert find_unsplit(tmp_path / "voc") is None  # train reads it as it is
    folder = make_image_folder(tmp_path / "classes")
    (folder / "train").rename(folder / "training_set")
    (folder / "val").rename(folder / "test_set")
    with pytest.raises(InputError, match=r"is split already, into training_set/ and test_set/; rename these to train/"):
        find_unsplit(folder)


def test_images_in_no_class_are_said_to_be_left_out(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "kaggle")
    (folder / "test").mkdir()  # Kaggle's, without labels
    for number, image in enumerate((folder / "val").rglob("*.png")):
        image.rename(folder / f"test/{number}.png")
    shutil.rmtree(folder / "val")
    found = find_unsplit(folder)
    assert found is not None
    assert found.notes == (f"{number + 1} images in no CLASS/ folder of train/: left out",)
    (folder / "train").rename(tmp_path / "classes")
    shutil.copy(folder / "test/0.png", tmp_path / "classes")
    found = find_unsplit(tmp_path / "classes")
    assert found is not None
    assert found.notes == ("1 image in no CLASS/ folder: left out",)


def test_folders_of_an_annotation_tool_are_no_classes(tmp_path: Path, pictures: list[Picture]) -> None:
    for name in ("a", "b"):
        write_coco_of_label_studio(tmp_path / "labelme" / name, pictures)
        (tmp_path / "labelme" / name / "result.json").unlink()
        for image in (tmp_path / "labelme" / name / "images").iterdir():
            image.rename(tmp_path / "labelme" / name / image.name)
            image.with_suffix(".json").parents[1].joinpath(f"{image.stem}.json").write_text("{}", encoding="utf-8")
    assert find_unsplit(tmp_path / "labelme") is None


def test_the_one_folder_in_an_unpacked_file_is_looked_into(tmp_path: Path, pictures: list[Picture]) -> None:
    write_yolo_of_label_studio(tmp_path / "zip/project-1", pictures)
    (tmp_path / "zip/__MACOSX").mkdir()
    assert sorted(names_in(tmp_path / "zip")) == [f"train_00{n}" for n in range(6)]


def test_lists_of_cvat_begin_with_a_folder_that_is_not_there(tmp_path: Path) -> None:
    truth = {split: [without_crowds(p) for p in pictures] for split, pictures in make_truth().items()}
    folder = write_yolo(tmp_path, truth, "list")
    for split in truth:
        path = folder / f"{split}.txt"
        path.write_text(path.read_text(encoding="utf-8").replace("./", "data/"), encoding="utf-8")
    data = read_data(folder, "detect")
    assert (len(data.train), len(data.val)) == (8, 4)
    assert not data.broken


def test_a_json_file_of_one_list_is_no_coco(tmp_path: Path, pictures: list[Picture]) -> None:
    content = coco_content(pictures)
    (tmp_path / "notes.json").write_text(json.dumps({"categories": content["categories"]}), encoding="utf-8")
    assert find_unsplit(tmp_path) is None

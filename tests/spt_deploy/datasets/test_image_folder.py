"""Image folders: what is found, and what is wrong with a folder that is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from spt_deploy.datasets.image_folder import read_image_folder
from spt_deploy.errors import InputError
from tests.spt_deploy.training.support import make_image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "data", train=3, val=2)


def test_classes_are_the_folders_in_alphabetical_order(folder: Path) -> None:
    data = read_image_folder(folder)
    assert data.class_names == ("blue", "green", "red")
    assert [r.label for r in data.train] == [0] * 3 + [1] * 3 + [2] * 3
    assert [r.path.parent.name for r in data.val] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    assert data.has_objects


def test_tiny_imagenets_layout_and_box_names_are_understood(folder: Path) -> None:
    for split in ("train", "val"):
        place = folder / split / "red"
        (place / "boxes.txt").rename(place / "red_boxes.txt")
        (place / "images").mkdir()
        for image in place.glob("*.png"):
            image.rename(place / "images" / image.name)
    records = [r for r in read_image_folder(folder).train if r.label == 2]
    assert len(records) == 3
    assert all(r.objects is not None and r.objects.boxes.shape == (1, 4) for r in records)
    assert all(r.objects is not None and r.objects.labels.tolist() == [2] for r in records)


def test_an_image_without_a_line_holds_no_object_and_a_folder_without_the_file_says_nothing(folder: Path) -> None:
    (folder / "train/red/boxes.txt").write_text("000.png\t1\t2\t3\t4\n000.png\t5\t6\t7.5\t8\n", encoding="utf-8")
    (folder / "train/blue/boxes.txt").unlink()
    objects = {r.path.relative_to(folder).as_posix(): r.objects for r in read_image_folder(folder).train}
    two = objects["train/red/000.png"]
    assert two is not None
    np.testing.assert_array_equal(two.boxes, [[1, 2, 3, 4], [5, 6, 7.5, 8]])
    none = objects["train/red/001.png"]
    assert none is not None
    assert none.boxes.shape == (0, 4)
    assert objects["train/blue/000.png"] is None


@pytest.mark.parametrize(
    "line", ["000.png 1 2 3 4", "000.png\t1\t2\t3", "000.png\t1\t2\tx\t4", "000.png\t9\t2\t3\t4", "000.png\t5\t2\t5\t4"]
)
def test_a_line_that_is_no_box_is_named(folder: Path, line: str) -> None:
    (folder / "train/red/boxes.txt").write_text(f"000.png\t1\t2\t3\t4\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"boxes\.txt line 2 .*expected filename, x0, y0, x1, y1"):
        read_image_folder(folder)


def test_a_line_of_no_image_is_named(folder: Path) -> None:
    (folder / "train/red/boxes.txt").write_text("000.png\t1\t2\t3\t4\n0.png\t1\t2\t3\t4\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"red/boxes\.txt has a box of 0\.png, which is no image of .*train/red"):
        read_image_folder(folder)
    assert len(read_image_folder(folder, max_broken=0.1).broken) == 1


def test_a_byte_order_mark_is_no_part_of_a_name(folder: Path) -> None:
    (folder / "train/red/boxes.txt").write_text("000.png\t1\t2\t3\t4\n", encoding="utf-8-sig")
    objects = next(r.objects for r in read_image_folder(folder).train if r.label == 2)
    assert objects is not None
    assert objects.boxes.tolist() == [[1, 2, 3, 4]]


def test_no_folder_no_val_and_no_train_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        read_image_folder(folder / "nowhere")
    (folder / "val").rename(folder / "valid")
    with pytest.raises(InputError, match=r"has no val/; expected .*; rename valid/ to val/$"):
        read_image_folder(folder)
    shutil.rmtree(folder / "valid")
    with pytest.raises(InputError, match=r"has no val/; expected .* with images$"):
        read_image_folder(folder)
    shutil.rmtree(folder / "train")
    with pytest.raises(InputError, match="has no train/ and no val/"):
        read_image_folder(folder)


def test_a_class_that_one_split_lacks_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "val/green")
    with pytest.raises(InputError, match="val lacks the class green"):
        read_image_folder(folder)


def test_a_class_folder_without_images_is_named(folder: Path) -> None:
    for image in (folder / "train/green").glob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match="class green is empty"):
        read_image_folder(folder)


def test_a_split_without_class_folders_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    with pytest.raises(InputError, match="val has no class folders"):
        read_image_folder(folder)

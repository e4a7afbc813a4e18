"""Data sets of known truth as annotation tools export them, without splits."""

from __future__ import annotations

import json
from pathlib import Path

from tests.spt_deploy.datasets.data_formats import NAMES, Picture, write_coco, write_voc, write_yolo


def write_coco_of_cvat(folder: Path, pictures: list[Picture]) -> None:
    write_coco(folder, {"train": pictures})
    (folder / "images").mkdir()
    (folder / "train2017").rename(folder / "images/default")
    (folder / "annotations/instances_train2017.json").rename(folder / "annotations/instances_default.json")


def write_coco_of_label_studio(folder: Path, pictures: list[Picture]) -> None:
    write_coco(folder, {"train": pictures})
    (folder / "train2017").rename(folder / "images")
    content = json.loads((folder / "annotations/instances_train2017.json").read_text(encoding="utf-8"))
    for image in content["images"]:
        image["file_name"] = f"images\\{image['file_name']}"  # on Windows
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "annotations/instances_train2017.json").unlink()
    (folder / "annotations").rmdir()


def write_coco_of_roboflow(folder: Path, pictures: list[Picture]) -> None:
    write_coco(folder, {"train": pictures}, "roboflow")


def write_coco_without_val(folder: Path, pictures: list[Picture]) -> None:
    write_coco(folder, {"train": pictures})
    captions = {"images": [], "annotations": [], "categories": []}
    (folder / "annotations/captions_train2017.json").write_text(json.dumps(captions), encoding="utf-8")


def write_yolo_of_label_studio(folder: Path, pictures: list[Picture]) -> None:
    write_yolo(folder, {"train": pictures, "val": []})
    for name in ("images", "labels"):
        (folder / name / "train").rename(folder / "moved")
        (folder / name / "val").rmdir()
        (folder / name).rmdir()
        (folder / "moved").rename(folder / name)
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")


def write_yolo_of_cvat(folder: Path, pictures: list[Picture]) -> None:
    write_yolo_of_label_studio(folder, pictures)
    (folder / "images").rename(folder / "obj_train_data")
    for label in (folder / "labels").iterdir():
        label.rename(folder / "obj_train_data" / label.name)
    (folder / "labels").rmdir()
    (folder / "classes.txt").rename(folder / "obj.names")
    (folder / "obj.data").write_text("classes = 3\ntrain = data/train.txt\nnames = data/obj.names\n", encoding="utf-8")
    listed = "".join(f"data/obj_train_data/{picture.name}.png\n" for picture in pictures)
    (folder / "train.txt").write_text(listed, encoding="utf-8")


def write_yolo_of_labelimg(folder: Path, pictures: list[Picture]) -> None:
    write_yolo_of_cvat(folder, pictures)
    for name in ("obj.data", "train.txt"):
        (folder / name).unlink()
    (folder / "obj.names").rename(folder / "obj_train_data/classes.txt")
    for path in (folder / "obj_train_data").iterdir():
        path.rename(folder / path.name)
    (folder / "obj_train_data").rmdir()


def write_yolo_of_roboflow(folder: Path, pictures: list[Picture]) -> None:
    write_yolo(folder, {"train": pictures, "val": []}, "roboflow")
    for name in ("images", "labels"):
        (folder / "valid" / name).rmdir()


def write_voc_without_lists(folder: Path, pictures: list[Picture]) -> None:
    write_voc(folder, {"train": pictures})
    (folder / "ImageSets/Main/train.txt").unlink()


def write_voc_of_cvat(folder: Path, pictures: list[Picture]) -> None:
    write_voc(folder, {"train": pictures})
    (folder / "ImageSets/Main/train.txt").rename(folder / "ImageSets/Main/default.txt")
    for picture in pictures:
        if not picture.things:
            (folder / f"Annotations/{picture.name}.xml").unlink()
    (folder / "labelmap.txt").write_text("".join(f"{name}:128,0,0::\n" for name in NAMES), encoding="utf-8")


def write_voc_of_kaggle(folder: Path, pictures: list[Picture]) -> None:
    write_voc(folder, {"train": pictures}, outlines=False)
    (folder / "Annotations").rename(folder / "annotations")
    (folder / "JPEGImages").rename(folder / "images")


def write_voc_of_labelimg(folder: Path, pictures: list[Picture]) -> None:
    write_voc(folder, {"train": pictures}, outlines=False)
    for path in [*(folder / "Annotations").iterdir(), *(folder / "JPEGImages").iterdir()]:
        path.rename(folder / path.name)

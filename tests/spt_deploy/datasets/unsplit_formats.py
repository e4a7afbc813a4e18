"""Data sets of known truth as annotation tools export them, without splits."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np

from tests.spt_deploy.datasets.data_formats import (
    HEIGHT,
    NAMES,
    WIDTH,
    Picture,
    Thing,
    write_coco,
    write_voc,
    write_yolo,
)


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


def write_labelme(folder: Path, pictures: list[Picture]) -> None:
    """In every picture another of the shapes that labelme has for the same thing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{picture.name}.png"), picture.draw())
        shapes = [
            {"label": thing.name, "difficult": thing.crowd, "group_id": None, "flags": {}, **shape}
            for place, thing in enumerate(picture.things)
            for shape in labelme_shapes(thing, number % 4, place)
        ]
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"..\\drive\\{picture.name}.png" if number % 2 else f"{picture.name}.png",
            "imageData": "iVBORw0KGgo=" if number % 3 else None,
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
        }
        (folder / f"{picture.name}.json").write_text(json.dumps(content), encoding="utf-8")


def write_cvat(folder: Path, pictures: list[Picture]) -> None:
    """In every picture another of the shapes that CVAT has for the same thing."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    size = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    ElementTree.SubElement(size, "size").text = str(len(pictures))
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"images/{picture.name}.png"), picture.draw())
        fields = {"id": str(number), "name": f"{picture.name}.png", "subset": "default"}
        image = ElementTree.SubElement(root, "image", fields | {"width": str(WIDTH), "height": str(HEIGHT)})
        for group, thing in enumerate(picture.things, start=1):
            for tag, values in cvat_shapes(thing, number % 3):
                shared = {"label": thing.name, "group_id": str(group), "occluded": "0", "z_order": "0"}
                shape = ElementTree.SubElement(image, tag, shared | values)
                crowd = ElementTree.SubElement(shape, "attribute", name="is_crowd")
                crowd.text = "true" if thing.crowd else "false"
    ElementTree.ElementTree(root).write(folder / "annotations.xml", encoding="utf-8", xml_declaration=True)


def cvat_shapes(thing: Thing, kind: int) -> list[tuple[str, dict[str, str]]]:
    """A thing as polygon, as box or polygons of one group, or as a mask."""
    x0, y0, x1, y1 = thing.box
    if kind == 0:
        polygon = thing.polygon()
        return [("polygon", {"points": ";".join(f"{x},{y}" for x, y in zip(polygon[::2], polygon[1::2], strict=True))})]
    if kind == 2:
        inside = thing.mask()[y0:y1, x0:x1].flatten().astype(int)
        edges = np.flatnonzero(np.diff(inside, prepend=0)).tolist()
        runs = np.diff([0, *edges, inside.size]).tolist()
        place = {"left": str(x0), "top": str(y0), "width": str(x1 - x0), "height": str(y1 - y0)}
        return [("mask", {"rle": ", ".join(map(str, runs)), **place})]
    if not thing.is_l:
        return [("box", {"xtl": f"{x0:.2f}", "ytl": f"{y0:.2f}", "xbr": f"{x1:.2f}", "ybr": f"{y1:.2f}"})]
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    parts = [(x0, y0, x, y1), (x, y, x1, y1)]
    return [("polygon", {"points": f"{a},{b};{c},{b};{c},{f};{a},{f}"}) for a, b, c, f in parts]


def labelme_shapes(thing: Thing, kind: int, group: int) -> list[dict[str, object]]:
    """A thing as polygon, as rectangles of one group by two or by four corners, or as a mask."""
    x0, y0, x1, y1 = thing.box
    if kind == 0:
        polygon = thing.polygon()
        return [{"shape_type": "polygon", "points": [polygon[i : i + 2] for i in range(0, len(polygon), 2)]}]
    if kind == 3:
        picture = base64.b64encode(cv2.imencode(".png", thing.mask()[y0:y1, x0:x1])[1].tobytes()).decode()
        return [{"shape_type": "mask", "points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": picture}]
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    parts = [(x0, y0, x, y1), (x, y, x1, y1)] if thing.is_l else [thing.box]
    return [
        {
            "shape_type": "rectangle",
            "points": [[c, f], [a, b]] if kind == 1 else [[a, b], [c, b], [c, f], [a, f]],
            "group_id": group,
        }
        for a, b, c, f in parts
    ]

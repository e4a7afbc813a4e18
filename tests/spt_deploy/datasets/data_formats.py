"""Small data sets of known truth, written in each format.

The truth: every image is grey noise with a few rectangles of one colour a class, which the same numbers describe.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spt_deploy.datasets.outlines import counts_of, voc_palette

COLOURS = {"car": (220, 60, 40), "person": (60, 200, 60), "rider": (50, 50, 220)}  # BGR, in alphabetical order
NAMES = tuple(COLOURS)
CATEGORY_IDS = (3, 17, 90)  # of the same names, with gaps
HEIGHT, WIDTH = 48, 64
SPLITS = ("train", "val")
CVAT = {"train": "Train", "val": "Validation"}  # what it calls them


@dataclass(frozen=True)
class Thing:
    """A rectangle, x1 and y1 past the last pixel; ``is_l`` leaves its upper right quarter out of the outline."""

    name: str
    box: tuple[int, int, int, int]
    crowd: bool = False
    is_l: bool = False

    def mask(self) -> np.ndarray:
        """HEIGHT x WIDTH uint8, the true pixels."""
        x0, y0, x1, y1 = self.box
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[y0:y1, x0:x1] = 1
        if self.is_l:
            mask[y0 : (y0 + y1) // 2, (x0 + x1) // 2 : x1] = 0
        return mask

    def polygon(self) -> list[int]:
        """The same as corners, x and y in turn."""
        x0, y0, x1, y1 = self.box
        if not self.is_l:
            return [x0, y0, x1, y0, x1, y1, x0, y1]
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        return [x0, y0, x, y0, x, y, x1, y, x1, y1, x0, y1]


@dataclass(frozen=True)
class Picture:
    """An image and the things in it."""

    name: str
    things: tuple[Thing, ...]

    def draw(self) -> np.ndarray:
        """HEIGHT x WIDTH x 3 uint8 BGR."""
        image = np.random.default_rng(len(self.things)).integers(100, 140, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for thing in self.things:
            image[thing.mask() > 0] = COLOURS[thing.name]
        return image

    def ratio(self, outlines: bool) -> float:
        """Share of the image's pixels in a thing, counted one by one."""
        covered = set()
        for thing in self.things:
            mask = thing.mask()
            x0, y0, x1, y1 = thing.box
            covered |= {
                (x, y) for x in range(x0, x1) for y in range(y0, y1) if not outlines or not thing.is_l or mask[y, x]
            }
        return len(covered) / (HEIGHT * WIDTH)


Truth = dict[str, list[Picture]]  # of each split
Writer = Callable[[Path, Truth], Path]


def make_truth(train: int = 8, val: int = 4, seed: int = 0) -> dict[str, list[Picture]]:
    """Pictures of both splits, with none to three things; each class is in each split."""
    random = np.random.default_rng(seed)
    truth: dict[str, list[Picture]] = {}
    for split, count in (("train", train), ("val", val)):
        pictures = []
        for index in range(count):
            things = []
            for place in range(3 if index == 0 else int(random.integers(0, 4)) if index > 1 else 0):
                width, height = (2 * int(v) for v in random.integers(3, 15, 2))
                x, y = int(random.integers(0, WIDTH - width + 1)), int(random.integers(0, HEIGHT - height + 1))
                name = NAMES[place if index == 0 else int(random.integers(3))]
                is_crowd, is_l = bool(random.random() < 0.25), bool(random.random() < 0.5)
                things.append(Thing(name, (x, y, x + width, y + height), is_crowd, is_l))
            pictures.append(Picture(f"{split}_{index:03}", tuple(things)))
        truth[split] = pictures
    return truth


def _write_images(folder: Path, pictures: list[Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        cv2.imwrite(str(folder / f"{picture.name}.png"), picture.draw())


def coco_content(pictures: list[Picture], outlines: bool = True) -> dict[str, Any]:
    """A split as COCO's JSON: crowds as run lengths, other things as polygons."""
    images, annotations = [], []
    for index, picture in enumerate(pictures):
        image_id = 1000 - 7 * index  # neither contiguous nor ascending
        images.append({"id": image_id, "file_name": f"{picture.name}.png", "height": HEIGHT, "width": WIDTH})
        for thing in picture.things:
            x0, y0, x1, y1 = thing.box
            mask = thing.mask()
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": CATEGORY_IDS[NAMES.index(thing.name)],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(thing.crowd),
                "area": float(mask.sum()) if outlines else float((x1 - x0) * (y1 - y0)),
            }
            if outlines:
                runs = {"size": [HEIGHT, WIDTH], "counts": counts_of(mask)}
                annotation["segmentation"] = runs if thing.crowd else [thing.polygon()]
            annotations.append(annotation)
    categories = [{"id": i, "name": n, "supercategory": "thing"} for i, n in zip(CATEGORY_IDS, NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def write_coco(folder: Path, truth: dict[str, list[Picture]], layout: str = "coco", outlines: bool = True) -> Path:
    """COCO JSON as ``coco`` itself, ``short`` names or ``roboflow`` lay it out."""
    for split, pictures in truth.items():
        images = {"coco": f"{split}2017", "short": "images", "roboflow": {"train": "train", "val": "valid"}[split]}[
            layout
        ]
        _write_images(folder / images, pictures)
        name = {
            "coco": f"annotations/instances_{split}2017.json",
            "short": f"annotations/{split}.json",
            "roboflow": f"{images}/_annotations.coco.json",
        }[layout]
        (folder / name).parent.mkdir(exist_ok=True)
        content = coco_content(pictures, outlines)
        if layout == "roboflow":  # it puts a heading over the classes
            heading = {"id": 0, "name": "thing", "supercategory": "none"}
            content["categories"] = [heading, *content["categories"]]
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_voc(folder: Path, truth: dict[str, list[Picture]], outlines: bool = True) -> Path:
    """Pascal VOC; with ``outlines`` every image has its PNG of object numbers."""
    for name in ("Annotations", "ImageSets/Main", "SegmentationObject"):
        (folder / name).mkdir(parents=True)
    for split, pictures in truth.items():
        _write_images(folder / "JPEGImages", pictures)
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{p.name}\n" for p in pictures), encoding="utf-8")
        for picture in pictures:
            objects = ""
            numbers = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            for number, thing in enumerate(picture.things, start=1):
                x0, y0, x1, y1 = thing.box
                corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
                objects += (
                    f"<object><name>{thing.name}</name><difficult>{int(thing.crowd)}</difficult>"
                    f"<bndbox>{corners}</bndbox></object>\n"
                )
                numbers[thing.mask() > 0] = number
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{picture.name}.png</filename>{size}\n{objects}</annotation>\n"
            (folder / f"Annotations/{picture.name}.xml").write_text(text, encoding="utf-8")
            if outlines:
                # OpenCV writes no palette; a reader sees the colours that the palette would give.
                colours = voc_palette()[numbers][:, :, ::-1]
                cv2.imwrite(str(folder / f"SegmentationObject/{picture.name}.png"), colours)
    return folder


def write_voc_by_folder(folder: Path, truth: Truth, images: str = "", xml: str = "") -> Path:
    """Pascal VOC with a folder a split, as Roboflow writes it; ``images`` and ``xml`` name folders in it."""
    write_voc(folder / "whole", truth, outlines=False)
    for split, pictures in truth.items():
        for picture in pictures:
            for source, place in (
                (f"Annotations/{picture.name}.xml", xml),
                (f"JPEGImages/{picture.name}.png", images),
            ):
                target = folder / split.replace("val", "valid") / place / Path(source).name
                target.parent.mkdir(parents=True, exist_ok=True)
                (folder / "whole" / source).rename(target)
    shutil.rmtree(folder / "whole")
    return folder


def write_voc_of_cvat(folder: Path, truth: Truth) -> Path:
    """Pascal VOC as CVAT writes it: other lists, a list of labels, and no XML file where there is nothing to say."""
    write_voc(folder, truth)
    for split, name in CVAT.items():
        (folder / f"ImageSets/Main/{split}.txt").rename(folder / f"ImageSets/Main/{name}.txt")
        for picture in truth[split]:
            if not picture.things:
                (folder / f"Annotations/{picture.name}.xml").unlink()
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", *(f"{name}:128,0,0::" for name in NAMES)]
    (folder / "labelmap.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def write_bdd(folder: Path, truth: dict[str, list[Picture]], layout: str = "labels/det_20/det_{}.json") -> Path:
    """BDD100K; a thing that is crowd has the attribute."""
    for split, pictures in truth.items():
        _write_images(folder / "images/100k" / split, pictures)
        entries = []
        for picture in pictures:
            labels: list[dict[str, Any]] = [{"category": "lane", "poly2d": []}]
            for thing in picture.things:
                box = dict(zip(("x1", "y1", "x2", "y2"), map(float, thing.box), strict=True))
                labels.append({"category": thing.name, "attributes": {"crowd": thing.crowd}, "box2d": box})
            entries.append({"name": f"{picture.name}.png", "labels": labels if picture.things else None})
        path = folder / layout.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries), encoding="utf-8")
    return folder


def write_bdd_of_images(folder: Path, truth: Truth, layout: str = "labels/100k") -> Path:
    """BDD100K of 2018 with a file an image."""
    for split, pictures in truth.items():
        _write_images(folder / "images/100k" / split, pictures)
        for path in (folder / "images/100k" / split).iterdir():
            path.rename(path.with_suffix(".jpg"))  # which is what BDD's are; a reader looks at the content
        (folder / layout / split).mkdir(parents=True)
        for picture in pictures:
            objects: list[dict[str, Any]] = [{"category": "lane/single white", "id": 0, "poly2d": [[0, 1, "L"]]}]
            for thing in picture.things:
                box = dict(zip(("x1", "y1", "x2", "y2"), map(float, thing.box), strict=True))
                objects.append(
                    {"category": thing.name, "id": len(objects), "attributes": {"crowd": thing.crowd}, "box2d": box}
                )
            content = {"name": picture.name, "frames": [{"timestamp": 10000, "objects": objects}], "attributes": {}}
            (folder / layout / split / f"{picture.name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_yolo(folder: Path, truth: Truth, layout: str = "ultralytics", outlines: bool = True) -> Path:
    """YOLO labels as Ultralytics or ``roboflow`` lays them out, or with a ``list`` of images and numbers with gaps.

    There are no crowds, and an image without a thing has an empty label file, or none.
    """
    names: dict[int, str] = dict(enumerate(NAMES))
    if layout == "list":
        names = dict(zip(CATEGORY_IDS, NAMES, strict=True))
    numbers = {name: number for number, name in names.items()}
    splits = {}
    for split, pictures in truth.items():
        inner = {"train": "train", "val": "valid"}[split] if layout == "roboflow" else split
        images = f"{inner}/images" if layout == "roboflow" else f"images/{inner}"
        _write_images(folder / images, pictures)
        labels = folder / images.replace("images", "labels")
        labels.mkdir(parents=True)
        for index, picture in enumerate(pictures):
            lines = [_yolo_line(numbers[thing.name], thing, outlines) for thing in picture.things]
            if lines or index % 2:
                (labels / f"{picture.name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        splits[split] = {"ultralytics": images, "roboflow": f"../{images}", "list": f"{split}.txt"}[layout]
        if layout == "list":
            listed = "".join(f"./{images}/{picture.name}.png\n" for picture in pictures)
            (folder / f"{split}.txt").write_text(listed, encoding="utf-8")
    text = f"train: {splits['train']}\nval: {splits['val']}\nnc: {len(names)}\nnames:"
    text += "".join(f"\n  {number}: {name}" for number, name in names.items()) if layout == "list" else f" {[*NAMES]}"
    (folder / "data.yaml").write_text(f"{text}\n", encoding="utf-8")
    return folder


def _yolo_line(number: int, thing: Thing, outlines: bool) -> str:
    if outlines:
        corners = thing.polygon()
        shares = [value / (HEIGHT if place % 2 else WIDTH) for place, value in enumerate(corners)]
    else:
        x0, y0, x1, y1 = thing.box
        shares = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
    return " ".join([str(number), *map(str, shares)])

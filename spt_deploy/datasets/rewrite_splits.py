"""Both splits of a data set that had none (`unsplit.py`), written in the layout that the format's reader reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from spt_deploy.datasets import coco_json, image_folder, voc_layout, voc_xml, yolo
from spt_deploy.datasets.annotations import class_file
from spt_deploy.datasets.heap import Item, Unsplit
from spt_deploy.datasets.rewrite import filter_lines, link, write_json, write_lines

Splits = Mapping[str, Sequence[Item]]
Jobs = list[tuple[Path, Path]]


def write_splits(data: Unsplit, splits: Splits, out: Path) -> Jobs:
    """Write everything of a split data set but its images.

    Args:
        data: what was found.
        splits: its items, by the name of the split, ``train`` and ``val``.
        out: folder to write into.

    Returns:
        Of each image, where it lies and where it goes.
    """
    return _WRITERS[data.format](data, splits, out)


def _coco(data: Unsplit, splits: Splits, out: Path) -> Jobs:
    # images/train/ and annotations/instances_train.json, whatever the file and its folders were called
    id_of = {item.image: number for item, number in zip(data.items, data.ids, strict=True)}
    for split, items in splits.items():
        names = {id_of[item.image]: item.name.as_posix() for item in items}
        images = (each for each in data.content["images"] if isinstance(each, dict))
        kept = {coco_json.id_of(each.get("id")): each for each in reversed(list(images))}
        annotations = [
            each
            for each in data.content["annotations"]
            if isinstance(each, dict) and coco_json.id_of(each.get("image_id")) in names
        ]
        content = {
            **data.content,
            "images": [{**kept[number], "file_name": name} for number, name in names.items()],
            "annotations": annotations,
        }
        write_json(out / "annotations" / f"instances_{split}.json", content)
    return _below_split(splits, out)


def _yolo(data: Unsplit, splits: Splits, out: Path) -> Jobs:
    for split, items in splits.items():
        for item in items:
            labels = out / "labels" / split / item.name.with_suffix(".txt")
            if item.labels is None:
                write_lines(labels, [])  # said to hold nothing: a split without any label file is refused
            else:
                _copy(item.labels, labels)
    # JSON is YAML, whatever is in a name.
    entries = {"names": {str(number): name for number, name in data.names.items()}, **data.keypoints}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    write_lines(out / "data.yaml", ["train: images/train", "val: images/val", *lines])
    return _below_split(splits, out)


def _voc(data: Unsplit, splits: Splits, out: Path) -> Jobs:
    jobs: Jobs = []
    for split, items in splits.items():
        names = [item.name.with_suffix("").as_posix() for item in items]
        write_lines(out / "ImageSets/Main" / f"{split}.txt", names)
        for name, item in zip(names, items, strict=True):
            jobs.append((item.image, out / "JPEGImages" / item.name))
            if item.labels is not None:
                _copy(item.labels, out / "Annotations" / f"{name}.xml")
            shapes = data.folder / "SegmentationObject" / f"{name}.png"
            if shapes.is_file():
                link(shapes, out / "SegmentationObject" / f"{name}.png")
    if class_file(data.folder):
        _copy(data.folder / "classes.txt", out / "classes.txt")
    if (data.folder / voc_layout.LABEL_MAP).is_file():
        _copy(data.folder / voc_layout.LABEL_MAP, out / voc_layout.LABEL_MAP)
        (out / "Annotations").mkdir(exist_ok=True)  # where no image holds an object
    return jobs


def _folder(data: Unsplit, splits: Splits, out: Path) -> Jobs:
    for split, items in splits.items():
        of_class: dict[str, list[Path]] = {}
        for item in items:
            of_class.setdefault(item.group, []).append(item.image)
        for name, images in of_class.items():
            boxes = image_folder.box_file(data.folder / name)
            if boxes is not None:
                kept = {each for image in images for each in image_folder.names_of(image, data.folder / name)}
                filter_lines(boxes, out / split / name / boxes.name, kept)
    return [(item.image, out / split / item.name) for split, items in splits.items() for item in items]


def _below_split(splits: Splits, out: Path) -> Jobs:
    return [(item.image, out / "images" / split / item.name) for split, items in splits.items() for item in items]


def _copy(source: Path, target: Path) -> None:
    """Not as a link: an annotation that is mended in place stays the new data set's own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


_WRITERS: dict[str, Callable[[Unsplit, Splits, Path], Jobs]] = {
    coco_json.NAME: _coco,
    yolo.NAME: _yolo,
    voc_xml.NAME: _voc,
    image_folder.NAME: _folder,
}

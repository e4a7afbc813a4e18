"""The COCO format: one JSON file a split, with lists ``images``, ``annotations`` and ``categories``.

    images         {"id": 139, "file_name": "000000000139.jpg", "height": 426, "width": 640}
    annotations    {"image_id": 139, "category_id": 64, "bbox": [x, y, width, height], "iscrowd": 0,
                    "area": 531.8, "segmentation": [[x0, y0, x1, y1, ...], ...] or {"size": .., "counts": ..}}
    categories     {"id": 64, "name": "potted plant"}

Classes are the categories by ascending id, which need not be contiguous. ``area``, ``iscrowd`` and ``segmentation`` may
be missing, and so may ``height`` and ``width``, which the image then says. Where the files lie:

    annotations/instances_train2017.json + train2017/*.jpg     COCO's own; any year or none; or images/train2017/
    annotations/train.json + images/*.jpg                      the same, shorter names; or images/train/, train/
    train/_annotations.coco.json + train/*.jpg                 Roboflow's; its valid/ or test/ is our val
    annotations/instances_Train.json + images/Train/*.jpg      CVAT's; its Validation or Test is our val
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spt_deploy.datasets.annotations import (
    AnnotationError,
    LeftOut,
    ObjectList,
    SplitFile,
    checked,
    first_file,
    half_of,
    load_json,
    numbers,
)
from spt_deploy.datasets.dataset import Broken, DataSet, Record
from spt_deploy.datasets.objects import Outline
from spt_deploy.datasets.outlines import Polygons, RunLength
from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import read_size

NAME = "coco"
TITLE = "COCO JSON"
LOOKS_FOR = "annotations/[instances_]train*.json or train/_annotations.coco.json, and the same for val"

_TRIANGLE = 6  # numbers
_TWICE = "has a category's id or name twice; each must be there once"
_NO_OBJECT = (AnnotationError, KeyError, TypeError, AttributeError)  # raised by an annotation that cannot be used
_NAMES = {  # the first that is there; CVAT's begin with a capital
    "train": ("train", "Train"),
    "val": ("val", "Val", "valid", "validation", "Validation", "test", "Test"),
}


def find(folder: Path) -> dict[str, SplitFile]:
    """The files of ``train`` and ``val``; empty where ``folder`` has not both."""
    found = _found(folder)
    return found if len(found) == len(_NAMES) else {}


def found_text(folder: Path) -> str | None:
    """What of the format is in ``folder``; None where it is not this format."""
    files = find(folder)
    return " and ".join(str(f.path.relative_to(folder)) for f in files.values()) if files else None


def half_text(folder: Path) -> str | None:
    """What ``folder`` has of the format and what it lacks; None where it has nothing or all."""
    found, place = _found(folder), folder / "annotations"
    others = _json_files(place) if place.is_dir() else []
    if not found and others:  # of CVAT, where nobody has said what is to be learnt from
        return f"has {others[0].relative_to(folder)} and no such file for train and val"
    return half_of(found, folder)


def read(folder: Path, max_broken: float) -> DataSet:
    """Read both splits; no image is opened whose size is given.

    Raises:
        InputError: when a file is missing or is no COCO JSON, the splits have different categories, or too much is
            broken.
    """
    files = find(folder)
    if not files:
        raise InputError(f"{folder} {half_text(folder) or 'has no COCO JSON files'}; looked for {LOOKS_FOR}")
    contents = {split: load(file.path) for split, file in files.items()}
    names = _categories(files["train"].path, contents["train"])
    other = _categories(files["val"].path, contents["val"])
    if names != other:
        different = sorted({str(v) for v in names.items() ^ other.items()})
        raise InputError(
            f"{files['train'].path} and {files['val'].path} have different categories: {', '.join(different[:8])}; "
            "write the same list into both"
        )
    used = {id_of(a.get("category_id")) for c in contents.values() for a in c["annotations"] if isinstance(a, dict)}
    ids = sorted(i for i in names if i in used or not _is_group(i, contents["train"]["categories"]))
    if len({names[i] for i in ids}) != len(ids):
        raise InputError(f"{files['train'].path} {_TWICE}")
    places = {category: place for place, category in enumerate(ids)}
    broken: list[Broken] = []
    records: dict[str, tuple[Record, ...]] = {}
    for split, file in files.items():
        left_out = LeftOut(file.path, max_broken)
        records[split] = tuple(_records(file, contents[split], places, left_out))
        left_out.check(len(contents[split]["images"]), len(records[split]))
        broken += left_out.broken
    data = DataSet(
        class_names=tuple(names[i] for i in ids),
        train=records["train"],
        val=records["val"],
        format=NAME,
        category_ids=tuple(ids),
        broken=tuple(broken),
    )
    return checked(data, folder)


def _found(folder: Path) -> dict[str, SplitFile]:
    places = (folder / "annotations", folder)
    files = {place: _json_files(place) for place in places if place.is_dir()}
    found = {split: _find_split(folder, names, files) for split, names in _NAMES.items()}
    return {split: file for split, file in found.items() if file is not None}


def _find_split(folder: Path, names: tuple[str, ...], files: dict[Path, list[Path]]) -> SplitFile | None:
    """``files`` are the JSON files that may be of the split, by the folder they lie in."""
    for name in names:
        roboflow = folder / name / "_annotations.coco.json"
        if roboflow.is_file():
            return SplitFile(roboflow, (folder / name,))
        for place, there in files.items():
            # A train.json in the open may be anything: only COCO's own name counts there.
            starts = (f"instances_{name}",) if place == folder else (f"instances_{name}", name)
            file = next((path for start in starts for path in there if path.name.startswith(start)), None)
            if file is not None:
                own = file.stem.removeprefix("instances_")
                inner = (folder / own, folder / "images" / own, folder / name, folder / "images" / name)
                return SplitFile(file, (*inner, folder / "images", folder))
    return None


def _json_files(folder: Path) -> list[Path]:
    """Sorted by name. Not by ``glob``, for which a locked folder is an empty one."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".json")


def load(path: Path) -> dict[str, Any]:
    """What a COCO JSON file holds: the lists ``images``, ``annotations`` and ``categories``.

    Raises:
        InputError: when it cannot be read, is no COCO JSON or has no image.
    """
    content = load_json(path)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise InputError(f"{path} is no COCO JSON; expected an object with the lists {', '.join(keys)}")
    if not content["images"]:
        raise InputError(f"{path} has an empty list of images; expected an entry for each image of the split")
    return content


def _categories(path: Path, content: dict[str, Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in content["categories"]:
        try:
            names[int(category["id"])] = str(category["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} has the category {category!r}; expected an id and a name") from error
    if len(names) != len(content["categories"]):
        raise InputError(f"{path} {_TWICE}")
    return names


def _is_group(category_id: int, categories: list[dict[str, Any]]) -> bool:
    """Whether it is Roboflow's heading over others, which no annotation uses; it may have the name of one of them."""
    name = next(c["name"] for c in categories if int(c["id"]) == category_id)
    return any(c.get("supercategory") == name and int(c["id"]) != category_id for c in categories)


def _records(file: SplitFile, content: dict[str, Any], places: dict[int, int], left_out: LeftOut) -> Iterator[Record]:
    """The images that have a file, each with its objects that can be used."""
    images = dict(images_of(file, content, left_out))
    objects = {image_id: ObjectList(size) for image_id, (_, size) in images.items()}
    known = {id_of(image.get("id")) for image in content["images"] if isinstance(image, dict)}
    for number, annotation in enumerate(content["annotations"]):
        try:
            image_id = id_of(annotation["image_id"])
            if image_id is not None and image_id in objects:
                where = f"{file.path}: annotation {number}"
                _add(objects[image_id], annotation, places, images[image_id][1], where)
            elif image_id is None or image_id not in known:
                raise AnnotationError(f"the image_id {annotation['image_id']}, which no image has")
        except _NO_OBJECT as error:
            image_id = id_of(annotation.get("image_id")) if isinstance(annotation, dict) else None
            path = images[image_id][0] if image_id in images else None
            name = f"image {image_id}" if path is None else path.name
            what = error if isinstance(error, AnnotationError) else f"not the fields of an object ({error!r})"
            left_out.add(str(path or name), file.path, f"{file.path}: annotation {number} of {name} has {what}")
    for image_id, (path, size) in images.items():
        gathered = objects[image_id]
        yield Record(path, labels=gathered.classes(), objects=gathered.objects(), image_id=image_id, size=size)


def images_of(
    file: SplitFile, content: dict[str, Any], left_out: LeftOut, places: Sequence[Path | str] | None = None
) -> Iterator[tuple[int, tuple[Path, tuple[int, int]]]]:
    """Id, path and (height, width) of each image in the ``content`` of ``file`` that has a file of its own.

    Args:
        file: of the split, with the folders that images are looked for in.
        content: of it.
        left_out: takes what has no file.
        places: of each image its file, or why it has none; None looks.
    """
    seen: set[int] = set()
    for number, image in enumerate(content["images"]):
        try:
            image_id, name = int(image["id"]), str(image["file_name"])
            given = [int(v) for v in (image.get("height"), image.get("width")) if v is not None]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{file.path}: image {number} is {image!r}; expected id, file_name, height and width ({error!r})"
            left_out.add(f"image {number}", file.path, reason)
            continue
        path = _place(file, name) if places is None else places[number]
        if isinstance(path, str):
            left_out.add(name, file.path, f"{file.path}: {path}")
        elif image_id in seen:
            left_out.add(name, file.path, f"{file.path}: image {name} has the id {image_id} of another one")
        else:
            try:
                height, width = given if len(given) == 2 else read_size(path)  # Label Studio's, where nothing is drawn
            except SourceError as error:
                left_out.add(name, file.path, str(error))
                continue
            seen.add(image_id)
            yield image_id, (path, (height, width))


def _place(file: SplitFile, name: str) -> Path | str:
    """The file of an image, or why it has none."""
    # Tools write backslashes on Windows, and there they mean folders.
    path = first_file(file.image_folders, name) or first_file(file.image_folders, name.replace("\\", "/"))
    return path or f"image {name} has no file; looked in {', '.join(map(str, file.image_folders))}"


def is_object(annotation: dict[str, Any], category_ids: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether an annotation of an image of ``size`` (height, width) is one that ``read`` takes."""
    try:
        _add(ObjectList(size), annotation, {category: place for place, category in enumerate(category_ids)}, size, "")
    except _NO_OBJECT:
        return False
    return True


def _add(
    objects: ObjectList, annotation: dict[str, Any], places: dict[int, int], size: tuple[int, int], where: str
) -> None:
    """Add what one annotation says.

    Raises:
        AnnotationError: when it cannot be used.
    """
    category = id_of(annotation["category_id"])
    if category is None or category not in places:
        raise AnnotationError(f"the category_id {annotation['category_id']}, which no category has")
    x, y, width, height = numbers(annotation["bbox"], 4, "bbox")
    area = annotation.get("area")
    objects.add(
        (x, y, x + width, y + height),
        places[category],
        crowd=bool(numbers([annotation.get("iscrowd") or 0], 1, "iscrowd")[0]),
        area=None if area is None else numbers([area], 1, "area")[0],
        outline=_outline(annotation.get("segmentation"), size, where),
    )


def _outline(segmentation: Any, size: tuple[int, int], where: str) -> Outline | None:
    """The outline that a ``segmentation`` means; None where it is missing or empty."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        counts, own = segmentation.get("counts"), segmentation.get("size")
        height, width = numbers(own, 2, "segmentation size")
        if isinstance(counts, list):
            found = numbers(counts, len(counts), "segmentation counts")
            if not all(0 <= count <= size[0] * size[1] for count in found):
                raise AnnotationError(f"the segmentation counts {counts!r} for an image of {list(size)}")
            counts = np.array(found, dtype=np.int32)
        if not isinstance(counts, str | np.ndarray) or (int(height), int(width)) != size:
            raise AnnotationError(f"a segmentation of size {own}; expected counts for its image's {list(size)}")
        return RunLength(size, counts, where)
    if not isinstance(segmentation, list):
        raise AnnotationError(f"the segmentation {segmentation!r}; expected polygons or counts")
    rings = []
    for ring in segmentation:
        if not isinstance(ring, list) or len(ring) % 2:
            raise AnnotationError(f"the polygon {ring!r}; expected x, y of each point")
        if len(ring) >= _TRIANGLE:  # fewer points enclose nothing, which is no reason to lose the box
            rings.append(np.array(numbers(ring, len(ring), "polygon"), dtype=np.float32).reshape(-1, 2))
    return Polygons(tuple(rings)) if rings else None


def id_of(value: Any) -> int | None:
    """The id of an image or category, which some tools write as text; None where it is none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None

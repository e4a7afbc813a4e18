"""Data sets as annotation tools export them: images and what is said of them, not yet split into train and val.

    CLASS/*.jpg                                   an image folder; boxes.txt beside the images, or not
    instances_default.json, result.json, ...      one COCO JSON: CVAT's, Label Studio's, Roboflow's train/ alone
    images/*.jpg, labels/*.txt, classes.txt       YOLO labels: Label Studio's, labelImg's beside their images, CVAT's
                                                  obj.names and obj_train_data/, a data.yaml without val:
    *.xml beside *.jpg, or Annotations/           Pascal VOC XML: labelImg's, Roboflow's, CVAT's without lists

What is found here `rewrite_splits.py` writes as both splits of the same format.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spt_deploy.datasets import bdd_json, coco_json, image_folder, voc_xml, yolo
from spt_deploy.datasets.annotations import LeftOut, SplitFile, first_file, text_lines
from spt_deploy.datasets.dataset import Broken
from spt_deploy.errors import InputError, SourceError, UsageError, no_folder
from spt_deploy.images import MAX_BROKEN, find_images
from spt_deploy.wording import counted

LOOKS_FOR = (
    "one COCO JSON file, YOLO labels with classes.txt, obj.names or a data.yaml, VOC's XML files, or CLASS/ folders "
    "with images"
)

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
_SHAPES = ("SegmentationObject", "SegmentationClass")  # folders of images that are outlines
_IMAGE_FOLDERS = ("JPEGImages", "images")
_MOST_JSON = 16  # in one folder: more are of one image each
_YOLO_NUMBERS = 5  # of a line, at least
_SPLIT_NAMES = frozenset({"val", "valid", "validation", "test"})


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        image: its file.
        name: its path in the new data set, below the folder of its split's images.
        labels: the file that says what it holds, of a format that has one for each image.
        group: of which each split gets its share: the class, where an image has one.
    """

    image: Path
    name: Path
    labels: Path | None = None
    group: str = ""


@dataclass(frozen=True)
class Unsplit:
    """What was found.

    Attributes:
        format: that it will have, as in `formats.FORMATS`.
        found: what told it.
        folder: where it lies.
        items: sorted by path.
        names: of the classes, by number, where it is YOLO's.
        content: of the COCO JSON file.
        ids: of each item in ``content``.
        keypoints: YOLO's own keys of a data set with keypoints.
        notes: sentences that a user should read.
        broken: what is left out.
    """

    format: str
    found: str
    folder: Path
    items: tuple[Item, ...]
    names: dict[int, str] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    keypoints: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    broken: tuple[Broken, ...] = ()


def find_unsplit(source: Path, format: str | None = None, max_broken: float = MAX_BROKEN) -> Unsplit | None:
    """What an unsplit data set holds; no image is opened.

    Args:
        source: its folder, or its COCO JSON file.
        format: of it; None looks.
        max_broken: share of the images that may have no file.

    Returns:
        The data set; None where there is none, or it has both splits.

    Raises:
        InputError: when there is no such path, a file cannot be read, classes have no names, or too much is broken.
        UsageError: when it could be of several formats, or a format is asked for that is always split.
    """
    if not source.exists():
        raise InputError(f"{no_folder(source)}; name the folder of a data set")
    if format is not None and format not in _FINDERS:
        raise UsageError(f"format is {format!r}; known without splits are {', '.join(_FINDERS)}")
    if _is_split(source):
        return None
    if format is not None:
        return _FINDERS[format](source, max_broken)
    found = [each for name in (coco_json.NAME, yolo.NAME, voc_xml.NAME) if (each := _FINDERS[name](source, max_broken))]
    if len(found) > 1:
        several = ", ".join(f"{each.format} ({each.found})" for each in found)
        raise UsageError(f"{source} could be {several}; say which with --format")
    return found[0] if found else _classes(source, max_broken)


def _is_split(source: Path) -> bool:
    """Whether a folder has what the reader of some format reads, or a YAML file names it."""
    if not source.is_dir():
        return yolo.yaml_file(source) is not None and yolo.found_text(source) is not None
    home = voc_xml.home(source)
    return any(m.found_text(source) is not None for m in (coco_json, yolo, bdd_json, image_folder)) or (
        home is not None and len(voc_xml.lists(home)) > 1
    )


def _coco(source: Path, max_broken: float) -> Unsplit | None:
    files = _coco_files(source) if source.is_dir() else [source] if _is_coco(source) else []
    if len(files) > 1:
        names = ", ".join(str(path.relative_to(source)) for path in files)
        raise UsageError(f"{source} has {len(files)} COCO JSON files ({names}); name the one to split")
    if not files:
        return None
    file, home = files[0], files[0].parent
    content = coco_json.load(file)
    own = file.stem.removeprefix("instances_")
    homes = (home.parent, home) if home.name == "annotations" else (home,)
    folders = [home / name for home in homes for name in (f"images/{own}", own, "images", ".")]
    left_out = LeftOut(file, max_broken)
    images = dict(coco_json.images_of(SplitFile(file, tuple(folders)), content, left_out))
    left_out.check(len(content["images"]), len(images))
    ids = tuple(sorted(images, key=lambda number: images[number][0]))
    paths = [images[number][0] for number in ids]
    items = tuple(Item(path, name) for path, name in zip(paths, _names(paths), strict=True))
    found = str(file.relative_to(source)) if source.is_dir() else "a file with images, annotations and categories"
    return Unsplit(coco_json.NAME, found, home, items, content=content, ids=ids, broken=tuple(left_out.broken))


def _coco_files(folder: Path) -> list[Path]:
    """Those of one kind: a data set's captions and keypoints lie beside its instances."""
    places = [folder, folder / "annotations", *(path for path in folder.iterdir() if path.is_dir())]
    found = []
    for place in dict.fromkeys(filter(Path.is_dir, places)):
        files = sorted(path for path in place.iterdir() if path.suffix == ".json")
        found += [path for path in files if _is_coco(path)] if len(files) <= _MOST_JSON else []
    return [path for path in found if path.name.startswith("instances")] or found


def _is_coco(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    text = path.read_bytes()
    return all(f'"{key}"'.encode() in text for key in ("images", "annotations", "categories"))


def _yolo(source: Path, max_broken: float) -> Unsplit | None:
    folder = source if source.is_dir() else source.parent
    if source.is_file() and yolo.yaml_file(source) is None:
        return None
    images = _images(folder)
    labels = [path if (path := yolo.label_file(image)).is_file() else None for image in images]
    if not any(map(_is_yolo, filter(None, labels))) or _lie_in_splits(images, folder):
        return None
    yaml = next((path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".yml")), None)
    listed = next(filter(None, (first_file((folder, folder / "labels"), name) for name in _NAME_FILES)), None)
    keypoints: dict[str, Any] = {}
    if yaml is not None:
        content = yolo.load_yaml(yaml)
        names = yolo.class_names_of(yaml, content)
        keypoints = {key: content[key] for key in ("kpt_shape", "flip_idx") if key in content}
    elif listed is not None:
        names = dict(enumerate(text_lines(listed)))
    else:
        raise InputError(f"{folder} has YOLO labels and no names of classes; write them to classes.txt, one a line")
    missing = labels.count(None)
    notes = (f"{counted(missing, 'image')} of {len(images)} without a label file: taken to hold no object",)
    pairs = zip(images, _names(images, without="images"), labels, strict=True)
    items = tuple(Item(image, name, label) for image, name, label in pairs)
    first = next(label for label in labels if label is not None and _is_yolo(label))
    found = f"{first.relative_to(folder)} and {(yaml or listed or folder).name}"
    return Unsplit(yolo.NAME, found, folder, items, names=names, keypoints=keypoints, notes=notes if missing else ())


def _is_yolo(label: Path) -> bool:
    """Whether a text file has a line of numbers, as many as a box has at least."""
    try:
        lines = text_lines(label)
        return bool(lines) and len([float(value) for value in lines[0].split()]) >= _YOLO_NUMBERS
    except (InputError, ValueError):
        return False


def _voc(source: Path, max_broken: float) -> Unsplit | None:
    home = voc_xml.home(source) if source.is_dir() else None
    if not source.is_dir():
        return None
    folder = home or source
    files = [path for path in sorted(folder.rglob("*.xml")) if _is_voc(path)]
    if not files:
        return None
    images = [path for path in _images(folder) if path.parent.name not in _SHAPES]
    if _lie_in_splits(images, folder):
        return None
    of_stem: dict[str, list[Path]] = {}
    for image in images:
        of_stem.setdefault(image.stem, []).append(image)
    left_out = LeftOut(folder, max_broken)
    labels: dict[Path, Path] = {}
    for file in files:
        candidates = _closest(file, of_stem.get(file.stem, []))
        if len(candidates) == 1 and candidates[0] not in labels:
            labels[candidates[0]] = file
        else:
            what = f"could be of {len(candidates)} images" if candidates else "has no image of its name"
            left_out.add(file.stem, file, f"{file} {what} in {folder}")
    left_out.check(len(files), len(labels))
    has_empty = (folder / voc_xml.LABEL_MAP).is_file()  # CVAT's: an image without an XML file holds nothing
    kept = [image for image in images if has_empty or image in labels]
    lost = len(images) - len(kept)
    notes = (f"{counted(lost, 'image')} of {len(images)} without an XML file: left out",) if lost else ()
    items = tuple(Item(i, name, labels.get(i)) for i, name in zip(kept, _names(kept), strict=True))
    found = str(files[0].relative_to(source))
    return Unsplit(voc_xml.NAME, found, folder, items, notes=notes, broken=tuple(left_out.broken))


def _is_voc(path: Path) -> bool:
    with path.open("rb") as file:
        return b"<annotation" in file.read(4096)


def _closest(file: Path, images: Sequence[Path]) -> Sequence[Path]:
    """Of the images with the name of an XML file, those that lie closest to it."""
    tests: tuple[Callable[[Path], bool], ...] = (
        lambda image: image.parent == file.parent,
        lambda image: image.parent.name == file.parent.name,
        lambda image: image.parent.name in _IMAGE_FOLDERS,
    )
    for test in tests:
        images = [image for image in images if test(image)] or images
    return images


def _classes(source: Path, max_broken: float) -> Unsplit | None:
    train = source / "train"
    folder = train if train.is_dir() and any(map(_has_images, image_folder.class_folders(train))) else source
    if not source.is_dir():
        return None
    classes = [place for place in image_folder.class_folders(folder) if _has_images(place)]
    if len(classes) < 2 or any(place.name.lower() in ("train", *_SPLIT_NAMES) for place in classes):
        return None
    items = []
    for place in classes:
        items += [Item(image, image.relative_to(folder), group=place.name) for image in find_images(place)]
    inside = f"{folder.relative_to(source)}/" if folder != source else ""
    return Unsplit(
        image_folder.NAME, f"{inside}{classes[0].name}/ to {inside}{classes[-1].name}/", folder, tuple(items)
    )


def _has_images(folder: Path) -> bool:
    try:
        return bool(find_images(folder))
    except SourceError:
        return False


def _images(folder: Path) -> list[Path]:
    try:
        return find_images(folder)
    except SourceError:
        return []


def _lie_in_splits(images: Sequence[Path], folder: Path) -> bool:
    """Whether folders on the way to the images are called train and val: to mix these would not be what is meant."""
    above = {part.lower() for image in images for part in image.relative_to(folder).parts[:-1]}
    return "train" in above and not above.isdisjoint(_SPLIT_NAMES)


def _names(images: Sequence[Path], without: str = "") -> list[Path]:
    """The path of each below the folder that holds them all; no folder on the way is called ``without``.

    Raises:
        InputError: when two have one name.
    """
    top = os.path.commonpath([image.parent for image in images]) if images else ""
    inside = [Path(os.path.relpath(image, top)) for image in images]
    names = [Path(*(part for part in path.parts if part != without)) for path in inside]
    seen: dict[Path, Path] = {}
    for image, name in zip(images, names, strict=True):
        other = seen.setdefault(name.with_suffix(""), image)
        if other is not image:
            raise InputError(f"{other} and {image} would both be {name.with_suffix('')}; rename one of them")
    return names


_FINDERS: dict[str, Callable[[Path, float], Unsplit | None]] = {
    coco_json.NAME: _coco,
    yolo.NAME: _yolo,
    voc_xml.NAME: _voc,
    image_folder.NAME: _classes,
}

"""Data sets as annotation tools export them: images and what is said of them, not yet split into train and val.

    CLASS/*.jpg                                   an image folder; boxes.txt beside the images, or not
    instances_default.json, result.json, ...      one COCO JSON: CVAT's, Label Studio's, Roboflow's train/ alone
    images/*.jpg, labels/*.txt, classes.txt       YOLO labels: Label Studio's, labelImg's beside their images, CVAT's
                                                  obj.names and obj_train_data/, a data.yaml without val:
    *.xml beside *.jpg, or Annotations/           Pascal VOC XML: labelImg's, Roboflow's, CVAT's without lists
    *.json beside *.jpg                           labelme's, AnyLabeling's
    annotations.xml, images/                      CVAT's own

What is found here `rewrite_splits.py` writes as both splits of the same format; labelme's and CVAT's own become COCO
JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spt_deploy.datasets import (
    bdd_json,
    coco_json,
    image_folder,
    unsplit_cvat,
    unsplit_labelme,
    unsplit_yolo,
    voc_layout,
    voc_xml,
    yolo,
)
from spt_deploy.datasets.annotations import LeftOut, SplitFile
from spt_deploy.datasets.heap import (
    SHAPES,
    Item,
    NothingToLearnError,
    Unsplit,
    images_below,
    new_names,
    split_folders,
    visible_folders,
)
from spt_deploy.datasets.locate import Named, locate
from spt_deploy.datasets.yolo_layout import layout_file
from spt_deploy.errors import InputError, UsageError, no_folder
from spt_deploy.images import MAX_BROKEN, is_image_name
from spt_deploy.wording import counted

LOOKS_FOR = (
    "one COCO JSON file, YOLO labels with classes.txt, obj.names or a data.yaml, VOC's XML files, labelme's JSON "
    "files, CVAT's annotations.xml, or CLASS/ folders with images"
)

_IMAGE_FOLDERS = ("JPEGImages", "images")
_MOST_JSON = 16  # in one folder: more are of one image each
_SPLIT_NAMES = frozenset({"val", "valid", "validation", "test"})
_OF_TOOLS = frozenset({"annotations", "ann", "labels", "obj_train_data", "jpegimages"})  # their folders
_NO_CLASSES = frozenset({"images", "img", *_OF_TOOLS, *map(str.lower, SHAPES)})
_NO_CLASS = frozenset({"train", *_SPLIT_NAMES, *_OF_TOOLS})  # what a data set has in its folder, and a class has not
_OF_VOC = (re.compile(rb"<annotation[\s>]"), re.compile(rb"<size[\s>]"))  # not CVAT's own XML, nor LabelMe's


def find_unsplit(source: Path, format: str | None = None, max_broken: float = MAX_BROKEN) -> Unsplit | None:
    """What an unsplit data set holds; of images at most the headers are read.

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
    found: dict[str, Unsplit] = {}
    useless: list[NothingToLearnError] = []
    for name in [name for name in _FINDERS if name != image_folder.NAME]:
        try:
            each = _FINDERS[name](source, max_broken)
        except NothingToLearnError as error:
            useless.append(error)
            continue
        if each is not None:
            found[name] = each
    if len(found) > 1:
        several = ", ".join(f"{name} ({each.found})" for name, each in found.items())
        raise UsageError(f"{source} could be {several}; say which with --format")
    whole = next(iter(found.values())) if found else _classes(source, max_broken)
    if useless:
        if whole is None:
            raise useless[0]
        return replace(whole, notes=(*(f"not read: {error}" for error in useless), *whole.notes))
    inner = visible_folders(source) if whole is None and source.is_dir() else []
    return find_unsplit(inner[0], format, max_broken) if len(inner) == 1 else whole  # as ZIP files are unpacked


def _is_split(source: Path) -> bool:
    """Whether a folder has what the reader of some format reads, or a YAML file names it."""
    if not source.is_dir():
        return layout_file(source) is not None and yolo.found_text(source) is not None
    home = voc_layout.home(source)
    return any(m.found_text(source) is not None for m in (coco_json, yolo, bdd_json, image_folder)) or (
        len(voc_layout.lists(home)) > 1 if home is not None else bool(voc_layout.folders(source))
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
    folders = tuple(home / name for home in homes for name in (f"images/{own}", own, "images", "."))
    top = source if source.is_dir() else homes[0]
    left_out = LeftOut(file, max_broken)
    images: dict[int, Path] = {}
    seen: set[Path] = set()
    located = locate([_named(file, entry, folders) for entry in content["images"]], top)
    for number, (path, _) in coco_json.images_of(SplitFile(file, folders), content, left_out, located.images):
        if path in seen:  # of which one entry could come to train and one to val
            left_out.add(str(path), file, f"{file}: image {path.name} is listed twice; the first entry was taken")
        else:
            images[number] = path
            seen.add(path)
    left_out.check(len(content["images"]), len(images))
    ids = tuple(sorted(images, key=lambda number: images[number]))
    paths = [images[number] for number in ids]
    items = tuple(Item(path, name) for path, name in zip(paths, new_names(paths, by_stem=False), strict=True))
    found = str(file.relative_to(source)) if source.is_dir() else "a file with images, annotations and categories"
    others = len(images_below(source)) - len(items) if source.is_dir() else 0
    unnamed = (f"{counted(others, 'image')} that {file.name} does not name: left out",) if others > 0 else ()
    notes, broken = (*located.notes, *unnamed), tuple(left_out.broken)
    return Unsplit(coco_json.NAME, found, home, items, content=content, ids=ids, notes=notes, broken=broken)


def _named(file: Path, entry: Any, folders: tuple[Path, ...]) -> Named:
    """An image of COCO JSON.

    It may lie elsewhere: FiftyOne's are in data/, Label Studio may name the path on its server, and CVAT's user may
    have had them all the time.
    """
    name = str(entry.get("file_name") or "") if isinstance(entry, dict) else ""
    return Named(file, name.replace("\\", "/"), folders)


def _coco_files(folder: Path) -> list[Path]:
    """Those of one kind: a data set's captions and keypoints lie beside its instances."""
    places = [folder, folder / "annotations", *(path for path in sorted(folder.iterdir()) if path.is_dir())]
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


def _voc(source: Path, max_broken: float) -> Unsplit | None:
    home = voc_layout.home(source) if source.is_dir() else None
    if not source.is_dir():
        return None
    folder = home or source
    files = [path for path in sorted(folder.rglob("*.xml")) if _is_voc(path)]
    if not files:
        return None
    names = {image: image.relative_to(folder) for image in images_below(folder)}
    images = [image for image, name in names.items() if SHAPES.isdisjoint(name.parts)]
    splits = split_folders(names[image] for image in images)
    if splits is not None:
        raise InputError(
            f"{folder} is split already, into {splits[0]}/ and {splits[1]}/; rename these to train/ and valid/, each "
            "with its XML files beside its images"
        )
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
    has_empty = (folder / voc_layout.LABEL_MAP).is_file()  # CVAT's: an image without an XML file holds nothing
    kept = [image for image in images if has_empty or image in labels]
    lost = len(images) - len(kept)
    notes = (f"{counted(lost, 'image')} of {len(images)} without an XML file: left out",) if lost else ()
    items = tuple(Item(i, name, labels.get(i)) for i, name in zip(kept, new_names(kept), strict=True))
    found = str(files[0].relative_to(source))
    return Unsplit(voc_xml.NAME, found, folder, items, notes=notes, broken=tuple(left_out.broken))


def _is_voc(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096)
    return all(each.search(start) for each in _OF_VOC)


def _closest(file: Path, images: Sequence[Path]) -> Sequence[Path]:
    """Of the images with the name of an XML file, those that lie closest to it."""
    tests: tuple[Callable[[Path], bool], ...] = (
        lambda image: image.parent == file.parent,
        lambda image: image.parent.name == file.parent.name,
        lambda image: file.parent.parent in image.parents,
        lambda image: image.parent.name in _IMAGE_FOLDERS,
    )
    for test in tests:
        images = [image for image in images if test(image)] or images
    return images


def _classes(source: Path, max_broken: float) -> Unsplit | None:
    if not source.is_dir():
        return None
    train = source / "train"
    folder = train if train.is_dir() and any(map(images_below, visible_folders(train))) else source
    images = {place: found for place in visible_folders(folder) if (found := images_below(place))}
    names = {place.name.lower() for place in images}
    if len(images) < 2 or not names.isdisjoint(_NO_CLASSES | _SPLIT_NAMES) or any(map(_is_annotated, images)):
        return None
    splits = split_folders(image.relative_to(folder) for found in images.values() for image in found)
    if splits is not None:
        raise InputError(
            f"{source} is split already, into {splits[0]}/ and {splits[1]}/; rename these to train/ and val/, each "
            "with its CLASS/ folders"
        )
    items = [Item(i, i.relative_to(folder), group=place.name) for place, found in images.items() for i in found]
    inside = f"{folder.relative_to(source)}/" if folder != source else ""
    ends = [f"{inside}{place.name}/" for place in images]
    loose = len(images_below(source)) - len(items)
    where = f"no CLASS/ folder of {inside}" if inside else "no CLASS/ folder"
    notes = (f"{counted(loose, 'image')} in {where}: left out",) if loose > 0 else ()
    return Unsplit(image_folder.NAME, f"{ends[0]} to {ends[-1]}", folder, tuple(items), notes=notes)


def _is_annotated(folder: Path) -> bool:
    """Whether a folder of images has files of a tool beside them, or folders of one: it is then no class."""
    paths = list(folder.iterdir())
    images = {path.stem for path in paths if is_image_name(path)}
    return any(
        (path.suffix in (".json", ".xml") and path.stem in images) or (path.is_dir() and path.name.lower() in _NO_CLASS)
        for path in paths
    )


_FINDERS: dict[str, Callable[[Path, float], Unsplit | None]] = {
    coco_json.NAME: _coco,
    yolo.NAME: unsplit_yolo.find,
    voc_xml.NAME: _voc,
    unsplit_labelme.NAME: unsplit_labelme.find,
    unsplit_cvat.NAME: unsplit_cvat.find,
    image_folder.NAME: _classes,
}

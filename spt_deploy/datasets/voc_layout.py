"""Where the files of a Pascal VOC data set lie: in one place with lists of names, or in a folder a split.

Annotations/NAME.xml, JPEGImages/NAME.jpg, ImageSets/Main/train.txt and val.txt     VOC's own
train/NAME.jpg and NAME.xml beside it, valid/ likewise                              Roboflow's
train/images/NAME.jpg, train/annotations/NAME.xml, val/ likewise                    others'
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from spt_deploy.datasets.annotations import text_lines
from spt_deploy.errors import InputError
from spt_deploy.images import IMAGE_SUFFIXES, find_images, is_image_name

LOOKS_FOR = (
    "Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt and val.txt, or train/*.xml beside their images and "
    "the same for valid"
)
LABEL_MAP = "labelmap.txt"  # CVAT's
_FOLDERS = ("Annotations", "JPEGImages")
_SECOND_COLUMN = re.compile(r"\s+-?[01]\s*$")  # whether the image has the class
_LISTS = {  # the first that is there; CVAT's begin with a capital
    "train": ("train.txt", "Train.txt", "trainval.txt"),
    "val": ("val.txt", "Val.txt", "Validation.txt", "test.txt", "Test.txt"),
}
_SPLITS = {"train": ("train",), "val": ("valid", "val", "validation", "test")}  # the first that is there
_BESIDE = ("annotations", "Annotations", "labels", "xml", "xmls")  # folders of XML files beside one of images
_IMAGES = ("images", "JPEGImages")
_LOOKED_AT = 32  # images of a folder, of which one with an XML file tells


@dataclass(frozen=True)
class Entry:
    """An image of a split.

    Attributes:
        name: of the image in the data set, without suffix.
        image: its file; None where it has none.
        xml: what is said of it; may not be there.
        shapes: which of its pixels belong to which object; may not be there.
    """

    name: str
    image: Path | None
    xml: Path
    shapes: Path


def home(folder: Path) -> Path | None:
    """The folder that holds ``JPEGImages``: this one, or the only one of its kind below it; None without."""
    places = [folder, *sorted([*folder.glob("VOC*"), *folder.glob("VOCdevkit/VOC*")])]
    found = [p for p in places if all((p / name).is_dir() for name in _FOLDERS)]
    if len(found) > 1 and found[0] != folder:
        names = ", ".join(str(p) for p in found)
        raise InputError(f"{folder} holds {len(found)} VOC data sets ({names}); name one of them")
    return found[0] if found else None


def lists(place: Path) -> dict[str, Path]:
    """The list of each split under ``place``; a split without one is left out."""
    main = place / "ImageSets/Main"
    found = {split: next((main / n for n in names if (main / n).is_file()), None) for split, names in _LISTS.items()}
    return {split: path for split, path in found.items() if path is not None}


def folders(folder: Path) -> dict[str, Path]:
    """The folder of each split, where both have XML files beside their images; empty otherwise."""
    found: dict[str, Path] = {}
    for split, names in _SPLITS.items():
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is not None and first_pair(place) is not None:
            found[split] = place
    return found if len(found) == len(_SPLITS) else {}


def first_pair(folder: Path) -> Path | None:
    """The first XML file that has an image; None where the first images have none."""
    walked = ((Path(place), sorted(files)) for place, _, files in os.walk(folder))
    images = (place / name for place, files in walked for name in files if is_image_name(Path(name)))
    return next((xml for image in islice(images, _LOOKED_AT) if (xml := xml_of(image)).is_file()), None)


def may_be_classes(folder: Path) -> bool:
    """Whether images and XML files lie in folders of the splits that might as well be classes."""
    pairs = {place: first_pair(place) for place in folders(folder).values()} if home(folder) is None else {}
    own = {name.lower() for name in (*_BESIDE, *_IMAGES)}
    return any(xml is not None and xml.parent not in (place, *(place / n for n in own)) for place, xml in pairs.items())


def xml_of(image: Path) -> Path:
    """The XML file of an image in a split's folder, or where it would lie: beside it, or in a folder beside its own."""
    beside = image.with_suffix(".xml")
    others = (image.parent.parent / name / beside.name for name in _BESIDE)
    return next((path for path in (beside, *others) if path.is_file()), beside)


def split_entries(folder: Path) -> Iterator[tuple[str, Path, list[Entry]]]:
    """Each split, the list or the folder that names its images, and these.

    Raises:
        InputError: when there is no such data set, a list is missing, or names no image.
    """
    place = home(folder)
    if place is None:
        of_folder = folders(folder)
        if not of_folder:
            raise InputError(f"{folder} {half_text(folder) or 'is no VOC data set'}; looked for {LOOKS_FOR}")
        for split, path in of_folder.items():
            images = find_images(path)
            nowhere = path / "SegmentationObject"
            yield split, path, [Entry(image.stem, image, xml_of(image), nowhere / image.stem) for image in images]
        return
    of_split = lists(place)
    for split, names in _LISTS.items():
        if split not in of_split:
            raise InputError(
                f"{place / 'ImageSets/Main'} has none of {', '.join(names)}; list the {split} images there"
            )
    for split, path in of_split.items():
        yield split, path, [_entry(place, name) for name in _listed(place, path)]


def _entry(place: Path, name: str) -> Entry:
    shapes = place / "SegmentationObject" / f"{name}.png"
    return Entry(name, image_file(place, name), place / "Annotations" / f"{name}.xml", shapes)


def found_text(folder: Path) -> str | None:
    """What of the format is in ``folder``; None where it is not this format."""
    place = home(folder)
    if place is None:
        of_folder = folders(folder)
        pairs = [xml for each in of_folder.values() if (xml := first_pair(each)) is not None]
        return " and ".join(xml.relative_to(folder).as_posix() for xml in pairs) or None
    return " and ".join(str(path.relative_to(folder)) for path in lists(place).values()) or "Annotations/"


def half_text(folder: Path) -> str | None:
    """What ``folder`` has of the format and what it lacks; None where it has nothing or all."""
    has = [name for name in _FOLDERS if (folder / name).is_dir()]
    if len(has) == 1:
        return f"has {has[0]}/ and not {(set(_FOLDERS) - set(has)).pop()}/"
    xml = None if has else first_pair(folder / "train") or _beside_an_image(folder)
    if xml is None:
        return None
    return f"has {xml.relative_to(folder)} beside its image, and not both train/ and valid/ with such files"


def _beside_an_image(folder: Path) -> Path | None:
    """An XML file as labelImg writes it."""
    images = {path.stem for path in folder.glob("*") if is_image_name(path)}
    return next((path for path in sorted(folder.glob("*.xml")) if path.stem in images), None)


def _listed(place: Path, path: Path) -> list[str]:
    names = dict.fromkeys(_name_in(line, place) for line in text_lines(path))
    if not names:
        raise InputError(f"{path} names no image; write a name on each line")
    return list(names)


def _name_in(line: str, place: Path) -> str:
    # A class's own list (dog_train.txt) has a second column; some tools write one into the lists of all images, too, or
    # the image's suffix. A name may end like either: "photo 1".
    first = _SECOND_COLUMN.sub("", line)
    stem = first.removesuffix(Path(first).suffix) if is_image_name(Path(first)) else first
    names = (line, first, stem)
    known = next((name for name in names if (place / "Annotations" / f"{name}.xml").is_file()), None)
    return known or next((name for name in names if image_file(place, name) is not None), first)  # CVAT's have no XML


def image_file(place: Path, name: str) -> Path | None:
    """The image ``name`` of a data set; None where there is none."""
    suffixes = [".jpg", *sorted(IMAGE_SUFFIXES - {".jpg"})]
    written = (case for suffix in suffixes for case in (suffix, suffix.upper()))  # cameras write .JPG
    paths = (place / "JPEGImages" / f"{name}{suffix}" for suffix in written)
    return next((p for p in paths if p.is_file()), None)

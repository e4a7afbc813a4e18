"""The Pascal VOC format: an XML file an image.

    JPEGImages/2007_000027.jpg
    Annotations/2007_000027.xml         <size><width>486</width><height>500</height></size>
                                        <object><name>person</name><difficult>0</difficult>
                                          <bndbox><xmin>174</xmin><ymin>101</ymin><xmax>349</xmax><ymax>351</ymax></bndbox>
                                        </object> ...
    ImageSets/Main/train.txt, val.txt   names, one a line; trainval.txt and test.txt stand in for them
    SegmentationObject/2007_000027.png  for some images: which pixels belong to which object, by palette index
    classes.txt                         not VOC's own: class names in order, where the XML files do not show them all

Pixels count from 1 in VOC and ``xmax`` is the last one, so that a box covers xmin - 1 to xmax. A difficult object is
one that is not to be learnt or found. Without ``classes.txt``, classes are the names in the XML files in alphabetical
order. CVAT, whose exports have a ``labelmap.txt``, writes no XML file for an image without objects.
The folder may be that of a year (VOC2012) or the one above it, when it holds one year.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from spt_deploy.datasets.annotations import AnnotationError, LeftOut, ObjectList, checked, class_file, text_lines
from spt_deploy.datasets.dataset import Broken, DataSet, Record
from spt_deploy.datasets.outlines import NumberedImage
from spt_deploy.errors import InputError
from spt_deploy.images import IMAGE_SUFFIXES, is_image_name

NAME = "voc"
TITLE = "Pascal VOC XML"
LOOKS_FOR = "Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt and val.txt"

LABEL_MAP = "labelmap.txt"  # CVAT's
_FOLDERS = ("Annotations", "JPEGImages")
_EXPORT = "Roboflow and CVAT export the same as COCO JSON or YOLO labels, which are read"
_SECOND_COLUMN = re.compile(r"\s+-?[01]\s*$")  # whether the image has the class
_LISTS = {  # the first that is there; CVAT's begin with a capital
    "train": ("train.txt", "Train.txt", "trainval.txt"),
    "val": ("val.txt", "Val.txt", "Validation.txt", "test.txt", "Test.txt"),
}


@dataclass(frozen=True)
class _Item:
    """One object of an XML file; ``number`` is its place there, from 1."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    number: int


@dataclass(frozen=True)
class _Image:
    name: str
    path: Path
    size: tuple[int, int] | None
    items: tuple[_Item, ...]


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


def found_text(folder: Path) -> str | None:
    """What of the format is in ``folder``; None where it is not this format."""
    place = home(folder)
    if place is None:
        return None
    return " and ".join(str(path.relative_to(folder)) for path in lists(place).values()) or "Annotations/"


def half_text(folder: Path) -> str | None:
    """What ``folder`` has of the format and what it lacks; None where it has nothing or all."""
    has = [name for name in _FOLDERS if (folder / name).is_dir()]
    if len(has) == 1:
        return f"has {has[0]}/ and not {(set(_FOLDERS) - set(has)).pop()}/"
    xml = None if has else _beside_an_image(folder / "train") or _beside_an_image(folder)
    if xml is None:
        return None
    return f"has {xml.relative_to(folder)} beside its image ({_EXPORT}), and not Annotations/ and JPEGImages/"


def _beside_an_image(folder: Path) -> Path | None:
    """An XML file as Roboflow and labelImg write it."""
    images = {path.stem for path in folder.glob("*") if is_image_name(path)}
    return next((path for path in sorted(folder.glob("*.xml")) if path.stem in images), None)


def read(folder: Path, max_broken: float) -> DataSet:
    """Read both splits; no image is opened.

    Raises:
        InputError: when a list is missing, or too much is broken.
    """
    place = home(folder)
    if place is None:
        raise InputError(f"{folder} {half_text(folder) or 'is no VOC data set'}; looked for {LOOKS_FOR}")
    of_split = lists(place)
    for split, names in _LISTS.items():
        if split not in of_split:
            raise InputError(
                f"{place / 'ImageSets/Main'} has none of {', '.join(names)}; list the {split} images there"
            )
    known = class_file(place)
    broken: list[Broken] = []
    images: dict[str, list[_Image]] = {}
    left = {split: LeftOut(path, max_broken) for split, path in of_split.items()}
    listed = {split: _listed(place, path) for split, path in of_split.items()}
    for split in of_split:
        images[split] = [image for n in listed[split] if (image := _read_image(place, n, left[split])) is not None]
    found = {item.name for of in images.values() for image in of for item in image.items}
    class_names = known or tuple(sorted(found))
    records: dict[str, tuple[Record, ...]] = {}
    for split in of_split:
        indices = {name: index for index, name in enumerate(class_names)}
        records[split] = tuple(
            _record(place, image, number, indices, left[split]) for number, image in enumerate(images[split])
        )
        left[split].check(len(listed[split]), len(records[split]))
        broken += left[split].broken
    data = DataSet(
        class_names=class_names,
        train=records["train"],
        val=records["val"],
        format=NAME,
        category_ids=tuple(range(1, len(class_names) + 1)),
        broken=tuple(broken),
    )
    return checked(data, folder)


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


def _read_image(place: Path, name: str, left_out: LeftOut) -> _Image | None:
    """What the XML file of an image says; None where it or the image cannot be used."""
    xml, path = place / "Annotations" / f"{name}.xml", image_file(place, name)
    if path is None:
        left_out.add(name, left_out.file, f"{left_out.file} lists {name}, which has no file in {place / 'JPEGImages'}")
        return None
    if not xml.exists() and (place / LABEL_MAP).is_file():
        return _Image(name, path, None, ())
    try:
        root = ElementTree.fromstring(xml.read_bytes())
        size = (int(float(_text(root, "size/height"))), int(float(_text(root, "size/width"))))
    except OSError as error:
        left_out.add(name, path, f"{xml} cannot be read: {error.strerror or error}")
        return None
    except (ElementTree.ParseError, AnnotationError, ValueError, LookupError, OverflowError) as error:
        left_out.add(name, path, f"{xml} is no annotation of an image: {error}")
        return None
    items = []
    for number, node in enumerate(root.iterfind("object"), start=1):
        try:
            box = box_of(node)
            difficult = (node.findtext("difficult") or "0").strip() not in ("", "0")
            items.append(_Item(_text(node, "name"), box, difficult, number))
        except (AnnotationError, ValueError) as error:
            left_out.add(name, xml, f"{xml}: object {number} cannot be read: {error}")
    return _Image(name, path, size, tuple(items))


def box_of(node: ElementTree.Element) -> tuple[float, float, float, float]:
    """The box of an ``object``, xyxy in pixels from 0, x1 and y1 past the last one.

    Raises:
        AnnotationError: when it has none.
        ValueError: when a corner is no number.
    """
    x0, y0, x1, y1 = (float(_text(node, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
    return x0 - 1, y0 - 1, x1, y1


def _text(node: ElementTree.Element, path: str) -> str:
    text = node.findtext(path)
    if text is None or not text.strip():
        raise AnnotationError(f"it has no {path}")
    return text.strip()


def _record(place: Path, image: _Image, number: int, indices: dict[str, int], left_out: LeftOut) -> Record:
    objects = ObjectList(image.size)
    shapes = place / "SegmentationObject" / f"{image.name}.png"
    has_shapes = shapes.is_file()
    for item in image.items:
        try:
            if item.name not in indices:
                raise AnnotationError(f"the class {item.name}, which is not in classes.txt")
            outline = NumberedImage(shapes, item.number) if has_shapes else None
            seen = not item.difficult
            objects.add(item.box, indices[item.name], crowd=not seen, present=seen, outline=outline)
        except AnnotationError as error:
            xml = place / "Annotations" / f"{image.name}.xml"
            left_out.add(image.name, xml, f"{xml}: object {item.number} has {error}")
    return Record(image.path, labels=objects.classes(), objects=objects.objects(), image_id=number + 1, size=image.size)

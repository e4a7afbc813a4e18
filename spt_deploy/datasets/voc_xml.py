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
The folder may be that of a year (VOC2012) or the one above it, when it holds one year. `voc_layout.py` says where else
the files may lie.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from spt_deploy.datasets.annotations import AnnotationError, LeftOut, ObjectList, checked, class_file
from spt_deploy.datasets.dataset import Broken, DataSet, Record
from spt_deploy.datasets.outlines import NumberedImage
from spt_deploy.datasets.voc_layout import LABEL_MAP, Entry, home, split_entries

NAME = "voc"
TITLE = "Pascal VOC XML"


@dataclass(frozen=True)
class _Item:
    """One object of an XML file; ``number`` is its place there, from 1."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    number: int


@dataclass(frozen=True)
class _Image:
    entry: Entry
    path: Path
    size: tuple[int, int] | None
    items: tuple[_Item, ...]


def read(folder: Path, max_broken: float) -> DataSet:
    """Read both splits; no image is opened.

    Raises:
        InputError: when a list is missing, or too much is broken.
    """
    place = home(folder) or folder
    known = class_file(place)
    broken: list[Broken] = []
    counts: dict[str, int] = {}
    images: dict[str, list[_Image]] = {}
    left: dict[str, LeftOut] = {}
    for split, path, entries in split_entries(folder):
        left[split], counts[split] = LeftOut(path, max_broken), len(entries)
        read_ones = (_read_image(place, entry, left[split]) for entry in entries)
        images[split] = [image for image in read_ones if image is not None]
    found = {item.name for of in images.values() for image in of for item in image.items}
    class_names = known or tuple(sorted(found))
    records: dict[str, tuple[Record, ...]] = {}
    indices = {name: index for index, name in enumerate(class_names)}
    for split in images:
        records[split] = tuple(
            _record(image, number, indices, left[split]) for number, image in enumerate(images[split])
        )
        left[split].check(counts[split], len(records[split]))
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


def _read_image(place: Path, entry: Entry, left_out: LeftOut) -> _Image | None:
    """What the XML file of an image says; None where it or the image cannot be used."""
    name, xml, path = entry.name, entry.xml, entry.image
    if path is None:
        left_out.add(name, left_out.file, f"{left_out.file} lists {name}, which has no file in {place / 'JPEGImages'}")
        return None
    if not xml.exists() and (place / LABEL_MAP).is_file():
        return _Image(entry, path, None, ())
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
    return _Image(entry, path, size, tuple(items))


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


def _record(image: _Image, number: int, indices: dict[str, int], left_out: LeftOut) -> Record:
    objects = ObjectList(image.size)
    shapes = image.entry.shapes
    has_shapes = shapes.is_file()
    for item in image.items:
        try:
            if item.name not in indices:
                raise AnnotationError(f"the class {item.name}, which is not in classes.txt")
            outline = NumberedImage(shapes, item.number) if has_shapes else None
            seen = not item.difficult
            objects.add(item.box, indices[item.name], crowd=not seen, present=seen, outline=outline)
        except AnnotationError as error:
            xml = image.entry.xml
            left_out.add(image.entry.name, xml, f"{xml}: object {item.number} has {error}")
    return Record(image.path, labels=objects.classes(), objects=objects.objects(), image_id=number + 1, size=image.size)

"""A part of a data set, or all of it padded, written in the format it came in.

Every format's writer takes the records to keep and writes the files that its reader reads. Images that do not change
are hard links where the file system has them, so that a subset costs no space.
"""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.datasets import bdd_json, coco_json, image_folder, voc_layout, voc_xml, yolo
from spt_deploy.datasets.annotations import AnnotationError, load_json
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.datasets.objects import cut_box
from spt_deploy.datasets.outlines import RunLength, counts_of, read_numbers, voc_palette
from spt_deploy.datasets.scene import scene_of
from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import read_image

_JPEG_QUALITY = 95


def link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where a link cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)  # the file, where source is a symbolic link to it
    except OSError:
        shutil.copy2(source, target)


def place_padded(source: Path, target: Path, records: Sequence[Record] = ()) -> None:
    """Write an image at twice its height and width, itself in the upper left and the rest black.

    Raises:
        SourceError: when ``source`` cannot be read, one of its records does not fit it (in an image of twice the size
            it might), or its kind holds no image of twice the size.
    """
    image = read_image(source)
    for record in records:
        scene_of(record, image)
    try:
        write_image(target, padded(image))
    except InputError as error:
        height, width = image.shape[:2]
        raise SourceError(
            f"{source} is {width} x {height} pixels, and padded to twice that it cannot be encoded as {source.suffix}; "
            "convert it to PNG"
        ) from error


def padded(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """H x W (x 3) as 2H x 2W, 0 outside."""
    height, width = image.shape[:2]
    whole = np.zeros((2 * height, 2 * width, *image.shape[2:]), dtype=np.uint8)
    whole[:height, :width] = image
    return whole


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Encode by the suffix of ``path``.

    Raises:
        InputError: when OpenCV cannot write that kind.
    """
    import cv2

    if path.suffix.lower() == ".pgm" and image.ndim == 3 and (image == image[:, :, :1]).all():
        image = image[:, :, 0]  # which holds grey only; as decoded, it has three equal channels
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")  # other encoders warn of an option they do not know
    try:
        is_done, data = cv2.imencode(path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if is_jpeg else [])
    except cv2.error as error:
        raise InputError(f"{path} cannot be encoded as {path.suffix}: {error.err}") from error
    if not is_done:
        raise InputError(f"{path} cannot be encoded as {path.suffix}; convert the image to PNG or JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def image_jobs(data: DataSet, folder: Path, out: Path) -> list[tuple[Path, Path]]:
    """Where each image of ``data`` lies and where it goes, an image of two splits once.

    Raises:
        InputError: when one lies outside ``folder``.
    """
    jobs: dict[Path, Path] = {}
    for record in (*data.train, *data.val):
        inside = Path(os.path.relpath(record.path, folder))
        if ".." in inside.parts:
            raise InputError(f"{record.path} lies outside {folder}; move the image into the data set")
        jobs[record.path] = out / inside
    return list(jobs.items())


def write_annotations(data: DataSet, folder: Path, out: Path, pads: bool) -> None:
    """Write everything of a data set but its images.

    Args:
        data: the part to keep of what was read from ``folder``.
        folder: of the whole data set.
        out: folder to write into.
        pads: whether the images become twice as high and wide.

    Raises:
        InputError: when a file has become unreadable since the records were read.
    """
    _WRITERS[data.format](data, folder, out, pads)


def _write_coco(data: DataSet, folder: Path, out: Path, pads: bool) -> None:
    for split, file in coco_json.find(folder).items():
        content = load_json(file.path)
        kept = {record.image_id for record in data.splits[split]}
        for name, key in (("images", "id"), ("annotations", "image_id")):
            entries = [entry for entry in content[name] if isinstance(entry, dict)]
            content[name] = [entry for entry in entries if coco_json.id_of(entry.get(key)) in kept]
        sizes = {record.image_id: record.size for record in data.splits[split] if record.size is not None}
        content["annotations"] = [
            annotation
            for annotation in content["annotations"]
            if coco_json.is_object(annotation, data.category_ids, sizes[int(annotation["image_id"])])
        ]
        if pads:
            for image in content["images"]:
                image["height"], image["width"] = (2 * side for side in sizes[int(image["id"])])
            for annotation in content["annotations"]:
                if isinstance(annotation.get("segmentation"), dict):
                    annotation["segmentation"] = _padded_runs(annotation["segmentation"])
        write_json(out / file.path.relative_to(folder), content)


def _padded_runs(segmentation: dict[str, Any]) -> dict[str, Any]:
    height, width = (int(v) for v in segmentation["size"])
    counts = segmentation["counts"]
    mask = np.zeros((height, width), dtype=np.uint8)
    RunLength((height, width), counts if isinstance(counts, str) else np.array(counts, np.int32), "a mask").draw(mask)
    return {"size": [2 * height, 2 * width], "counts": counts_of(padded(mask))}


def _write_yolo(data: DataSet, folder: Path, out: Path, pads: bool) -> None:
    layout = yolo.layout_of(folder)
    for split, records in data.splits.items():
        images = [Path(os.path.relpath(record.path, folder)) for record in records]
        # Lists, for folders may be of both splits, or hold more than was kept.
        write_lines(out / f"{split}.txt", [f"./{image.as_posix()}" for image in images])
        for record in records:
            label = yolo.label_file(record.path)
            if record.size is None:  # nothing is in it
                continue
            lines = yolo.object_lines(label, layout, record.size)
            if pads:
                lines = [[line[0], *(str(float(value) / 2) for value in line[1:])] for line in lines]
            inside = Path(os.path.relpath(label, folder))
            if ".." in inside.parts:
                raise InputError(f"{label} lies outside {folder}; move the labels into the data set")
            write_lines(out / inside, [" ".join(line) for line in lines])
    # JSON is YAML, whatever is in a name.
    names = json.dumps({str(number): name for number, name in layout.names.items()}, ensure_ascii=False)
    write_lines(out / "data.yaml", ["train: train.txt", "val: val.txt", f"names: {names}"])


def _write_voc(data: DataSet, folder: Path, out: Path, pads: bool) -> None:
    place = voc_layout.home(folder) or folder
    target = out / place.relative_to(folder)
    # All classes of the whole: a part may show fewer, and its labels must mean the same.
    write_lines(target / "classes.txt", data.class_names)
    if (place / voc_layout.LABEL_MAP).is_file():
        link(place / voc_layout.LABEL_MAP, target / voc_layout.LABEL_MAP)
    if voc_layout.home(folder) is None:
        for record in (*data.train, *data.val):
            xml = voc_layout.xml_of(record.path)
            if xml.exists():  # else one of CVAT's without an object
                _write_xml(xml, out / xml.relative_to(folder), record, pads)
        return
    for split, path in voc_layout.lists(place).items():
        images = [record.path.relative_to(place / "JPEGImages") for record in data.splits[split]]
        names = [image.with_suffix("").as_posix() for image in images]
        write_lines(target / path.relative_to(place), names)
        for name, record in zip(names, data.splits[split], strict=True):
            whole, xml = place / "Annotations" / f"{name}.xml", target / "Annotations" / f"{name}.xml"
            if xml.exists() or not whole.exists():  # an image of both splits, or one of CVAT's without an object
                continue
            _write_xml(whole, xml, record, pads)
            for shapes in ("SegmentationObject", "SegmentationClass"):
                source = place / shapes / f"{name}.png"
                if source.is_file() and pads:
                    # As colours: OpenCV writes no palette, and readers know VOC's.
                    numbers = padded(read_numbers(source))
                    write_image(target / shapes / f"{name}.png", voc_palette()[numbers][:, :, ::-1])
                elif source.is_file():
                    link(source, target / shapes / f"{name}.png")


def _write_xml(source: Path, target: Path, record: Record, pads: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_bytes()
    target.write_bytes(_padded_xml(text, record.size) if pads and record.size else text)


def _padded_xml(text: bytes, size: tuple[int, int]) -> bytes:
    """The XML file of an image of ``size`` (height, width) for its padded image."""
    root = ElementTree.fromstring(text)
    for item in root.iterfind("object"):
        box = item.find("bndbox")
        if box is not None and not _lies_in(item, size):
            item.remove(box)  # the object stays: its place numbers those after it in the outlines
    for name in ("size/height", "size/width"):
        node = root.find(name)
        if node is not None and node.text:
            node.text = str(2 * int(float(node.text)))
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def _lies_in(item: ElementTree.Element, size: tuple[int, int]) -> bool:
    try:
        return cut_box(voc_xml.box_of(item), size) is not None
    except (AnnotationError, ValueError):
        return False


def _write_bdd(data: DataSet, folder: Path, out: Path, pads: bool) -> None:
    write_lines(out / "classes.txt", data.class_names)  # as for VOC
    for split, file in bdd_json.find(folder).items():
        names = {record.path.name for record in data.splits[split]}
        if file.path.is_dir():
            for name in sorted(names):
                one = (file.path / name).with_suffix(".json")
                content = load_json(one)
                for frame in content["frames"]:
                    frame["objects"] = _understood(frame.get("objects"), data.class_names)
                write_json(out / one.relative_to(folder), content)
            continue
        content = load_json(file.path)
        entries = content["frames"] if isinstance(content, dict) else content
        kept = [e for e in entries if isinstance(e, dict) and Path(str(e.get("name"))).name in names]
        for entry in kept:
            entry["labels"] = _understood(entry.get("labels"), data.class_names)
        changed = {**content, "frames": kept} if isinstance(content, dict) else kept
        write_json(out / file.path.relative_to(folder), changed)


def _understood(labels: list[Any] | None, class_names: Sequence[str]) -> list[Any]:
    return [label for label in labels or () if bdd_json.is_understood(label, class_names)]


def _write_folder(data: DataSet, folder: Path, out: Path, pads: bool) -> None:
    for split, records in data.splits.items():
        flat = image_folder.flat_file(folder / split)
        if flat.is_file():
            filter_lines(flat, out / split / flat.name, {record.path.name for record in records})
            continue
        paths: dict[Path, list[Path]] = {}
        for record in records:
            paths.setdefault(record.path.relative_to(folder / split).parents[-2], []).append(record.path)
        for place in image_folder.class_folders(folder / split):
            own = paths.get(Path(place.name), [])
            boxes = image_folder.box_file(place)
            if boxes is not None:
                kept = {name for path in own for name in image_folder.names_of(path, place)}
                filter_lines(boxes, out / split / place.name / boxes.name, kept)
            elif pads:
                lines = [_whole_image(path, place) for path in own]
                write_lines(out / split / place.name / "boxes.txt", lines)


def _whole_image(path: Path, place: Path) -> str:
    """A line of ``boxes.txt``: where nothing is known of objects, the image itself is what is not padding."""
    height, width = read_image(path).shape[:2]
    return f"{image_folder.names_of(path, place)[0]}\t0\t0\t{width}\t{height}"


def filter_lines(source: Path, target: Path, names: set[str]) -> None:
    """Write the lines of ``source`` whose first column is one of ``names`` to ``target``."""
    lines = source.read_text(encoding="utf-8-sig").splitlines()
    write_lines(target, [line for line in lines if line.split("\t")[0] in names])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


_WRITERS: dict[str, Callable[[DataSet, Path, Path, bool], None]] = {
    coco_json.NAME: _write_coco,
    yolo.NAME: _write_yolo,
    voc_xml.NAME: _write_voc,
    bdd_json.NAME: _write_bdd,
    image_folder.NAME: _write_folder,
}

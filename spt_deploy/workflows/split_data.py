"""Both splits of a data set that has none: chosen by chance or by name, written, and read again."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.datasets.formats import FORMATS, find_format, read_data
from spt_deploy.datasets.heap import Item, Unsplit, visible_folders
from spt_deploy.datasets.rewrite import link
from spt_deploy.datasets.rewrite_splits import write_splits
from spt_deploy.datasets.unsplit import LOOKS_FOR, find_unsplit
from spt_deploy.errors import InputError, SptError, UsageError
from spt_deploy.images import MAX_BROKEN
from spt_deploy.training.report import Reports
from spt_deploy.wording import counted
from spt_deploy.workflows.data_folder import check_new, new_folder, place_images

VAL_SHARE = 0.2
_MOST_BELOW = 8  # folders that are looked into, when there is no data set
_COPY = re.compile(r"\.rf\.\w+(?=\.\w+$)")  # what Roboflow adds to the name of each augmented copy of one photo


@dataclass(frozen=True)
class Part:
    """One split of the new data set.

    Attributes:
        images: in it.
        objects: in these; None where nothing is known of them.
        classes: objects of each class by name, or images where an image has one class.
    """

    images: int
    objects: int | None
    classes: dict[str, int]


@dataclass(frozen=True)
class SplitData:
    """What was written.

    Attributes:
        out: folder of the new data set.
        format: of it.
        splits: by name, ``train`` and ``val``.
        broken: what was left out because it cannot be used, with the reason.
    """

    out: Path
    format: str
    splits: dict[str, Part]
    broken: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        return asdict(self) | {"out": str(self.out)}


def make_splits(
    source: Path,
    out: Path,
    val: float = VAL_SHARE,
    *,
    last: bool = False,
    seed: int = 0,
    format: str | None = None,
    max_broken: float = MAX_BROKEN,
    reports: Reports | None = None,
) -> SplitData:
    """Write the images of a data set without splits as one with ``train`` and ``val``.

    Images are hard links where the file system has them; annotations are copies.

    Args:
        source: folder of the data set, or its COCO JSON file.
        out: folder to write; must not be there, nor lie in ``source``.
        val: share of the images for ``val``, of each class where an image has one.
        last: whether these are the last by name of each folder, as for the frames of a video, of which neighbours look
            alike; else they are drawn.
        seed: of the draw.
        format: of ``source``; None looks.
        max_broken: share of the images that may be broken.
        reports: takes what people read meanwhile; None keeps quiet.

    Raises:
        UsageError: when ``val`` is out of range, the format is not clear, or the data set is split already.
        InputError: when there is no such data set, too few images are in it, or it cannot be read.
        OutputError: when ``out`` is there, lies in ``source`` or cannot be written.
    """
    reports = reports or Reports()
    if not 0 < val < 1:
        raise UsageError(f"val is {val}; expected a share of the images between 0 and 1")
    check_new(out, source)
    data = _found(source, format, max_broken)
    check_new(out, data.folder)  # of a file that was named
    reports.say(f"{source} is {data.title or FORMATS[data.format].title} without train and val ({data.found})")
    for sentence in (*data.notes, *(f"left out: {broken.reason}" for broken in data.broken)):
        reports.say(sentence)
    splits = choose(data.items, val, last=last, seed=seed)
    with new_folder(out) as folder:
        jobs = write_splits(data, splits, folder)
        place_images(link, jobs, reports)
        try:
            made = read_data(folder, format=data.format, max_broken=max_broken)
        except InputError as error:
            raise InputError(str(error).replace(str(folder), str(out))) from error
    late = [broken.reason.replace(str(folder), str(out)) for broken in made.broken]
    for reason in late:
        reports.say(f"left out by training: {reason}")
    parts = {split: _part(made, records) for split, records in made.splits.items()}
    for name in made.class_names:
        if parts["train"].classes[name] and not parts["val"].classes[name]:
            reports.say(f"val has no {name}: nothing will be known of that class; try another --seed, or more images")
    return SplitData(out, data.format, parts, (*(broken.reason for broken in data.broken), *late))


def choose(items: Sequence[Item], val: float, *, last: bool = False, seed: int = 0) -> dict[str, list[Item]]:
    """``items`` as ``train`` and ``val``, each group's share of ``val`` rounded, with one of a group in each at least.

    Augmented copies of one photo, as Roboflow names them, stay together: else it would be learnt from and measured on.

    Args:
        items: of the data set.
        val: share for ``val``.
        last: whether ``val`` gets the last by name of each folder, where 10 follows 9; else they are drawn.
        seed: of the draw. The same names and seed give the same splits, wherever they lie.

    Raises:
        InputError: when a group has one item.
    """
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in sorted(items, key=lambda item: _natural(item.name)):
        groups.setdefault((item.group, str(item.name.parent) if last else ""), []).append(item)
    chosen: set[Path] = set()
    draw = random.Random(seed)
    for (group, folder), members in groups.items():
        if len(members) < 2:
            where = f"the class {group}" if group else f"the folder {folder}" if last and folder != "." else "it"
            raise InputError(
                f"{where} has one image, {members[0].image}; expected one for train and one for val; "
                "add another, or remove it"
            )
        photos: dict[str, list[Item]] = {}
        for item in members:
            photos.setdefault(_COPY.sub("", item.name.as_posix()), []).append(item)
        if len(photos) < 2:
            raise InputError(
                f"the images beside {members[0].image} are copies of one photo; expected one for train and one for val"
            )
        count = min(max(1, round(val * len(photos))), len(photos) - 1)
        names = list(photos)
        picked = names[-count:] if last else draw.sample(names, count)
        chosen |= {item.image for name in picked for item in photos[name]}
    ordered = [item for members in groups.values() for item in members]
    return {
        "train": [item for item in ordered if item.image not in chosen],
        "val": [item for item in ordered if item.image in chosen],
    }


def _found(source: Path, format: str | None, max_broken: float) -> Unsplit:
    found = find_unsplit(source, format, max_broken)
    if found is not None:
        return found
    try:
        name, text = find_format(source, format)
    except SptError:
        name = None
    if name is not None and format is None:
        raise UsageError(
            f"{source} is split already: it is {FORMATS[name].title} ({text}), which train reads as it is; "
            "to split it anew, put the images and labels of both splits into one folder"
        )
    below = _below(source, max_broken)
    if below:
        raise InputError(
            f"{source} has {counted(len(below), 'data set')} without splits in it, which cannot be split as one: "
            f"{', '.join(path.name for path in below)}; split each, or export them as one"
        )
    zipped = (
        "; unpack it first" if source.suffix.lower() == ".zip" else "; export one of these from the annotation tool"
    )
    raise InputError(f"{source} is no data set without splits; looked for {LOOKS_FOR}{zipped}")


def _below(source: Path, max_broken: float) -> list[Path]:
    """Folders of data sets without splits, as of several tasks of one project."""
    found = []
    for folder in visible_folders(source)[:_MOST_BELOW] if source.is_dir() else ():
        with suppress(SptError, OSError):
            if find_unsplit(folder, None, max_broken) is not None:
                found.append(folder)
    return found


def _part(data: DataSet, records: Iterable[Record]) -> Part:
    records = list(records)
    known = [record.objects for record in records if record.objects is not None]
    if FORMATS[data.format].has_objects:
        labels = Counter(int(label) for objects in known for label in objects.labels)
    else:
        labels = Counter(record.label for record in records if record.label is not None)
    classes = {name: labels[label] for label, name in enumerate(data.class_names)}
    return Part(len(records), sum(map(len, known)) if known else None, classes)


def _natural(name: Path) -> list[tuple[int, int | str]]:
    """A key by which frame_9 comes before frame_10."""
    parts = re.split(r"(\d+)", name.as_posix())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]

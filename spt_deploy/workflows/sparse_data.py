"""Sparse data sets: the images of which objects cover little, or all images with black around them.

Source: "Context-Aware Token Selection and Packing", arXiv 2410.23608, experiments: COCO-S are the images of COCO with
less than 20 % of their pixels in objects, BDD-S and VOC-S those with less than 25 %, IN-S is Tiny ImageNet in the upper
left of an image twice as high and wide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spt_deploy.datasets.annotations import LeftOut
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.datasets.formats import read_data
from spt_deploy.datasets.rewrite import image_jobs, link, place_padded, write_annotations
from spt_deploy.datasets.scene import scene_of
from spt_deploy.errors import InputError, SourceError, UsageError
from spt_deploy.images import MAX_BROKEN, read_image
from spt_deploy.training.report import Reports
from spt_deploy.workflows.data_folder import check_new, in_threads, new_folder, place_images

MAX_RATIO = {"coco": 0.20, "yolo": 0.25, "voc": 0.25, "bdd": 0.25, "folder": 0.25}  # of the paper's subsets
BINS = 10  # of the distribution that is reported


@dataclass(frozen=True)
class SplitCount:
    """What became of one split.

    Attributes:
        images: before.
        kept: after.
        without_objects: of those kept, images that hold none.
        mean_ratio: share of pixels in objects, mean over the images kept; None where it is not known.
        histogram: images before with a ratio in [0, 0.1), [0.1, 0.2), ... [0.9, 1]; empty where it is not known.
    """

    images: int
    kept: int
    without_objects: int
    mean_ratio: float | None
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class SparseData:
    """What was written.

    Attributes:
        out: folder of the new data set.
        format: of it and of the one it was made from.
        max_ratio: below which an image was kept; None where all were.
        splits: by name, ``train`` and ``val``.
        broken: what was left out because it cannot be used, with the reason.
    """

    out: Path
    format: str
    max_ratio: float | None
    splits: dict[str, SplitCount]
    broken: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        return asdict(self) | {"out": str(self.out)}


def make_sparse(
    source: Path,
    out: Path,
    max_ratio: float | None = None,
    format: str | None = None,
    *,
    max_broken: float = MAX_BROKEN,
    reports: Reports | None = None,
) -> SparseData:
    """Write the images with few pixels in objects as a data set of the same format.

    An object covers the pixels of its outline where it has one, else those of its box; crowds and difficult objects
    count. Images are hard links where the file system has them.

    Args:
        source: folder of a data set.
        out: folder to write; must not be there, nor lie in ``source``.
        max_ratio: images with a smaller share of pixels in objects are kept; None takes the paper's for the format.
        format: of ``source``; None looks.
        max_broken: share of a split's images that may be broken.
        reports: takes what people read meanwhile; None keeps quiet.

    Raises:
        UsageError: when ``max_ratio`` is out of range, or the format is not clear.
        InputError: when the data set cannot be read or says nothing of objects, or no image is left.
        OutputError: when ``out`` is there, lies in ``source`` or cannot be written.
    """
    reports = reports or Reports()
    if max_ratio is not None and not 0 < max_ratio <= 1:
        raise UsageError(f"max_ratio is {max_ratio}; expected a share of pixels above 0 and at most 1")
    data = _read(source, out, format, max_broken, reports)
    limit = MAX_RATIO[data.format] if max_ratio is None else max_ratio
    if not data.has_objects:
        raise InputError(f"{source} does not say where its objects lie; add boxes (see docs/data.md)")
    counts: dict[str, SplitCount] = {}
    kept: dict[str, tuple[Record, ...]] = {}
    broken = list(data.broken)
    for split, records in data.splits.items():
        left_out = LeftOut(source, max_broken)
        ratios = _ratios(split, records, left_out, reports)
        left_out.check(len(records))
        broken += left_out.broken
        kept[split] = tuple(r for r, ratio in zip(records, ratios, strict=True) if ratio < limit)  # not where it is NaN
        counts[split] = _count(kept[split], ratios, limit)
    data = replace(data, train=kept["train"], val=kept["val"])
    _check_left(data, f"has less than {limit:.0%} of its pixels in objects; raise --max-ratio")
    with new_folder(out) as folder:
        place_images(link, image_jobs(data, source, folder), reports)
        write_annotations(data, source, folder, pads=False)
    return SparseData(out, data.format, limit, counts, tuple(b.reason for b in broken))


def make_padded(
    source: Path,
    out: Path,
    format: str | None = None,
    *,
    max_broken: float = MAX_BROKEN,
    reports: Reports | None = None,
) -> SparseData:
    """Write every image in the upper left of a black one twice as high and wide, as a data set of the same format.

    Boxes and outlines stay where they are. A class folder without ``boxes.txt`` gets one in which the image itself is
    the object. JPEG images are encoded anew.

    Args:
        source: folder of a data set.
        out: folder to write; must not be there, nor lie in ``source``.
        format: of ``source``; None looks.
        max_broken: share of a split's images that may be broken.
        reports: takes what people read meanwhile; None keeps quiet.

    Raises:
        UsageError: when the format is not clear.
        InputError: when the data set cannot be read, too many images cannot be used, or none of a class can.
        OutputError: when ``out`` is there, lies in ``source`` or cannot be written.
    """
    reports = reports or Reports()
    data = _read(source, out, format, max_broken, reports)
    before, left_out = data, LeftOut(source, max_broken)
    with new_folder(out) as folder:
        jobs = image_jobs(data, source, folder)
        of_path = _by_path(data)

        def place(path: Path, target: Path) -> None:
            place_padded(path, target, of_path[path])

        for path, error in place_images(place, jobs, reports).items():
            left_out.add(str(path), path, str(error))
        left_out.check(len(jobs))
        lost = {broken.path for broken in left_out.broken}
        train, val = (tuple(r for r in records if r.path not in lost) for records in data.splits.values())
        data = replace(data, train=train, val=val)
        _check_left(data, "can be used; put one there")
        write_annotations(data, source, folder, pads=True)
    counts = {}
    for split, records in data.splits.items():
        empty = sum(r.objects is not None and not len(r.objects) for r in records)
        counts[split] = SplitCount(len(before.splits[split]), len(records), empty, mean_ratio=None, histogram=())
    broken = (*data.broken, *left_out.broken)
    return SparseData(out, data.format, None, counts, tuple(b.reason for b in broken))


def object_ratio(record: Record) -> float:
    """Share of an image's pixels in an object's outline, or its box where it has none; NaN where nothing is known.

    Raises:
        SourceError: when the image or an outline cannot be read, or a box lies outside its image.
    """
    if record.objects is None:
        return float("nan")
    size = record.size
    if size is None:  # the image itself knows
        size = scene_of(record, read_image(record.path)).size
    return float(record.objects.mask(size).mean())


def _read(source: Path, out: Path, format: str | None, max_broken: float, reports: Reports) -> DataSet:
    check_new(out, source)
    data = read_data(source, format=format, max_broken=max_broken)
    if not source.is_dir():
        raise InputError(f"{source} is a file; name the folder of the data set")
    reports.say(data.found)
    for broken in data.broken:
        reports.say(f"left out: {broken.reason}")
    return data


def _ratios(split: str, records: tuple[Record, ...], left_out: LeftOut, reports: Reports) -> list[float]:
    """The ratio of each record, NaN where it is not known or the image is broken."""

    def ratio(record: Record) -> float | SourceError:
        try:
            return object_ratio(record)
        except SourceError as error:
            return error

    ratios: list[float] = []
    with reports.progress(f"{split}: object pixels", len(records)) as progress:
        for record, value in zip(records, in_threads(ratio, records), strict=True):
            if isinstance(value, SourceError):
                reports.say(f"left out: {value}")
                left_out.add(str(record.path), record.path, str(value))
                value = float("nan")
            ratios.append(value)
            progress.update(len(ratios))
    return ratios


def _count(kept: tuple[Record, ...], ratios: list[float], limit: float) -> SplitCount:
    known = np.array([r for r in ratios if not np.isnan(r)])
    below = known[known < limit]
    return SplitCount(
        images=len(ratios),
        kept=len(kept),
        without_objects=sum(not len(r.objects or ()) for r in kept),
        mean_ratio=float(below.mean()) if below.size else None,
        histogram=tuple(int(n) for n in np.histogram(known, BINS, (0.0, 1.0))[0]),
    )


def _by_path(data: DataSet) -> dict[Path, list[Record]]:
    """The records of each image, of which one in two splits has two."""
    records: dict[Path, list[Record]] = {}
    for record in (*data.train, *data.val):
        records.setdefault(record.path, []).append(record)
    return records


def _check_left(data: DataSet, what: str) -> None:
    """Whether both splits have an image left, and each class of a folder; ``what`` it takes to be left, and a remedy.

    Raises:
        InputError: when not.
    """
    for split, records in data.splits.items():
        if not records:
            raise InputError(f"no {split} image {what}")
        if data.format == "folder":
            labels = {record.label for record in records}
            lost = [name for label, name in enumerate(data.class_names) if label not in labels]
            if lost:
                raise InputError(f"no {split} image of the class {', '.join(lost)} {what}, or leave the class out")

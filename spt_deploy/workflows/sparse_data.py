"""Sparse data sets: the images of which objects cover little, or all images with black around them.

Source: "Context-Aware Token Selection and Packing", arXiv 2410.23608, experiments: COCO-S are the images of COCO with
less than 20 % of their pixels in objects, BDD-S and VOC-S those with less than 25 %, IN-S is Tiny ImageNet in the upper
left of an image twice as high and wide.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spt_deploy.atomic import output_error
from spt_deploy.datasets.annotations import LeftOut
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.datasets.formats import read_data
from spt_deploy.datasets.rewrite import image_jobs, link, place_padded, write_annotations
from spt_deploy.datasets.scene import scene_of
from spt_deploy.errors import InputError, OutputError, SourceError, UsageError
from spt_deploy.images import MAX_BROKEN, read_image
from spt_deploy.training.report import Reports

MAX_RATIO = {"coco": 0.20, "yolo": 0.25, "voc": 0.25, "bdd": 0.25, "folder": 0.25}  # of the paper's subsets
BINS = 10  # of the distribution that is reported

_CHUNK = 256  # jobs given to the threads at once: what an interruption waits for

_In = TypeVar("_In")
_Out = TypeVar("_Out")


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
    with _new_folder(out) as folder:
        _place_images(link, image_jobs(data, source, folder), reports)
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
    with _new_folder(out) as folder:
        jobs = image_jobs(data, source, folder)
        of_path = _by_path(data)

        def place(path: Path, target: Path) -> None:
            place_padded(path, target, of_path[path])

        for path, error in _place_images(place, jobs, reports).items():
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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is there already; choose another folder, or remove it")
    data = read_data(source, format=format, max_broken=max_broken)
    if not source.is_dir():
        raise InputError(f"{source} is a file; name the folder of the data set")
    if source.resolve() in out.resolve().parents:
        raise OutputError(f"{out} lies in {source}, which is only read; choose a folder beside it")
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
        for record, value in zip(records, _in_threads(ratio, records), strict=True):
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


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` for the block to fill: ``out`` when the block has succeeded, else removed.

    Raises:
        OutputError: when it cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.is_dir():
            out.rmdir()  # an empty one
        temporary.replace(out)
    except OSError as error:
        raise output_error(error.filename2 or error.filename or out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place_images(
    place: Callable[[Path, Path], None], jobs: list[tuple[Path, Path]], reports: Reports
) -> dict[Path, SourceError]:
    """Put each image where it goes; what could not be read, with the reason."""

    def do(job: tuple[Path, Path]) -> SourceError | None:
        try:
            place(*job)
        except SourceError as error:
            return error
        return None

    errors: dict[Path, SourceError] = {}
    with reports.progress("images", len(jobs)) as progress:
        for done, ((path, _), error) in enumerate(zip(jobs, _in_threads(do, jobs), strict=True), start=1):
            if error is not None:
                reports.say(f"left out: {error}")
                errors[path] = error
            progress.update(done)
    return errors


def _in_threads(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """``map`` on all cores, in order: OpenCV and the disk work without Python's lock."""
    rest = list(items)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(rest), _CHUNK):
            yield from pool.map(function, rest[start : start + _CHUNK])

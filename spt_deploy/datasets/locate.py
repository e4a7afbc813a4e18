"""The files of images that an annotation file names: where its tool puts them, or wherever a user keeps them.

A user may have had the images all the time, in folders of another name; a tool may write the path on its server, or
without a suffix. A file of the same name that belongs to another entry is never taken: it would get wrong labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spt_deploy.datasets.annotations import first_file
from spt_deploy.datasets.heap import images_below
from spt_deploy.images import IMAGE_SUFFIXES

_SUFFIXES = tuple(case for suffix in sorted(IMAGE_SUFFIXES) for case in (suffix, suffix.upper()))
_Paths = dict[str, list[Path]]


@dataclass(frozen=True)
class Named:
    """An image as an annotation file names it.

    Attributes:
        file: the annotation file.
        name: path with ``/``; without the suffix of an image it may have any.
        folders: where the tool puts it.
    """

    file: Path
    name: str
    folders: tuple[Path, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the name, without a drive or root."""
        return tuple(part for part in PurePosixPath(self.name).parts if part != "/" and not part.endswith(":"))

    def means(self, other: Named) -> bool:
        """Whether it is the same image, listed twice."""
        return (self.file, self.parts, self.folders) == (other.file, other.parts, other.folders)


@dataclass(frozen=True)
class Located:
    """Where the images are.

    Attributes:
        images: of each entry the image, or why it has none, a sentence without the name of its file.
        notes: sentences that a user should read.
    """

    images: list[Path | str]
    notes: tuple[str, ...]


def locate(entries: Sequence[Named], top: Path) -> Located:
    """The images of annotation files.

    An image is in one of the entry's folders, or below ``top`` with the same path behind it. Where a file has none of
    its images so, folders that its names begin with are taken to be elsewhere. What two different entries could mean is
    neither's.

    Args:
        entries: of all annotation files.
        top: of the data set.
    """
    found: list[list[Path]] = [_in_folders(entry) for entry in entries]
    notes = []
    if not all(found):
        taken = {path for paths in found for path in paths}
        free: _Paths = {}
        for image in images_below(top):
            image = Path(os.path.normpath(image))
            if image not in taken:
                free.setdefault(_key(image.name), []).append(image)
        of_file: dict[Path, list[int]] = {}
        for number, entry in enumerate(entries):
            of_file.setdefault(entry.file, []).append(number)
        for numbers in of_file.values():
            if _search(entries, numbers, free, found):
                name, image = next((entries[n].name, found[n][0]) for n in numbers if found[n])
                where = f"{name} is taken to be {os.path.relpath(image, top)}"
                notes.append(f"{entries[numbers[0]].file.name} has its images in other folders: {where}")
    claims: dict[Path, list[Named]] = {}
    for entry, paths in zip(entries, found, strict=True):
        if len(paths) == 1:
            claims.setdefault(paths[0], []).append(entry)
    images = [_one_of(entry, paths, claims, top) for entry, paths in zip(entries, found, strict=True)]
    return Located(images, tuple(notes))


def _one_of(entry: Named, paths: Sequence[Path], claims: Mapping[Path, Sequence[Named]], top: Path) -> Path | str:
    if not paths:
        return f"its image {entry.name!r} is missing; put it into {entry.folders[0]}, or into another folder of {top}"
    if len(paths) > 1:
        return f"the image {entry.name!r} could be {paths[0]} or {paths[1]}; remove the one that it is not"
    other = next((each for each in claims[paths[0]] if not each.means(entry)), None)
    if other is None:
        return paths[0]
    if other.file != entry.file:
        return (
            f"the image {entry.name!r} could be {paths[0]}, as {other.name!r} of {other.file}; keep one of these files"
        )
    return f"two images that are listed could be {paths[0]}; give each image a folder of its own"


def _in_folders(entry: Named) -> list[Path]:
    for suffix in _suffixes(entry.name) if entry.parts else ():
        file = first_file(entry.folders, f"{entry.name}{suffix}")
        if file is not None and file.suffix.lower() in IMAGE_SUFFIXES:
            return [Path(os.path.normpath(file))]
    return []


def _search(entries: Sequence[Named], numbers: Sequence[int], free: _Paths, found: list[list[Path]]) -> bool:
    """Fill in ``found`` of those of one file's entries that have nothing there; whether without their first folders."""
    missing = [number for number in numbers if not found[number] and entries[number].parts]
    depth = max((len(entries[number].parts) for number in missing), default=0)
    if len(missing) < len(numbers):
        depth = min(depth, 1)  # the others are where their names say
    for dropped in range(depth):
        for number in missing:
            found[number] = list(_with_parts(entries[number], dropped, free))
        if any(found[number] for number in missing):
            return dropped > 0
    return False


def _with_parts(entry: Named, dropped: int, free: _Paths) -> Iterator[Path]:
    """The images whose path ends as the entry's does without its first folders; if there are, those beside its file."""
    parts = entry.parts[min(dropped, len(entry.parts) - 1) :]
    names = {f"{parts[-1]}{suffix}".lower() for suffix in _suffixes(parts[-1])}
    folders = [part.lower() for part in parts[:-1]]
    same = [
        image
        for image in free.get(_key(parts[-1]), ())
        if image.name.lower() in names and [part.lower() for part in image.parts[-len(parts) : -1]] == folders
    ]
    yield from [image for image in same if image.is_relative_to(entry.file.parent)] or same


def _suffixes(name: str) -> tuple[str, ...]:
    """What a name may have behind it."""
    return ("",) if Path(name).suffix.lower() in IMAGE_SUFFIXES else _SUFFIXES


def _key(name: str) -> str:
    """Of a name without its suffix, in whatever case: Windows makes no difference."""
    return (name[: -len(suffix)] if (suffix := Path(name).suffix).lower() in IMAGE_SUFFIXES else name).lower()

"""What an annotation tool exported as one heap: the images, what is said of them, and what their folders are called.

Beside the images of a data set lie folders of what is no image of it, or of no class: masks, drawn boxes, splits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spt_deploy.datasets.dataset import Broken
from spt_deploy.errors import InputError, SourceError
from spt_deploy.images import find_images

SHAPES = frozenset({"SegmentationObject", "SegmentationClass"})  # folders of images that are outlines

_TRAIN = re.compile(r"(?<![a-z])train(ing)?(set)?(?![a-z])")
_VAL = re.compile(r"(?<![a-z])(val(id(ation)?)?|test(ing)?)(set)?(?![a-z])")


class NothingToLearnError(InputError):
    """What a tool's files hold is no object in an image; other files beside them may be what a folder is of."""


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
        title: of what it is, where that is not the format that it will have.
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
    title: str | None = None
    names: dict[int, str] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    keypoints: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    broken: tuple[Broken, ...] = ()


def images_below(folder: Path) -> list[Path]:
    """The images in ``folder``, also in a folder there that is a link to another; empty where there is none."""
    found: list[Path] = []
    linked = sorted(path for path in folder.iterdir() if path.is_symlink() and path.is_dir())
    for place in (folder, *linked):
        try:
            found += find_images(place)
        except SourceError:
            continue
    return sorted(found)


def visible_folders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted by name, but hidden ones and what macOS packs with others."""
    places = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path for path in places if not path.name.startswith(".") and path.name != "__MACOSX")


def split_folders(names: Iterable[Path]) -> tuple[str, str] | None:
    """The folders of train and of val (or test) on the way to the paths ``names``; None where not both are there.

    To mix what lies in these would not be what is meant: obj_train_data/ and obj_valid_data/, training_set/ and
    test_set/.
    """
    places = dict.fromkeys(place for name in names for place in name.parents)
    train = [place.as_posix() for place in places if _TRAIN.search(place.name.lower())]
    val = [place.as_posix() for place in places if _VAL.search(place.name.lower())]
    return (min(train), min(val)) if train and val else None


def new_names(images: Sequence[Path], without: str = "", *, by_stem: bool = True) -> list[Path]:
    """The path of each below the folder that holds them all; no folder on the way is called ``without``.

    Args:
        images: relative paths, absolute ones, or both.
        without: see above.
        by_stem: whether images have files of the same name, but for the suffix, that say what they hold.

    Raises:
        InputError: when two have one name.
    """
    paths = [str(image.absolute()) for image in images]
    top = os.path.commonpath(list(map(os.path.dirname, paths))) if paths else ""
    inside = [Path(path).relative_to(top) for path in paths]
    names = [Path(*(part for part in path.parts if part != without)) for path in inside]
    seen: dict[Path, Path] = {}
    for image, name in zip(images, names, strict=True):
        key = name.with_suffix("") if by_stem else name
        other = seen.setdefault(key, image)
        if other is not image:
            raise InputError(f"{other} and {image} would both be {key}; rename one of them")
    return names

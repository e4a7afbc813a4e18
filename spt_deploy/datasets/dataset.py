"""What is known of a data set before its images are opened: what the reader of a format makes (`formats.py`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spt_deploy.datasets.objects import Objects


@dataclass(frozen=True)
class Record:
    """One image of a data set, before it is opened.

    Attributes:
        path: of the image file.
        label: index of its one class; None in data that has none.
        labels: indices of all classes in it, ascending; None where they are not known.
        objects: everything in it; None where nothing is known of them.
        image_id: a number of its own in its split, the file's own where it has one (COCO).
        size: (height, width) that the annotations are written for; None where they do not say.
    """

    path: Path
    label: int | None = None
    labels: tuple[int, ...] | None = None
    objects: Objects | None = None
    image_id: int = 0
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Broken:
    """An image or annotation that cannot be used, and the sentence that says why.

    Attributes:
        path: of the image, or of the annotation file that should speak of one.
        reason: a sentence that names the file.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class DataSet:
    """Both splits of a data set.

    Attributes:
        class_names: in the order of the labels.
        train: records to learn from.
        val: records to measure on.
        format: name of the format it was read from (see `formats.py`).
        category_ids: the format's own number of each class, in the order of the labels.
        broken: what the reader left out.
        found: a sentence that says what the format was told by.
    """

    class_names: tuple[str, ...]
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    format: str = "folder"
    category_ids: tuple[int, ...] = ()
    broken: tuple[Broken, ...] = ()
    found: str = ""

    @property
    def splits(self) -> dict[str, tuple[Record, ...]]:
        """Both by name."""
        return {"train": self.train, "val": self.val}

    @property
    def has_objects(self) -> bool:
        """Whether any training image says where its objects lie."""
        return any(r.objects is not None for r in self.train)

    @property
    def in_both(self) -> int:
        """Images of the validation split that are in the training split, too."""
        return len({r.path for r in self.train} & {r.path for r in self.val})

    def identity(self) -> dict[str, Any]:
        """What must be the same where a run is resumed: images of each split, and a digest of what is known of them.

        The pixels of images and outlines are not in it.
        """
        digest = hashlib.sha256()
        for record in (*self.train, *self.val):
            digest.update(repr((record.path.name, record.label, record.labels, record.size)).encode(errors="replace"))
            if record.objects is not None:
                for array in (record.objects.boxes, record.objects.labels, record.objects.crowd):
                    digest.update(array.tobytes())
        return {name: len(records) for name, records in self.splits.items()} | {"digest": digest.hexdigest()}

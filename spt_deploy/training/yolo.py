"""YOLO's formats, which are not read: told apart, so that the error says what to do.

labels/train/0001.txt                or labels/0001.txt; the images in images/train/ or images/
train/labels/0001.txt                Roboflow's; the images in train/images/
data.yaml                            names the splits and the classes, with the lines "train:" and "names:"
"""

from __future__ import annotations

import re
from pathlib import Path

from spt_deploy.images import is_image_name

_LABELS = ("labels", "labels/*", "*/labels")
_YAML = (".yaml", ".yml")
_LINES = (re.compile(r"^train\s*:", re.MULTILINE), re.compile(r"^(names|nc)\s*:", re.MULTILINE))


def label_folder(folder: Path) -> Path | None:
    """The first folder of label files in ``folder``; None without. One that holds images too is a class."""
    for pattern in _LABELS:
        for place in sorted(folder.glob(pattern)):
            names = list(place.iterdir()) if place.is_dir() else []
            if any(path.suffix == ".txt" for path in names) and not any(map(is_image_name, names)):
                return place
    return None


def yaml_file(path: Path) -> Path | None:
    """The file that names YOLO's splits: ``path`` itself, or one in the folder; None without."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((file for file in files if file.suffix in _YAML and _names_splits(file)), None)


def _names_splits(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return all(line.search(text) for line in _LINES)

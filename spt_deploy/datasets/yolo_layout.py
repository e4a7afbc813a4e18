"""The file of a data set with YOLO's labels: which images are of which split, and how classes are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from spt_deploy.datasets.annotations import text_of
from spt_deploy.errors import InputError, RuntimeMissingError

_YAML = (".yaml", ".yml")
_LINES = (re.compile(r"^train\s*:", re.MULTILINE), re.compile(r"^(names|nc)\s*:", re.MULTILINE))
_DARKNET = ".data"
LOST_OUTLINES = "YOLO 1.1 has boxes alone: export outlines as COCO 1.0 or Ultralytics YOLO Segmentation"
_DARKNET_LINE = re.compile(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_LONGEST = 1 << 16  # bytes; perf.data and model.onnx.data are no text
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}  # the first that is there


@dataclass(frozen=True)
class Layout:
    """What the file of a data set says.

    Attributes:
        file: YAML, or darknet's.
        splits: by name, the folders and lists of images of each.
        names: of the classes, by number.
        has_keypoints: whether boxes are followed by keypoints.
    """

    file: Path
    splits: dict[str, tuple[Path, ...]]
    names: dict[int, str]
    has_keypoints: bool

    @property
    def is_darknet(self) -> bool:
        """Whether it is CVAT's YOLO 1.1, which has boxes alone."""
        return self.file.suffix == _DARKNET

    @cached_property
    def places(self) -> dict[int, int]:
        """Of each class's number, its place among the classes."""
        return {number: place for place, number in enumerate(self.names)}


def layout_file(given: Path) -> Path | None:
    """The file that names the splits: ``given`` itself, or the one in that folder; None without."""
    files = [file for file in (given.iterdir() if given.is_dir() else [given]) if file.suffix in (*_YAML, _DARKNET)]
    files.sort(key=lambda path: (path.suffix == _DARKNET, path.stem != "data", path))
    return next(filter(_names_splits, files), None)


def read_layout(file: Path) -> Layout:
    """What a file says.

    Raises:
        InputError: when it cannot be read, or does not say what it must.
        RuntimeMissingError: when PyYAML is not installed.
    """
    content = _load_darknet(file) if file.suffix == _DARKNET else load_yaml(file)
    splits: dict[str, tuple[Path, ...]] = {}
    for split, keys in _SPLITS.items():
        key = next((key for key in keys if content.get(key)), None)
        if key is None:
            raise InputError(f"{file} has no {split}:; add a line that names the folder of the {split} images")
        entries = content[key] if isinstance(content[key], list) else [content[key]]
        splits[split] = tuple(_place(str(entry), file, content.get("path")) for entry in entries)
    return Layout(file, splits, class_names_of(file, content), "kpt_shape" in content)


def load_yaml(file: Path) -> dict[str, Any]:
    """What the YAML file of a data set holds.

    Raises:
        InputError: when it cannot be read, or holds something else.
        RuntimeMissingError: when PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise RuntimeMissingError(f"{file} needs PyYAML to be read; pip install pyyaml") from error
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no YAML file of a data set; expected train:, val: and names:")
    return content


def listed_names(file: Path) -> list[str]:
    """The names in a list of classes, whose lines count.

    Raises:
        InputError: when it cannot be read, or a line between others is empty.
    """
    names = [line.strip() for line in text_of(file).rstrip().splitlines()]
    if "" in names:
        raise InputError(f"{file} has the empty line {names.index('') + 1}; each line names the class of its number")
    return names


def class_names_of(file: Path, content: dict[str, Any]) -> dict[int, str]:
    """The names of the classes in the ``content`` of the YAML file, by number.

    Raises:
        InputError: when there are none, or they are not each class's, once.
    """
    names = content.get("names")
    pairs = (
        list(names.items()) if isinstance(names, dict) else list(enumerate(names if isinstance(names, list) else ()))
    )
    try:
        found = {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} has the names {names!r}; expected a list, or numbers with a name each") from error
    if not found or len(set(found.values())) != len(pairs):
        raise InputError(f"{file} has the names {names!r}; expected each class's, once")
    if isinstance(content.get("nc"), int) and content["nc"] != len(found):
        raise InputError(f"{file} says {content['nc']} classes and has {len(found)} names; make them agree")
    return dict(sorted(found.items()))


def _names_splits(file: Path) -> bool:
    try:
        if file.suffix == _DARKNET and file.stat().st_size > _LONGEST:
            return False
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if file.suffix == _DARKNET:
        keys = dict(_DARKNET_LINE.findall(text))
        return "names" in keys and all(any(key in keys for key in any_of) for any_of in _SPLITS.values())
    return all(line.search(text) for line in _LINES)


def _load_darknet(file: Path) -> dict[str, Any]:
    """What darknet's file holds, as the YAML file would."""
    content: dict[str, Any] = dict(_DARKNET_LINE.findall(text_of(file)))
    if content.get("classes", "").isdigit():
        content["nc"] = int(content["classes"])
    return {**content, "names": listed_names(_place(content["names"], file, None))}


def _place(entry: str, file: Path, root: Any) -> Path:
    """What an entry means: from ``root``, if that is there, or from the YAML file."""
    bases = [file.parent / str(root), file.parent] if root else [file.parent]
    entry = entry.replace("\\", "/")
    names = [entry, entry.removeprefix("../"), entry.removeprefix("data/")]  # Roboflow's; darknet's, whose folder it is
    found = next((base / name for base in bases for name in names if (base / name).exists()), None)
    if found is None:
        looked = " or ".join(dict.fromkeys(str(base) for base in bases))
        raise InputError(f"{file} names {entry}, which is not in {looked}; name a folder or a file that is there")
    return found

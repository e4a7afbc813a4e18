"""Predictions in other forms: a table for spreadsheets and pandas, COCO results for its tools.

Both are made of ``predictions.jsonl`` once that is whole, line by line: memory does not grow with the stream, and the
lines of an earlier run that was resumed are in them too.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from spt_deploy.atomic import atomic_path
from spt_deploy.config import ModelConfig
from spt_deploy.errors import UsageError
from spt_deploy.streaming.resume import PREDICTIONS

FORMATS = ("jsonl", "csv", "coco")
TABLE = "predictions.csv"
COCO_RESULTS = "predictions.coco.json"

_FRAME_COLUMNS = ("source", "frame", "time")
_ANSWER_COLUMNS = ("label", "name", "score")
_BOX_COLUMNS = ("x0", "y0", "x1", "y1")


def known_formats(names: Sequence[str]) -> tuple[str, ...]:
    """The formats that are named, each once; ``jsonl``, which is always written, is the first.

    Raises:
        UsageError: when one is unknown.
    """
    unknown = [name for name in names if name and name not in FORMATS]
    if unknown:
        raise UsageError(f"format is {unknown[0]!r}; known are {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name == "jsonl" or name in names)


def formats_in(folder: Path, model: ModelConfig) -> tuple[str, ...]:
    """The formats that a run left in ``folder`` and a model's answers can be written in."""
    try:
        files = {path.name for path in folder.iterdir()}
    except OSError:  # none there, or a name too long: who writes there tells why it cannot be
        return ()
    fitting = (("csv", TABLE), ("coco", COCO_RESULTS)) if model.task == "detect" else (("csv", TABLE),)
    return tuple(name for name, file_name in fitting if file_name in files)


def check_formats(formats: Sequence[str], model: ModelConfig, sized: bool = True) -> None:
    """Whether a model's answers can be written so.

    Args:
        formats: known ones.
        model: that will run.
        sized: whether every line of a run that is resumed has the size of its frame.

    Raises:
        UsageError: when they cannot.
    """
    if "coco" not in formats:
        return
    if model.task != "detect":
        raise UsageError(f"COCO results are of detectors, and this model's task is {model.task}; use --format csv")
    if not sized:
        raise UsageError("the run to resume has lines without the size of the frame, which COCO needs; begin it anew")


def write_formats(folder: Path, formats: Sequence[str], model: ModelConfig) -> list[Path]:
    """Make the other forms of the ``predictions.jsonl`` in ``folder``, and say which files they are.

    Args:
        folder: of the results.
        formats: known ones.
        model: that gave the answers.

    Raises:
        OutputError: when one cannot be written.
    """
    written = []
    for name, file_name, write in (("csv", TABLE, _write_table), ("coco", COCO_RESULTS, _write_coco)):
        if name in formats:
            # As in predictions.jsonl: a byte of a file name that is not UTF-8 becomes \udc..
            how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
            with atomic_path(folder / file_name) as temporary, temporary.open("w", **how) as file:
                write(file, folder / PREDICTIONS, model)
            written.append(folder / file_name)
    return written


def _lines(predictions: Path) -> Iterator[dict[str, Any]]:
    """Those of frames; the gaps of live sources have none."""
    with predictions.open(encoding="utf-8", newline="") as file:
        for line in file:
            values = json.loads(line)
            if "gap" not in values:
                yield values


def _write_table(file: TextIO, predictions: Path, model: ModelConfig) -> None:
    """A row a detection or class; a frame without any has none."""
    detects = model.task == "detect"
    table = csv.writer(file, lineterminator="\n")
    table.writerow((*_FRAME_COLUMNS, *_ANSWER_COLUMNS, *(_BOX_COLUMNS if detects else ())))
    for line in _lines(predictions):
        of_frame = [line[column] for column in _FRAME_COLUMNS]
        for answer in line["detections" if detects else "classes"]:
            table.writerow((*of_frame, *(answer[column] for column in _ANSWER_COLUMNS), *answer.get("box", ())))


def _write_coco(file: TextIO, predictions: Path, model: ModelConfig) -> None:
    """Images, categories, annotations; every list in a pass of its own, an entry a line."""
    categories = ({"id": label + 1, "name": name} for label, name in enumerate(model.class_names))
    lists = {"images": _images(predictions), "categories": categories, "annotations": _annotations(predictions)}
    for before, (name, entries) in zip(("{", ",\n", ",\n"), lists.items(), strict=True):
        file.write(f'{before}"{name}": [')
        for number, entry in enumerate(entries):
            file.write(("," if number else "") + "\n" + json.dumps(entry, ensure_ascii=False, allow_nan=False))
        file.write("\n]")
    file.write("}\n")


def _images(predictions: Path) -> Iterator[dict[str, Any]]:
    """An entry a line. A frame of a video is no file: its name is that of the video and ``#`` with its number."""
    for number, line in enumerate(_lines(predictions), start=1):
        height, width = line["size"]
        yield {
            "id": number,
            "file_name": line["source"] if line["time"] is None else f"{line['source']}#{line['frame']}",
            "width": width,
            "height": height,
            "frame": line["frame"],
            "time": line["time"],
        }


def _annotations(predictions: Path) -> Iterator[dict[str, Any]]:
    """An entry a detection. Identities begin at 1, for COCO's evaluation takes 0 for none."""
    annotation = 0
    for number, line in enumerate(_lines(predictions), start=1):
        for found in line["detections"]:
            annotation += 1
            x0, y0, x1, y1 = found["box"]
            width, height = round(x1 - x0, 2), round(y1 - y0, 2)
            yield {
                "id": annotation,
                "image_id": number,
                "category_id": found["label"] + 1,
                "bbox": [x0, y0, width, height],
                "area": round(width * height, 2),
                "score": found["score"],
                "iscrowd": 0,
            }

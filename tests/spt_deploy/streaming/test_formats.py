"""The other forms of predictions say what its lines say, and the tools that read them can."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spt_deploy.config import Task
from spt_deploy.errors import OutputError, UsageError
from spt_deploy.postprocess import Classification, Detection, Prediction
from spt_deploy.streaming.formats import check_formats, known_formats, write_formats
from spt_deploy.streaming.frames import Frame, Gap
from spt_deploy.streaming.resume import earlier_run
from spt_deploy.streaming.writers import PredictionLog
from tests.spt_deploy.streaming.support import facts_of, picture

DETECT = facts_of("detect").model
CAR = Detection((1.25, 2.5, 21.25, 32.5), 2, "blue", 0.75)
CAT = Detection((0.0, 0.0, 64.0, 48.0), 0, "red", 0.5)


def written(folder: Path, found: Sequence[tuple[str, int, float | None, Prediction]], *formats: str) -> list[Path]:
    """Those formats of these answers, of frames of 48 x 64 pixels."""
    log = PredictionLog(folder)
    for source, index, time, prediction in found:
        log.write(Frame(source, index, time, picture(0)), prediction)
    log.keep()
    task: Task = "detect" if found[0][3].detections is not None else "classify"
    return write_formats(folder, known_formats(formats), facts_of(task).model)


FOUND = [
    ("street.mp4", 7, 0.28, Prediction(detections=(CAR, CAT))),
    ("street.mp4", 8, 0.32, Prediction(detections=())),
    ("a, b/straße.png", 0, None, Prediction(detections=(CAT,))),
]


def test_the_table_has_a_row_a_detection_and_none_for_a_frame_without(tmp_path: Path) -> None:
    (path,) = written(tmp_path, FOUND, "csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert path.name == "predictions.csv"
    assert [(row["source"], row["frame"], row["time"], row["label"], row["name"], row["score"]) for row in rows] == [
        ("street.mp4", "7", "0.28", "2", "blue", "0.75"),
        ("street.mp4", "7", "0.28", "0", "red", "0.5"),
        ("a, b/straße.png", "0", "", "0", "red", "0.5"),
    ]
    assert [float(rows[0][side]) for side in ("x0", "y0", "x1", "y1")] == [1.25, 2.5, 21.25, 32.5]


def test_the_table_of_a_classifier_has_no_boxes(tmp_path: Path) -> None:
    answer = Prediction(classes=(Classification(1, "green", 0.6), Classification(0, "red", 0.4)))
    (path,) = written(tmp_path, [("a.png", 0, None, answer)], "csv")
    assert path.read_text(encoding="utf-8").splitlines() == [
        "source,frame,time,label,name,score",
        "a.png,0,,1,green,0.6",
        "a.png,0,,0,red,0.4",
    ]


def test_coco_results_stand_alone(tmp_path: Path) -> None:
    (path,) = written(tmp_path, FOUND, "coco")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "predictions.coco.json"
    assert list(content) == ["images", "categories", "annotations"]
    size = {"width": 64, "height": 48}
    assert content["images"] == [
        {"id": 1, "file_name": "street.mp4#7", **size, "frame": 7, "time": 0.28},
        {"id": 2, "file_name": "street.mp4#8", **size, "frame": 8, "time": 0.32},
        {"id": 3, "file_name": "a, b/straße.png", **size, "frame": 0, "time": None},
    ]
    assert content["categories"] == [{"id": label + 1, "name": name} for label, name in enumerate(DETECT.class_names)]
    first = {"image_id": 1, "category_id": 3, "bbox": [1.25, 2.5, 20.0, 30.0], "area": 600.0, "score": 0.75}
    assert content["annotations"][0] == {"id": 1, **first, "iscrowd": 0}
    assert [(each["id"], each["image_id"], each["category_id"]) for each in content["annotations"]] == [
        (1, 1, 3),
        (2, 1, 1),
        (3, 3, 1),
    ]


@pytest.mark.parametrize("found", [FOUND, FOUND[1:2]])
def test_the_tools_of_coco_load_the_results_and_score_them_against_themselves(tmp_path: Path, found: Any) -> None:
    coco = pytest.importorskip("faster_coco_eval", reason="an extra")
    (path,) = written(tmp_path, found, "coco")
    content = json.loads(path.read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(path))
        assert truth.getImgIds() == [each["id"] for each in content["images"]]
        assert len(truth.getAnnIds()) == len(content["annotations"])
        if content["annotations"]:
            evaluation = coco.COCOeval_faster(truth, truth.loadRes(content["annotations"]), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(1.0)


def test_a_name_that_is_not_utf8_comes_back_from_coco_as_it_was(tmp_path: Path) -> None:
    odd = [("not-utf8-\udcff.png", 0, None, Prediction(detections=(CAT,)))]
    _, path = written(tmp_path, odd, "csv", "coco")
    assert json.loads(path.read_text(encoding="utf-8"))["images"][0]["file_name"] == "not-utf8-\udcff.png"


def test_formats_are_named_in_any_order_and_the_lines_are_always_among_them() -> None:
    assert known_formats([]) == ("jsonl",)
    assert known_formats(["coco", "", "csv", "coco"]) == ("jsonl", "csv", "coco")
    with pytest.raises(UsageError, match="format is 'xml'; known are jsonl, csv, coco"):
        known_formats(["csv", "xml"])


def test_coco_is_refused_where_it_cannot_be() -> None:
    check_formats(("jsonl", "csv"), facts_of("classify").model, sized=False)
    check_formats(("jsonl", "coco"), DETECT, sized=True)
    with pytest.raises(UsageError, match="this model's task is classify; use --format csv"):
        check_formats(("jsonl", "coco"), facts_of("classify").model)
    with pytest.raises(UsageError, match="lines without the size of the frame"):
        check_formats(("jsonl", "coco"), DETECT, sized=False)


def test_the_gaps_of_live_sources_are_in_no_other_format(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.write(Frame("rtsp://cam/1", 0, 0.0, picture(0), 1.0), Prediction(detections=(CAT,)))
    log.write_gap(Gap("rtsp://cam/1", 1, 0.5, 2.0, "lost"))
    log.write(Frame("rtsp://cam/1", 1, 2.5, picture(0), 3.5), Prediction(detections=(CAT,)))
    log.keep()
    assert earlier_run(tmp_path, resume=True).sized
    table, coco = write_formats(tmp_path, ("csv", "coco"), DETECT)
    assert len(table.read_text().splitlines()) == 3
    assert [each["file_name"] for each in json.loads(coco.read_text())["images"]] == [
        "rtsp://cam/1#0",
        "rtsp://cam/1#1",
    ]


def test_a_format_that_cannot_be_written_leaves_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").mkdir()
    with pytest.raises(OutputError, match=r"predictions\.csv is a folder"):
        written(tmp_path, FOUND, "csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "predictions.jsonl"]


def test_boxes_of_any_size_have_width_and_height_to_a_hundredth(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    corners = np.sort(random.random((50, 2, 2)) * 64, axis=1).reshape(50, 4)
    found = tuple(Detection((b[0], b[1], b[2], b[3]), 0, "red", 0.5) for b in corners.tolist())
    (path,) = written(tmp_path, [("a.png", 0, None, Prediction(detections=found))], "coco")
    boxes = np.array([each["bbox"] for each in json.loads(path.read_text(encoding="utf-8"))["annotations"]])
    np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], corners[:, 2:], atol=0.0051)

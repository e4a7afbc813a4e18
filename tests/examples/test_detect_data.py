"""The data of example 02: what its README says of it is true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from tests.examples.scenes import SCRIPT, load_script

FRAMES = 80


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, made by the command itself."""
    out = tmp_path_factory.mktemp("detect") / "data"
    subprocess.run(
        [sys.executable, str(SCRIPT), str(out), "--train", "40", "--val", "6", "--frames", str(FRAMES)], check=True
    )
    return out


def annotations(data: Path, split: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((data / f"annotations/instances_{split}.json").read_text(encoding="utf-8"))
    return document


def test_every_scene_is_there_with_up_to_four_objects_and_some_have_none(data: Path) -> None:
    for split, images in (("train", 40), ("val", 6)):
        document = annotations(data, split)
        assert [entry["name"] for entry in document["categories"]] == ["cross", "disk", "ring", "square"]
        assert sorted(p.name for p in (data / split).iterdir()) == [e["file_name"] for e in document["images"]]
        assert len(document["images"]) == images
        counts = [sum(a["image_id"] == e["id"] for a in document["annotations"]) for e in document["images"]]
        assert max(counts) <= 4
        assert min(counts) == 0 or split == "val"
    assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])


def test_polygon_box_and_area_are_of_the_same_object(data: Path) -> None:
    for entry in annotations(data, "train")["annotations"]:
        x, y, width, height = entry["bbox"]
        points = np.array(entry["segmentation"][0]).reshape(-1, 2)
        # The box goes by pixels half covered, the polygon by their centres.
        assert np.abs(points.min(0) - (x, y)).max() <= 1
        assert np.abs(points.max(0) - (x + width, y + height)).max() <= 1
        assert cv2.contourArea(points.astype(np.float32)) == pytest.approx(entry["area"], rel=0.1)
        assert 0.2 < entry["area"] / (width * height) <= 1


def test_objects_hide_nothing_of_each_other_and_cover_a_twentieth(data: Path) -> None:
    shares = []
    document = annotations(data, "train")
    for image in document["images"]:
        mask = np.zeros((image["height"], image["width"]), dtype=np.int32)
        for entry in document["annotations"]:
            if entry["image_id"] == image["id"]:
                alone = np.zeros(mask.shape, dtype=np.uint8)
                cv2.fillPoly(alone, [np.array(entry["segmentation"][0]).reshape(-1, 1, 2).astype(np.int32)], (1.0,))
                mask += alone
        assert mask.max() <= 1
        shares.append(float(mask.mean()))
    assert 0.03 < np.mean(shares) < 0.08


def test_the_same_seed_gives_the_same_scene_and_another_does_not() -> None:
    make_data = load_script()
    first, again, other = (make_data.make_scene(np.random.default_rng(seed))[0] for seed in (5, 5, 6))
    assert (first == again).all()
    assert (first != other).any()


def test_the_video_has_its_frames_and_the_text_says_where_objects_are(data: Path) -> None:
    make_data = load_script()
    with av.open(str(data / "demo.mp4")) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(frames) == FRAMES
    rows = [line.split("\t") for line in (data / "demo.txt").read_text(encoding="utf-8").splitlines()]
    of_frame = [[row for row in rows if int(row[0]) == index] for index in range(FRAMES)]
    assert max(map(len, of_frame)) <= make_data.LANES
    assert any(of_frame)
    for _, shape, *box in rows:
        x0, y0, x1, y1 = map(int, box)
        assert shape in make_data.CLASSES
        assert 0 <= x0 < x1 <= make_data.VIDEO_SIZE
        assert 0 <= y0 < y1 <= make_data.VIDEO_SIZE
    # An object is more vivid than any texture, so its box has the most saturated pixels of the frame.
    seen = 0
    for frame, objects in zip(frames, of_frame, strict=True):
        saturation = cv2.cvtColor(frame, cv2.COLOR_BGR2HSV)[..., 1]
        for _, _, *box in objects:
            x0, y0, x1, y1 = map(int, box)
            if x1 - x0 > 20 and y1 - y0 > 20:
                assert saturation[y0:y1, x0:x1].max() > np.median(saturation)
                seen += 1
    assert seen


def test_objects_of_the_video_never_overlap() -> None:
    make_data = load_script()
    for _, objects in make_data.video_frames(60, seed=3):
        for index, (_, (x0, y0, x1, y1)) in enumerate(objects):
            for _, (a0, b0, a1, b1) in objects[:index]:
                assert x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0

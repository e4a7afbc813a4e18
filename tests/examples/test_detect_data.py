"""The data of example 02: what its README says of it is true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.examples.scenes import SCRIPT, load_script


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, made by the command itself."""
    out = tmp_path_factory.mktemp("detect") / "data"
    subprocess.run([sys.executable, str(SCRIPT), str(out), "--train", "40", "--val", "6"], check=True)
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

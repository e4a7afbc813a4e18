"""The data of example 01: what its README says of it is true."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples/01_first_light/make_data.py"
FRAMES = 60


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("first_light_make_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, made by the command itself."""
    out = tmp_path_factory.mktemp("first_light") / "data"
    arguments = ["--train", "10", "--val", "4", "--frames", str(FRAMES)]
    subprocess.run([sys.executable, str(SCRIPT), str(out), *arguments], check=True, capture_output=True)
    return out


def test_the_classes_share_the_images_and_every_image_has_a_box(data: Path, make_data: ModuleType) -> None:
    for split, images in (("train", 10), ("val", 4)):
        assert {folder.name for folder in (data / split).iterdir()} == set(make_data.SHAPES)
        names: list[str] = []
        for folder in (data / split).iterdir():
            rows = [line.split("\t") for line in (folder / "boxes.txt").read_text().splitlines()]
            assert sorted(row[0] for row in rows) == sorted(path.name for path in folder.glob("*.jpg"))
            names += [row[0] for row in rows]
            for row in rows:
                x0, y0, x1, y1 = map(int, row[1:])
                assert 0 <= x0 < x1 <= make_data.IMAGE_SIZE
                assert 0 <= y0 < y1 <= make_data.IMAGE_SIZE
        assert sorted(names) == [f"{index:04}.jpg" for index in range(images)]


def test_images_have_the_size_said_and_differ_between_the_splits(data: Path, make_data: ModuleType) -> None:
    train, val = (cv2.imread(str(data / split / "cross" / "0000.jpg")) for split in ("train", "val"))
    assert train is not None
    assert val is not None
    assert train.shape == val.shape == (make_data.IMAGE_SIZE, make_data.IMAGE_SIZE, 3)
    assert not np.array_equal(train, val)


def test_the_same_seed_makes_the_same_image_and_another_seed_another(make_data: ModuleType) -> None:
    first, box = make_data.make_image(np.random.default_rng(3), "ring")
    again, same_box = make_data.make_image(np.random.default_rng(3), "ring")
    other, _ = make_data.make_image(np.random.default_rng(4), "ring")
    assert np.array_equal(first, again)
    assert box == same_box
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", ["cross", "disk", "ring", "square"])
def test_an_object_lies_in_its_box_and_covers_little_of_the_image(make_data: ModuleType, shape: str) -> None:
    for seed in range(8):
        image, box = make_data.make_image(np.random.default_rng(seed), shape)
        area = (box.x1 - box.x0) * (box.y1 - box.y0) / make_data.IMAGE_SIZE**2
        assert 0.015 < area < 0.13  # a square that is turned has a box half as large again
        assert image.dtype == np.uint8


def test_a_box_is_exact_to_the_pixel(make_data: ModuleType) -> None:
    canvas = np.zeros((40, 50, 3), np.float32)
    box = make_data.draw(canvas, "disk", (20.0, 15.0), 10.0, 0.0, np.full(3, 255.0))
    assert box == (10, 5, 30, 25)
    assert make_data.draw(canvas, "disk", (-30.0, 15.0), 10.0, 0.0, np.full(3, 255.0)) is None


def test_the_video_has_every_frame_and_plays_at_its_rate(data: Path, make_data: ModuleType) -> None:
    with av.open(str(data / "demo.mp4")) as container:
        stream = container.streams.video[0]
        times = [frame.time for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
    assert times == pytest.approx([index / make_data.FRAME_RATE for index in range(FRAMES)])


def test_the_video_has_frames_with_one_object_and_frames_with_none(data: Path, make_data: ModuleType) -> None:
    rows = [line.split("\t") for line in (data / "demo.txt").read_text().splitlines()]
    frames = [int(row[0]) for row in rows]
    assert len(set(frames)) == len(frames) > FRAMES / 3
    assert set(range(FRAMES)) - set(frames)
    assert {row[1] for row in rows} <= set(make_data.SHAPES)

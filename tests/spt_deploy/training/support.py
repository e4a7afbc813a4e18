"""What the tests of training share: an image folder that any model learns in seconds, a run over it, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training.config import TrainConfig

COLOURS = {"blue": (220, 60, 40), "green": (60, 200, 60), "red": (50, 50, 220)}  # BGR
SIZE = 40  # pixels of a side of an image


def make_image_folder(folder: Path, train: int = 12, val: int = 6, boxes: bool = True, seed: int = 0) -> Path:
    """Grey images with one coloured square each, the colour being the class; ``train`` and ``val`` images a class."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            place = folder / split / name
            place.mkdir(parents=True)
            lines = []
            for index in range(count):
                image = random.integers(90, 130, (SIZE, SIZE, 3), dtype=np.uint8)
                side = int(random.integers(10, 16))
                x, y = (int(v) for v in random.integers(0, SIZE - side, 2))
                image[y : y + side, x : x + side] = colour
                cv2.imwrite(str(place / f"{index:03}.png"), image)
                lines.append(f"{index:03}.png\t{x}\t{y}\t{x + side}\t{y + side}\n")
            if boxes:
                (place / "boxes.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def tiny_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run of seconds on a CPU."""
    values: dict[str, Any] = {"model": "spt_micro", "epochs": 2, "imgsz": (64, 64), "batch": 8, "device": "cpu"}
    return TrainConfig(**({"data": data, "out": out} | values | changes))


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Of a checkpoint, by name."""
    return load_checkpoint(path).weights


def assert_same_weights(a: Path, b: Path) -> None:
    """Bit for bit."""
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

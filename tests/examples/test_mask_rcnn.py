"""What is ours in example 03, tested without torchvision."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spt_deploy.config import BackboneConfig
from spt_deploy.datasets.dataset import Record
from spt_deploy.datasets.objects import Objects
from spt_deploy.datasets.outlines import Polygons
from spt_deploy.model.backbone import Backbone
from spt_deploy.training.select_labels import select_loss

FOLDER = Path(__file__).resolve().parents[2] / "examples/03_mask_rcnn"


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    return load("spt_features")


@pytest.fixture(scope="module")
def script(adapter: ModuleType) -> ModuleType:
    sys.modules["spt_features"] = adapter  # as it is found beside the script when that is run
    module = load("train_mask_rcnn")
    del sys.modules["spt_features"]
    return module


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Pyramid(nn.Module):
    """As torchvision's: ordered dict in, ordered dict out, one channel count."""

    def __init__(self, channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in channels)

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        assert list(maps) == ["0", "1", "2", "3"]
        out = OrderedDict((k, conv(x)) for conv, (k, x) in zip(self.inner, maps.items(), strict=True))
        out["pool"] = out["3"][:, :, ::2, ::2]
        return out


class Transform(nn.Module):
    """As GeneralizedRCNNTransform: batch of padded images with their resized targets."""

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[Any, Any]:
        height, width = (max(i.shape[d] for i in images) + 31 for d in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height // 32 * 32, width // 32 * 32)
        for row, image in enumerate(images):
            batch[row, :, : image.shape[1], : image.shape[2]] = image
        return SimpleNamespace(tensors=batch), targets


def features_of(adapter: ModuleType, name: str = "spt_micro", **changes: Any) -> Any:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig.from_name(name, **changes))
    return adapter.FeaturesWithPyramid(backbone, Pyramid(adapter.channels_of(backbone), 16), 16)


@pytest.mark.parametrize(
    ("name", "changes"), [("spt_micro", {}), ("spt_micro", {"spa_stages": (2, 4)}), ("swin_micro", {})]
)
def test_the_pyramid_gets_four_maps_at_strides_4_to_32(adapter: ModuleType, name: str, changes: dict[str, Any]) -> None:
    features = features_of(adapter, name, **changes)
    maps = features(torch.randn(2, 3, 96, 64))
    assert features.out_channels == 16
    assert {k: tuple(m.shape[2:]) for k, m in maps.items()} == {
        "0": (24, 16),
        "1": (12, 8),
        "2": (6, 4),
        "3": (3, 2),
        "pool": (2, 1),
    }


def test_the_select_loss_is_that_of_the_masks_as_the_backbone_sees_them(adapter: ModuleType) -> None:
    features, transform = features_of(adapter), Transform()
    select = adapter.SelectLoss(transform, features)
    with pytest.raises(RuntimeError, match="has seen no targets"):
        select()
    images = [torch.randn(3, 64, 60), torch.randn(3, 40, 90)]
    first, second = torch.zeros(2, 64, 60, dtype=torch.uint8), torch.zeros(0, 40, 90, dtype=torch.uint8)
    first[0, 3:9, 5:20] = 1
    first[1, 50, 59] = 1
    batch, _ = transform(images, [{"masks": first}, {"masks": second}])
    features(batch.tensors)
    expected = torch.zeros(2, 64, 96, dtype=torch.uint8)
    expected[0, 3:9, 5:20] = 1
    expected[0, 50, 59] = 1
    assert torch.equal(select(), select_loss(features.found, expected, torch.tensor([True, True])))


def test_every_gate_and_every_map_learns(adapter: ModuleType) -> None:
    features, transform = features_of(adapter, gate_bias=0.0).train(), Transform()
    select = adapter.SelectLoss(transform, features)
    batch, _ = transform([torch.randn(3, 64, 64)], [{"masks": torch.ones(1, 64, 64, dtype=torch.uint8)}])
    task = sum(m.square().mean() for m in features(batch.tensors).values())
    (task + select()).backward()
    silent = [name for name, p in features.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize("flip", [False, True])
def test_a_sample_has_a_mask_for_each_object_that_is_no_crowd(script: ModuleType, tmp_path: Path, flip: bool) -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    image[:, :10] = (255, 0, 0)  # blue on the left
    cv2.imwrite(str(tmp_path / "a.png"), image)
    ring = np.array([[2, 2], [8, 2], [8, 12], [2, 12]], dtype=np.float32)
    objects = Objects(
        boxes=np.array([[2, 2, 8, 12], [20, 5, 25, 10], [0, 0, 30, 20]], dtype=np.float32),
        labels=np.array([1, 0, 0]),
        crowd=np.array([False, False, True]),
        areas=np.array([60.0, 25.0, 600.0]),
        outlines=(Polygons((ring,)), None, None),
    )
    pixels, target = script.sample_of(Record(tmp_path / "a.png", objects=objects), flip=flip)
    assert pixels.shape == (3, 20, 30)
    assert pixels.dtype == torch.float32
    assert pixels[:, 0, -1 if flip else 0].tolist() == [0.0, 0.0, 1.0]  # RGB
    assert target["labels"].tolist() == [2, 1]  # 0 is the background
    assert target["masks"].shape == (2, 20, 30)
    for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box
    assert target["boxes"][0].tolist() == ([22, 2, 28, 12] if flip else [2, 2, 8, 12])


def test_without_torchvision_the_script_says_so_in_one_sentence(tmp_path: Path) -> None:
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is here")
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / split).mkdir()
        cv2.imwrite(str(folder / split / "a.png"), np.zeros((40, 40, 3), dtype=np.uint8))
        document = {
            "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 40}],
            "categories": [{"id": 1, "name": "x"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
        }
        (folder / f"annotations/{split}.json").write_text(json.dumps(document), encoding="utf-8")
    command = [sys.executable, str(FOLDER / "train_mask_rcnn.py"), str(folder), "--model", "spt_micro"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: this example needs a torchvision that matches torch")
    assert done.stderr.count("\n") == 1

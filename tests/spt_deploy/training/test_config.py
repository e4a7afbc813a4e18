"""Training configurations check themselves and survive JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spt_deploy.errors import UsageError
from spt_deploy.training.config import TrainConfig

PATHS = {"data": Path("data"), "out": Path("runs/x")}


def test_a_configuration_survives_json() -> None:
    config = TrainConfig(**PATHS, init=Path("a.pt"), imgsz=(64, 96), drop_path=0.1)  # type: ignore[arg-type]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"alpha": -1.0},
        {"threshold": 1.0},
        {"warmup": 1.0},
        {"label_smoothing": -0.1},
        {"max_broken": 1.5},
        {"workers": -1},
        {"seed": -1},
        {"imgsz": (10, 10)},
        {"model": "spt_x"},
        {"task": "segment"},
        {"device": "tpu"},
        {"drop_path": 1.0},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_with_its_name_or_value(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**PATHS, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("imgsz", [64, (64,), (64, 64, 3), ("a", "b"), None])
def test_a_size_that_is_no_pair_is_one_sentence(imgsz: Any) -> None:
    with pytest.raises(UsageError, match=r"imgsz is .*; expected \(height, width\) in pixels"):
        TrainConfig(**PATHS, imgsz=imgsz)  # type: ignore[arg-type]


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(UsageError, match="'colour'"):
        TrainConfig.from_dict({"data": "a", "out": "b", "colour": 1})


def test_a_resumption_may_move_but_not_learn_otherwise() -> None:
    begun = TrainConfig(**PATHS)  # type: ignore[arg-type]
    assert TrainConfig(data=Path("elsewhere"), out=Path("y"), device="cpu", workers=3).differences(begun) == []
    assert TrainConfig(**PATHS, lr=0.1).differences(begun) == ["lr is 0.1, was 0.0005"]  # type: ignore[arg-type]

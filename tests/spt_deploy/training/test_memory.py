"""Short memory is told with a batch that makes the same steps in less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spt_deploy.errors import ResultError
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.memory import told_what_needs_less


@pytest.mark.parametrize(
    ("batch", "accumulate", "remedy"),
    [
        (16, 1, "16 images of 480x640 pixels at a time: --batch 8 --accumulate 2 "),
        (15, 2, "15 images of 480x640 pixels at a time: --batch 5 --accumulate 6 "),
        (7, 1, "7 images of 480x640 pixels at a time: --batch 1 --accumulate 7 "),
        (1, 4, "1 image of 480x640 pixels at a time: a smaller --imgsz or --model "),
    ],
)
def test_short_memory_names_device_model_and_a_batch_that_takes_the_same_steps(
    batch: int, accumulate: int, remedy: str
) -> None:
    config = TrainConfig(data=Path("d"), out=Path("o"), imgsz=(480, 640), batch=batch, accumulate=accumulate)
    with (
        pytest.raises(ResultError, match=f"memory of cpu is too small for {config.model} and {remedy}.*allocate"),
        told_what_needs_less(config, torch.device("cpu")),
    ):
        torch.empty(1 << 55)


def test_the_class_that_gpus_raise_is_understood() -> None:
    with (
        pytest.raises(ResultError, match=r"memory of cuda:1 .*\(CUDA out of memory\. Tried to allocate 1 GiB\.\)"),
        told_what_needs_less(TrainConfig(data=Path("d"), out=Path("o")), torch.device("cuda", 1)),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nmore")


def test_another_error_is_raised_as_it_is() -> None:
    with (
        pytest.raises(RuntimeError, match=r"^the size of tensor a"),
        told_what_needs_less(TrainConfig(data=Path("d"), out=Path("o")), torch.device("cpu")),
    ):
        raise RuntimeError("the size of tensor a")

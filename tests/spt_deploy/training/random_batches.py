"""Batches of noise with random objects, some images without labels of where they are."""

from __future__ import annotations

from pathlib import Path

import torch

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.datasets.dataset import DataSet
from spt_deploy.model.network import SptModel
from spt_deploy.training.gradient import LossModule
from spt_deploy.training.loader import Batch, collate
from spt_deploy.training.precision import MixedPrecision
from spt_deploy.training.samples import Sample
from spt_deploy.training.tasks import Classify
from tests.spt_deploy.training.support import tiny_config

SIZE = 64


def random_sample(number: int, has_mask: bool) -> Sample:
    """Sample ``number``, the same in every process."""
    random = torch.Generator().manual_seed(number)
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    y, x = (int(v) for v in torch.randint(0, SIZE - 20, (2,), generator=random))
    mask[y : y + 20, x : x + 20] = 1
    return Sample(
        path=Path(f"{number}.png"),
        image_id=number,
        image=torch.randn(3, SIZE, SIZE, generator=random),
        source_size=(SIZE, SIZE),
        label=number % 3,
        targets=torch.zeros(3),
        boxes=torch.zeros(0, 4),
        box_labels=torch.zeros(0, dtype=torch.int64),
        crowd=torch.zeros(0, dtype=torch.bool),
        mask=mask if has_mask else None,
    )


def batch_of(numbers: range) -> Batch:
    """The samples of these numbers; every third has no label of where its objects are."""
    return collate([random_sample(n, has_mask=n % 3 != 1) for n in numbers])


def losses_of(model: SptModel, touch: bool = False) -> LossModule:
    """``model`` with the losses of a classifier of three classes."""
    config = tiny_config(Path("data"), Path("run"))
    task = Classify(config, DataSet(("a", "b", "c"), (), ()))
    return LossModule(model, task, MixedPrecision(torch.device("cpu")), select_from_labels=False, touch=touch)


def model_without_noise(gate_bias: float = 0.0) -> SptModel:
    """A model whose gradient is the mean of its images' own: evaluating, each image in containers of its own."""
    torch.manual_seed(0)
    backbone = BackboneConfig.from_name("spt_micro", packing="per-image", threshold=0.5, gate_bias=gate_bias)
    return SptModel(ModelConfig(backbone, "classify", ("a", "b", "c"))).eval()

"""Each task learns: what its loss lowers is what its meter measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spt_deploy.config import TASKS as TASK_NAMES
from spt_deploy.config import ModelConfig, Task
from spt_deploy.datasets.dataset import DataSet
from spt_deploy.datasets.formats import read_data
from spt_deploy.datasets.objects import Objects
from spt_deploy.errors import InputError
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.loader import Loader
from spt_deploy.training.samples import Samples
from spt_deploy.training.tasks import TASKS, make_task
from tests.examples.scenes import load_script

LR = 1e-3
SIZE = 96  # pixels; the smallest at which objects are larger than the finest stride


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for split, images in (("train", 16), ("val", 4)):
        load_script().write_split(folder, split, images, seed=0, size=SIZE)
    return folder


def prepare(folder: Path, task: Task) -> tuple[TrainConfig, DataSet, SptModel, Loader]:
    """A run on the training images, which are measured on too: learning them by heart is what is asked."""
    data = read_data(folder)
    data = DataSet(data.class_names, data.train, data.train)
    config = TrainConfig(folder, folder / "run", task=task, model="spt_micro", imgsz=(SIZE, SIZE))
    torch.manual_seed(0)
    model = SptModel(ModelConfig(config.backbone(), task, data.class_names))
    samples = Samples(data.train, Preprocessing.for_task(task, config.imgsz), classes=len(data.class_names))
    return config, data, model, Loader(samples, 8, shuffle_seed=0)


def test_every_task_of_the_configuration_can_be_trained() -> None:
    assert set(TASKS) == set(TASK_NAMES)


def test_one_class_alone_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "data").mkdir(parents=True)  # as FiftyOne calls the folder of a split's images
        (tmp_path / split / "data/0.jpg").touch()
    config = TrainConfig(tmp_path, tmp_path / "run", model="spt_micro")
    with pytest.raises(InputError, match=r"the only class is data, .* of two or more"):
        make_task(config, read_data(tmp_path, "classify"))


@pytest.mark.parametrize(("name", "epochs", "at_least"), [("multilabel", 12, 0.8), ("detect", 30, 0.5)])
def test_a_few_dozen_steps_teach_the_training_images(scenes: Path, name: Task, epochs: int, at_least: float) -> None:
    config, data, model, loader = prepare(scenes, name)
    task = make_task(config, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, epochs * len(loader), pct_start=0.1)
    model.train()
    for epoch in range(1, epochs + 1):
        for batch in loader.epoch(epoch):
            loss = task.loss(task.run(model, batch), batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    model.eval()
    meter = task.meter()
    with torch.no_grad():
        for batch in loader.epoch(0):
            meter.update(task.run(model, batch), batch)
    assert meter.result()[task.metric] > at_least


@torch.no_grad()
def test_a_detector_evaluates_to_what_it_is_deployed_as(scenes: Path) -> None:
    config, data, model, loader = prepare(scenes, "detect")
    task, batch = make_task(config, data), next(iter(loader.epoch(0)))
    model.eval()
    deployed, evaluated = model(batch.images), task.run(model, batch)
    for name, tensor in deployed.task.items():
        assert torch.equal(evaluated.task[name], tensor)
    assert task.loss(evaluated, batch).isfinite()
    model.train()
    assert "boxes" not in task.run(model, batch).task  # ranking costs, and nobody looks


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_forced_selection_reaches_the_backbone(scenes: Path, name: Task) -> None:
    config, data, model, loader = prepare(scenes, name)
    batch = next(iter(loader.epoch(0)))
    kept = make_task(config, data).run(model, batch).features.kept
    forced = [torch.zeros_like(k) for k in kept]
    output = make_task(config, data).run(model, batch, forced)
    assert not any(k.any() for k in output.features.kept)


@pytest.mark.parametrize(("name", "lacks"), [("multilabel", "classes"), ("detect", "objects")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_with_nothing_to_find_is_named_before_the_first_epoch(
    scenes: Path, name: Task, lacks: str, split: str
) -> None:
    config, data, _, _ = prepare(scenes, name)
    crowd = Objects.from_boxes([[1, 1, 9, 9]], 0, [True])
    empty = tuple(replace(r, labels=(), objects=crowd) for r in data.train)
    with pytest.raises(InputError, match=f"none of the {split}.* images has {lacks}"):
        make_task(config, replace(data, **{split: empty}))

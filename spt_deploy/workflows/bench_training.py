"""``spt-deploy bench --training``: what a step of training costs, forward and backward and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spt_deploy.config import ModelConfig
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.datasets.objects import Objects
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.model.shapes import stage_sizes
from spt_deploy.runtimes.torch_runner import torch_device
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.loader import Batch
from spt_deploy.training.optimizer import make_optimizer
from spt_deploy.training.precision import MixedPrecision
from spt_deploy.training.select_labels import select_loss
from spt_deploy.training.stages import learning
from spt_deploy.training.tasks import make_task
from spt_deploy.workflows.bench_work import forced_mask, gmacs, one_size


@dataclass(frozen=True)
class TrainingStep:
    """A step of a checkpoint's training that can be repeated; it goes on learning from the same random batch.

    Attributes:
        name: of the checkpoint and its device.
        config: of the model.
        size: height and width of the input in pixels.
        device: it runs on.
        run: one step: loss, select loss, gradient, clipping, AdamW. Takes masks, B x N bool for each SPA block, in
            place of the selection, or None; gives the loss before the update, a scalar on the device.
    """

    name: str
    config: ModelConfig
    size: tuple[int, int]
    device: torch.device
    run: Callable[[Sequence[Tensor] | None], Tensor]

    def tokens(self) -> list[int]:
        """Tokens of each SPA block in order."""
        sizes = stage_sizes(self.size)
        stages = [int(name.split(".")[0]) for name in self.config.backbone.spa_blocks]
        return [sizes[stage - 1][0] * sizes[stage - 1][1] for stage in stages]


def training_contenders(
    paths: Sequence[Path], batch: int, ratios: Sequence[float], device: str
) -> tuple[dict[str, Callable[[], object]], dict[str, tuple[float | None, float]]]:
    """Steps of training by name, and the select ratio and GMACs of an image of each.

    The GMACs are those of the forward pass; the backward pass has twice as many.

    Args:
        paths: checkpoints.
        batch: images a step.
        ratios: shares of kept tokens to force on models with SPA blocks.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ArtefactError: when a file is no checkpoint.
        InputError: when the models take images of different sizes.
        RuntimeMissingError: when there is no such device.
    """
    steps = [training_step(path, batch, torch_device(device)) for path in paths]
    one_size([step.size for step in steps])
    runs: dict[str, Callable[[], object]] = {}
    about: dict[str, tuple[float | None, float]] = {}
    for step in steps:
        tokens = step.tokens()
        if not tokens:
            runs[step.name] = lambda step=step: step.run(None)  # type: ignore[misc]
            about[step.name] = (None, gmacs(step.config, step.size, ()))
        for ratio in ratios if tokens else ():
            masks = [forced_mask(batch, count, ratio) for count in tokens]
            exact = [float(mask.mean()) for mask in masks]
            forced = [torch.from_numpy(mask).to(step.device) for mask in masks]
            name = f"{step.name}, {ratio:.0%} kept"
            runs[name] = lambda step=step, forced=forced: step.run(forced)  # type: ignore[misc]
            about[name] = (float(np.mean(exact)), gmacs(step.config, step.size, exact))
    return runs, about


def training_step(path: Path, batch: int, device: torch.device) -> TrainingStep:
    """The step of a checkpoint, as ``spt-deploy train`` takes it with default options, on one random batch.

    Args:
        path: checkpoint.
        batch: images a step.
        device: it runs on.

    Raises:
        ArtefactError: when the file is no checkpoint.
    """
    checkpoint = load_checkpoint(path)
    facts = checkpoint.facts
    size, classes = facts.preprocessing.size, len(facts.model.class_names)
    model = checkpoint.build().to(device).train()
    config = TrainConfig(Path(), Path(), task=facts.model.task, imgsz=size, batch=batch)
    whole = [0.0, 0.0, float(size[1]), float(size[0])]
    record = Record(path, 0, (0,), Objects.from_boxes([whole], 0))
    task = make_task(config, DataSet(facts.model.class_names, (record,), (record,)))
    optimizer, precision = make_optimizer(model, config), MixedPrecision(device)
    data = _random_batch(batch, size, classes).to(device)
    sizes = stage_sizes(size)
    stages = [int(name.split(".")[0]) for name in facts.model.backbone.spa_blocks]

    def run(masks: Sequence[Tensor] | None) -> Tensor:
        forced = None
        if masks is not None:
            forced = [mask.view(batch, *sizes[stage - 1]) for mask, stage in zip(masks, stages, strict=True)]
        with precision.autocast():
            output = task.run(model, data, forced)
            loss = task.loss(output, data) + config.alpha * select_loss(output.features, data.masks, data.has_mask)
        precision.backward(loss)
        precision.step(learning(model), optimizer, config.clip)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return loss.detach()

    return TrainingStep(f"{path.name} (training, torch {device.type})", facts.model, size, device, run)


def _random_batch(images: int, size: tuple[int, int], classes: int) -> Batch:
    """Noise, a class each, and an object in the middle quarter of each image."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    box = torch.tensor([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]])
    labels = torch.randint(classes, (images,), generator=generator)
    masks = torch.zeros(images, height, width, dtype=torch.uint8)
    masks[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 1
    return Batch(
        paths=(Path("random"),) * images,
        image_ids=tuple(range(images)),
        source_sizes=(size,) * images,
        images=torch.randn(images, 3, height, width, generator=generator),
        labels=labels,
        targets=F.one_hot(labels, classes).float(),
        boxes=(box,) * images,
        box_labels=tuple(label[None] for label in labels),
        crowd=(torch.zeros(1, dtype=torch.bool),) * images,
        masks=masks,
        has_mask=torch.ones(images, dtype=torch.bool),
    )

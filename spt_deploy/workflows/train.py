"""Train an SPT: a data set in, a folder with the best checkpoint out."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spt_deploy.config import ModelConfig
from spt_deploy.datasets.dataset import Broken, DataSet
from spt_deploy.datasets.formats import read_data
from spt_deploy.errors import UsageError
from spt_deploy.interrupt import stop_on_signals
from spt_deploy.model.checkpoint import Checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes.base import usable_cores
from spt_deploy.training.augment import Augmentation
from spt_deploy.training.claim import only_run_in
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.initial import load_initial
from spt_deploy.training.loader import Loader
from spt_deploy.training.loop import Interrupted, Trainer
from spt_deploy.training.memory import told_what_needs_less
from spt_deploy.training.presentation import Presentation
from spt_deploy.training.ranks import Ranks, device_of_rank, join_ranks
from spt_deploy.training.report import Reports
from spt_deploy.training.run_folder import Progress, RunFolder, random_state, restore, set_seed
from spt_deploy.training.samples import CACHE_BYTES, Samples
from spt_deploy.training.tasks import make_task
from spt_deploy.wording import counted

_MOST_WORKERS = 8  # more seldom help one GPU
_SEED_STEP = 1_000_003  # between the seeds of two processes: no run with a neighbouring seed draws the same


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        out: folder of the run.
        best: checkpoint of the best epoch; None when no epoch was finished.
        metric: name of the metric that chose it.
        record: of that epoch, as in ``metrics.jsonl``; None when no epoch was finished.
        epochs: whole epochs done, of all resumptions together.
        interrupted: whether a signal ended the run before its last epoch.
        broken: images left out, with the reason.
    """

    out: Path
    best: Path | None
    metric: str
    record: dict[str, Any] | None
    epochs: int
    interrupted: bool
    broken: dict[Path, str]


def train(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, reports: Reports | None = None
) -> TrainResult:
    """Train, and leave in ``config.out`` what `run_folder.py` and `presentation.py` write: read ``report.md`` first.

    The first SIGINT or SIGTERM ends the run after the step in hand; ``last.pt`` then is that of the last whole epoch.
    Under ``torchrun`` every process calls this with the same arguments; the main one writes and reports.

    Args:
        config: of the run; of a resumed one as it was, but for data, device, workers and compile.
        resume: go on from ``last.pt`` exactly as the run would have gone on.
        overwrite: replace a run that is in ``config.out`` already.
        reports: takes what people read meanwhile; None keeps quiet.

    Raises:
        UsageError: when an argument cannot be meant or differs from the run that is resumed, or another run trains in
            ``config.out``.
        InputError: when the data set or the checkpoint cannot be used.
        ResultError: when the loss is no finite number, or another process of the run has ended.
        RuntimeMissingError: when the device is not there, or the model cannot be compiled.
        OutputError: when the folder cannot be written.
    """
    device = device_of_rank(config.device)
    with join_ranks(device) as ranks:
        reports = reports if reports is not None and ranks.is_main else Reports()
        # A free name for the folder is the main process's to choose: the others may look when it is there already.
        config = replace(config, out=ranks.of_main(config.out))
        with only_run_in(config.out) if ranks.is_main else nullcontext():
            return _train(config, device, ranks, reports, resume=resume, overwrite=overwrite)


def _train(
    config: TrainConfig, device: torch.device, ranks: Ranks, reports: Reports, *, resume: bool, overwrite: bool
) -> TrainResult:
    folder = RunFolder(config.out)
    checkpoint = _resumed(folder, config) if resume else None
    data = read_data(config.data, config.task, config.format, max_broken=config.max_broken)
    for line in (data.found, *(f"left out: {b.reason}" for b in data.broken)):
        reports.say(line)
    task = make_task(config, data)
    task.meter()  # what it needs is missing now, and not after the first epoch
    _check_labels(config, data)
    model_config = ModelConfig(config.backbone(), config.task, data.class_names)
    preprocessing = Preprocessing.for_task(config.task, config.imgsz)
    if checkpoint is not None:
        _check_resumed(config, data, model_config, checkpoint)
    set_seed(config.seed)
    model = SptModel(model_config)
    if checkpoint is None and config.init is not None:
        for note in load_initial(model, config.init):
            reports.say(note)
    model.to(device)
    train_loader, val_loader = _loaders(config, data, preprocessing, device, ranks, reports)
    _say_what(reports, config, data, model, device, ranks)
    if ranks.is_main:
        if checkpoint is None:
            folder.begin(config, data.class_names, {"train": len(data.train), "val": len(data.val)}, overwrite)
        folder.remove_leftovers()
    if not ranks.is_alone:
        # Every process has made the same weights; from here on each draws noise of its own for images of its own.
        set_seed(config.seed + ranks.rank * _SEED_STEP)
    with stop_on_signals() as stop:
        trainer = Trainer(
            config,
            model,
            task,
            train_loader,
            val_loader,
            device,
            alpha=config.alpha if data.has_objects else 0.0,
            reports=reports,
            stop=stop,
            ranks=ranks,
        )
        progress = Progress() if checkpoint is None else restore(trainer, checkpoint, folder.last)
        progress.data = data.identity()
        if ranks.is_main and progress.best is not None and progress.best["epoch"] == progress.epoch:
            folder.save_best(trainer, preprocessing, progress.best)  # killed, it may have come no further
        if progress.epoch >= config.epochs:
            done = f"epoch {progress.epoch} of {config.epochs}"
            reports.say(f"the run in {config.out} is finished, {done}; there is nothing left to do")
        presentation = Presentation(folder, trainer, data, reports)
        interrupted = False
        try:
            with told_what_needs_less(config, device):
                _run(trainer, folder, preprocessing, progress, presentation, reports)
        except Interrupted:
            interrupted = True
        if ranks.is_main:
            presentation.update(progress)
    broken: dict[Path, str] = {}
    for of_rank in ranks.gather(train_loader.broken | val_loader.broken):
        broken |= {path: b.reason for path, b in of_rank.items()}
    return TrainResult(
        out=config.out,
        best=folder.best if progress.best else None,
        metric=task.metric,
        record=progress.best,
        epochs=progress.epoch,
        interrupted=interrupted,
        broken=broken,
    )


def resumed_config(out: Path, changes: dict[str, Any]) -> TrainConfig:
    """What the run in ``out`` was told, with ``changes`` to what may change.

    Raises:
        InputError: when there is no run in ``out``.
        UsageError: when a change is out of range.
    """
    _, begun = RunFolder(out).load_last()
    return replace(begun, **(changes | {"out": out}))


def _run(
    trainer: Trainer,
    folder: RunFolder,
    preprocessing: Preprocessing,
    progress: Progress,
    presentation: Presentation,
    reports: Reports,
) -> None:
    """All epochs that are left, a checkpoint after each."""
    metric = trainer.task.metric
    for epoch in range(progress.epoch + 1, trainer.config.epochs + 1):
        start = time.perf_counter()
        record: dict[str, Any] = {"epoch": epoch, "train": trainer.train_epoch(epoch), "val": trainer.evaluate()}
        record["seconds"] = time.perf_counter() - start
        progress.history.append(record)
        is_best = progress.best is None or standing(record, metric) > standing(progress.best, metric)
        if is_best:
            progress.best = record
        random = trainer.ranks.gather(random_state())
        if trainer.ranks.is_main:
            folder.save_last(trainer, preprocessing, progress, random)
            if is_best:
                folder.save_best(trainer, preprocessing, record)
            presentation.update_now_and_then(progress)
        reports.say(_epoch_text(record, metric, trainer.config.epochs, is_best))


def standing(record: dict[str, Any], metric: str) -> tuple[float, float]:
    """What epochs are ranked by: the task's metric, and where that ties, the fewer tokens kept the better."""
    ratios = record["val"]["select_ratio"].values()
    return record["val"][metric], -sum(ratios) / max(1, len(ratios))


def _resumed(folder: RunFolder, config: TrainConfig) -> Checkpoint:
    checkpoint, begun = folder.load_last()
    differences = config.differences(begun)
    if differences:
        raise UsageError(
            f"the run in {folder.folder} was begun with other options ({'; '.join(differences)}); leave them out, "
            "or begin a new run"
        )
    return checkpoint


def _check_resumed(config: TrainConfig, data: DataSet, model: ModelConfig, checkpoint: Checkpoint) -> None:
    if checkpoint.facts.model != model:
        raise UsageError(
            f"{config.data} has the classes {', '.join(data.class_names)}, the run was begun with "
            f"{', '.join(checkpoint.facts.model.class_names)}; resume it on the data it was begun with"
        )
    now, begun = data.identity(), checkpoint.training.get("data")
    if begun and begun != now:
        is_as_large = all(begun[split] == now[split] for split in data.splits)
        raise UsageError(
            f"{config.data} has {now['train']} training and {now['val']} validation images, the run was begun with "
            f"{begun['train']} and {begun['val']}{', of other names or annotations' if is_as_large else ''}; resume it "
            f"on the data it was begun with, or begin a new run from its weights (--init {config.out / 'best.pt'})"
        )


def _check_labels(config: TrainConfig, data: DataSet) -> None:
    if config.select_from_labels and not data.has_objects:
        raise UsageError(
            f"--select-from-labels needs to know where objects lie, and {config.data} has neither boxes nor masks; "
            "add them, or leave the option out"
        )


def _loaders(
    config: TrainConfig,
    data: DataSet,
    preprocessing: Preprocessing,
    device: torch.device,
    ranks: Ranks,
    reports: Reports,
) -> tuple[Loader, Loader]:
    workers = config.workers
    if workers is None:
        # A GPU waits for images; on a CPU workers would only take cores from the model.
        workers = min(_MOST_WORKERS, usable_cores() - 1) if device.type == "cuda" else 0
    cache = CACHE_BYTES // (2 * max(1, workers))  # two splits, each in every worker
    both: dict[str, Any] = {"classes": len(data.class_names), "cache_bytes": cache}
    augmentation = Augmentation.for_task(config.task, config.flip, config.mosaic)
    train = Samples(data.train, preprocessing, augment_seed=config.seed, augmentation=augmentation, **both)
    val = Samples(data.val, preprocessing, **both)

    def on_broken(broken: Broken) -> None:
        reports.say(f"left out: {broken.reason}")

    common: dict[str, Any] = {
        "rank": ranks.rank,
        "world": ranks.world,
        "workers": workers,
        "pin_memory": device.type == "cuda",
        "max_broken": config.max_broken,
        "on_broken": on_broken,
    }
    return Loader(train, config.batch, shuffle_seed=config.seed, **common), Loader(val, config.batch, **common)


def _say_what(
    reports: Reports, config: TrainConfig, data: DataSet, model: SptModel, device: torch.device, ranks: Ranks
) -> None:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    processes = "" if ranks.is_alone else f" in {ranks.world} processes"
    step = config.batch * config.accumulate * ranks.world
    reports.say(
        f"{config.model} ({millions:.1f} M parameters) on {device.type}{processes}, "
        f"{counted(len(data.class_names), 'class', 'classes')}, "
        f"{len(data.train)} training and {counted(len(data.val), 'validation image')}, "
        f"{config.imgsz[0]}x{config.imgsz[1]} pixels, {counted(step, 'image')} a step"
    )
    if data.in_both:
        images = counted(data.in_both, "validation image is", "validation images are")
        reports.say(f"{images} in the training split, too: metrics will not tell what the model makes of others")
    if not data.has_objects and config.alpha and model.config.backbone.spa_stages:
        reports.say(
            f"{config.data} does not say where objects lie (no boxes, no masks): no select labels, "
            "so the select loss is off (alpha 0)"
        )


def _epoch_text(record: dict[str, Any], metric: str, epochs: int, is_best: bool) -> str:
    training, val = record["train"], record["val"]
    parts = [
        f"loss {training['loss']:.3f} (select {training['select_loss']:.3f})",
        f"{metric} {100 * val[metric]:.1f} %",
    ]
    ratios = val["select_ratio"].values()
    if ratios:
        parts.append(f"kept {100 * sum(ratios) / len(ratios):.0f} % of tokens")
    if val["object_ratio"]:
        parts.append("objects " + ", ".join(f"{100 * v:.0f} % ({k})" for k, v in val["object_ratio"].items()))
    parts.append(f"{training['images_per_second']:.0f} images/s")
    return f"epoch {record['epoch']}/{epochs}: {', '.join(parts)}{', best so far' if is_best else ''}"


__all__ = ["TrainConfig", "TrainResult", "resumed_config", "train"]

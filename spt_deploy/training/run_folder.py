"""The folder of a run: ``last.pt`` to go on from, ``best.pt`` to use, ``metrics.jsonl`` and ``config.json`` to read.

What is made of these for people, ``report.md`` and its pictures, is written by `presentation.py`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spt_deploy.atomic import finite, remove_leftovers, write_json, write_text
from spt_deploy.errors import ArtefactError, InputError, UsageError
from spt_deploy.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.claim import RUNS
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.loop import NOT_FINITE_LIST, Trainer
from spt_deploy.version import __version__


@dataclass
class Progress:
    """How far a run is: everything between two epochs that is neither weight nor optimiser.

    Attributes:
        history: a record an epoch, as in ``metrics.jsonl``.
        best: the record of the best epoch so far; None before the first.
        data: ``DataSet.identity`` of what it learns from.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return len(self.history)


class RunFolder:
    """Files of one run by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last = folder / "last.pt"
        self.best = folder / "best.pt"
        self.metrics = folder / "metrics.jsonl"
        self.config = folder / "config.json"
        self.curves = folder / "curves.png"
        self.samples = folder / "samples"
        self.report = folder / "report.md"

    def begin(self, config: TrainConfig, class_names: tuple[str, ...], images: dict[str, int], overwrite: bool) -> None:
        """Make the folder and write ``config.json``.

        Raises:
            UsageError: when a run is there already and must not be overwritten.
            OutputError: when the folder cannot be written.
        """
        old = [path for path in (self.last, self.best, self.metrics) if path.exists()]
        if old and not overwrite:
            go_on = "go on with it (--resume), " if self.last in old else ""  # not one that was killed before
            raise UsageError(
                f"{self.folder} holds a run already ({', '.join(p.name for p in old)}); {go_on}"
                "replace it (--overwrite) or choose another --out"
            )
        write_json(
            self.config,
            {"config": config.to_dict(), "class_names": class_names, "images": images}
            | {"tool_version": __version__, "torch_version": torch.__version__},
        )
        for path in (*old, self.curves, self.report, *self.samples.glob("*.jpg")):
            path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what an earlier process has left: halves of files, if it was killed, and the list of its bad batch."""
        for path in (self.last, self.best, self.metrics, self.config, self.curves, self.report):
            remove_leftovers(path)
        (self.folder / NOT_FINITE_LIST).unlink(missing_ok=True)

    def save_best(self, trainer: Trainer, preprocessing: Preprocessing, record: dict[str, Any]) -> None:
        """Write ``best.pt``: weights, and of the trainer only what ``record`` measured."""
        training = {"epoch": record["epoch"], "metrics": record["val"], "select_ratio": record["val"]["select_ratio"]}
        save_checkpoint(self.best, trainer.evaluated, preprocessing, training)

    def save_last(
        self, trainer: Trainer, preprocessing: Preprocessing, progress: Progress, random: list[dict[str, Any]]
    ) -> None:
        """Write ``metrics.jsonl``, then ``last.pt`` with everything needed to go on.

        In this order, and ``best.pt`` after both: a run that was killed in between writes anew what lacks the epoch of
        ``last.pt``, or is ahead of it.

        Args:
            trainer: between two epochs.
            preprocessing: of the model.
            progress: after the epoch.
            random: ``random_state`` of every process of the run.
        """
        training = {
            "config": trainer.config.to_dict(),
            "history": progress.history,
            "best": progress.best,
            "data": progress.data,
            "step": trainer.step,
            # The checkpoint's own weights are those that were measured; these are the ones that learn.
            "weights": None if trainer.average is None else trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "precision": trainer.precision.state_dict(),
            "random": random,
        }
        write_text(
            self.metrics, "".join(json.dumps(finite(record), allow_nan=False) + "\n" for record in progress.history)
        )
        save_checkpoint(self.last, trainer.evaluated, preprocessing, training)

    def load_last(self) -> tuple[Checkpoint, TrainConfig]:
        """``last.pt``, and what its run was told.

        Raises:
            InputError: when there is none.
            ArtefactError: when it is damaged or no checkpoint of a run.
        """
        if not self.last.is_file():
            raise InputError(f"{self.folder} holds no last.pt to go on from; train without --resume")
        checkpoint = load_checkpoint(self.last)
        try:
            return checkpoint, TrainConfig.from_dict(checkpoint.training["config"])
        except (KeyError, TypeError, UsageError) as error:
            raise ArtefactError(f"{self.last} holds no state of a training run to go on from ({error})") from error


def restore(trainer: Trainer, checkpoint: Checkpoint, where: Path) -> Progress:
    """Put a run's state back: weights, their average, optimiser, random numbers.

    Raises:
        UsageError: when the run was begun with another number of processes.
        ArtefactError: when the state does not fit.
    """
    state, ranks = checkpoint.training, trainer.ranks
    try:
        random = state["random"]
        if len(random) != ranks.world:
            raise UsageError(
                f"the run was begun with {len(random)} processes and is resumed with {ranks.world}; "
                f"start {len(random)}, so that every step sees the images that it would have seen"
            )
        trainer.model.load_state_dict(checkpoint.weights if state["weights"] is None else state["weights"])
        if trainer.average is not None:
            trainer.average.load_state_dict(checkpoint.weights)
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.precision.load_state_dict(state["precision"])
        trainer.step = int(state["step"])
        set_random_state(random[ranks.rank])
        return Progress(list(state["history"]), state["best"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(f"{where} holds a training state that does not fit its model ({error})") from error


def random_state() -> dict[str, Any]:
    """State of every global generator, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)  # the stubs leave it open
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of ``random_state``; generators of GPUs that are not here are left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, next_gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, next_gauss))
    torch.set_rng_state(state["torch"])
    for device, of_device in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(of_device, device)


def set_seed(seed: int) -> None:
    """Start every global generator from ``seed``, taken modulo 2**32."""
    seed %= 2**32  # more than NumPy takes
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def newest_run_folder() -> Path:
    """The folder under ``runs/`` whose ``last.pt`` is the newest.

    Raises:
        InputError: when there is none.
    """
    found = sorted(RUNS.rglob("last.pt"), key=lambda p: (p.stat().st_mtime, str(p)))
    if not found:
        raise InputError(f"there is no run to go on with under {RUNS}/ (looked for last.pt); name one with --out")
    return found[-1].parent

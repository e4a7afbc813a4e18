"""What a run shows people: curves, sample pictures and the report, written from what it has done so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spt_deploy.atomic import write_text
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training.curves import draw_curves
from spt_deploy.training.loop import Trainer
from spt_deploy.training.report import Reports
from spt_deploy.training.run_folder import Progress, RunFolder
from spt_deploy.training.run_report import RunFacts, chance_level, describe_device, report_text
from spt_deploy.training.sample_pictures import write_samples

INTERVAL_S = 60.0  # between two presentations of a run that goes on: drawing takes a second or two


class Presentation:
    """Writes ``curves.png``, ``samples/`` and ``report.md`` of one run, on the main process."""

    def __init__(self, folder: RunFolder, trainer: Trainer, data: DataSet, reports: Reports) -> None:
        self._folder, self._trainer, self._data, self._reports = folder, trainer, data, reports
        self._chance = chance_level(trainer.config.task, data)
        self._last = time.monotonic()
        self._has_matplotlib = True

    def update_now_and_then(self, progress: Progress) -> None:
        """After an epoch: write everything, if the last time is long enough ago."""
        if time.monotonic() - self._last >= INTERVAL_S:
            self.update(progress)

    def update(self, progress: Progress) -> None:
        """Write everything; nothing before the first epoch is done.

        Raises:
            OutputError: when a file cannot be written.
        """
        if progress.best is None:
            return
        trainer, config = self._trainer, self._trainer.config
        curves = self._draw_curves(progress.history, progress.best["epoch"])
        facts = RunFacts(
            config=config,
            model=trainer.model.config,
            data=self._data,
            metric=trainer.task.metric,
            chance=self._chance,
            history=progress.history,
            best=progress.best,
            alpha=trainer.alpha,
            device=describe_device(trainer.device),
            processes=trainer.ranks.world,
            samples=self._write_samples(),
            has_curves=curves,
            broken=len(trainer.train_loader.broken | trainer.val_loader.broken) + len(self._data.broken),
        )
        write_text(self._folder.report, report_text(facts))
        self._last = time.monotonic()

    def _draw_curves(self, history: Sequence[dict[str, Any]], best: int) -> bool:
        if not self._has_matplotlib:
            return False
        try:
            draw_curves(self._folder.curves, history, self._trainer.task.metric, best, self._chance)
        except RuntimeMissingError as error:  # a run that has trained for days does not end for want of a picture
            self._has_matplotlib = False
            self._reports.say(str(error))
        return self._has_matplotlib

    def _write_samples(self) -> list[tuple[Path, Record]]:
        checkpoint = load_checkpoint(self._folder.best)  # what is deployed, not what is in training
        model = checkpoint.build().to(self._trainer.device)
        return write_samples(self._folder.samples, model, checkpoint.facts, self._data.val, self._trainer.config.seed)

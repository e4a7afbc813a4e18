"""The task's own metric (AP, mAP, top-1) of any artefact in any runtime, on the validation images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spt_deploy.config import ModelConfig
from spt_deploy.datasets.dataset import DataSet
from spt_deploy.datasets.formats import read_data
from spt_deploy.errors import InputError
from spt_deploy.images import MAX_BROKEN
from spt_deploy.parity.checks import label_of
from spt_deploy.parity.closed import infer_in_parts
from spt_deploy.parity.tolerances import MAX_DROP
from spt_deploy.runtimes import Runner
from spt_deploy.training.box_ap import require_faster_coco_eval
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.loader import Loader
from spt_deploy.training.samples import Samples
from spt_deploy.training.tasks import make_task

TOLERANCE = 0.002  # of a metric in [0, 1]: a few near ties in ten thousand, not a degraded model
_ROUNDING = 1e-9  # 0.89 - 0.90 is a little more than a hundredth in floating point, and a hundredth is meant


@dataclass(frozen=True)
class MetricReport:
    """What one artefact in one runtime scores.

    Attributes:
        artefact: it and its runtime.
        images: that were measured.
        metric: name of the task's chief metric: ``AP``, ``mAP`` or ``top1``.
        values: all metrics by name, in [0, 1].
        difference: of the chief metric from the reference's; 0 of the reference itself.
        max_drop: what an int8 file may lose; None of the others, which must score what the reference scores.
    """

    artefact: str
    images: int
    metric: str
    values: dict[str, float]
    difference: float
    max_drop: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the chief metric is the reference's, to ``TOLERANCE``, or no more below it than ``max_drop``."""
        if self.max_drop is not None:
            return self.difference >= -self.max_drop - _ROUNDING
        return abs(self.difference) <= TOLERANCE + _ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {"passed": self.passed}


def read_labelled(folder: Path, format: str | None, model: ModelConfig) -> DataSet:
    """A data set whose validation images a model can be measured on.

    Args:
        folder: of the data set.
        format: of it; None looks.
        model: that is to be measured.

    Raises:
        InputError: when the data set cannot be read or its classes are not the model's.
        UsageError: when the format does not suit the model's task.
        RuntimeMissingError: when what a detector is measured with is not installed.
    """
    if model.task == "detect":
        require_faster_coco_eval()
    data = read_data(folder, model.task, format)
    if data.class_names != model.class_names:
        raise InputError(
            f"{folder} has the classes {_listed(data.class_names)} and the model {_listed(model.class_names)}; "
            "give the data set that it was trained for"
        )
    return data


def compare_metrics(
    runners: Sequence[Runner],
    data: DataSet,
    batch: int,
    max_drop: float = MAX_DROP,
    status: Callable[[str], None] = lambda text: None,
) -> list[MetricReport]:
    """Measure every runner on all validation images that can be read; the first is the reference.

    Args:
        runners: entered, of one model.
        data: see ``read_labelled``.
        batch: images a run.
        max_drop: what an int8 file may lose, in [0, 1].
        status: hears of each image that is left out.

    Raises:
        InputError: when no validation image can be read, or fewer than a run would train with (`MAX_BROKEN`).
    """
    reports: list[MetricReport] = []
    for runner in runners:
        said = status if not reports else lambda text: None  # all read the same images
        metric, images, values = _measure(runner, data, batch, said)
        before = reports[0].values[metric] if reports else values[metric]
        allowed = max_drop if runner.facts.precision == "int8" else None
        reports.append(MetricReport(label_of(runner), images, metric, values, values[metric] - before, allowed))
    return reports


def _measure(
    runner: Runner, data: DataSet, batch: int, status: Callable[[str], None]
) -> tuple[str, int, dict[str, float]]:
    """Name of the chief metric, images measured, all metrics."""
    preprocessing = runner.facts.preprocessing
    config = TrainConfig(Path(), Path(), task=runner.facts.model.task, imgsz=preprocessing.size)
    task = make_task(config, data)
    meter = task.meter()
    loader = Loader(
        Samples(data.val, preprocessing, classes=len(data.class_names)),
        batch,
        max_broken=MAX_BROKEN,
        on_broken=lambda broken: status(f"left out: {broken.reason}"),
    )
    images = 0
    for part in loader.epoch(0):
        if part.paths:
            meter.add(infer_in_parts(runner, runner.facts.image_input.of(part.images.numpy())), part)
            images += len(part.paths)
    if not images:
        raise InputError(f"none of the {len(data.val)} validation images can be read")
    return task.metric, images, meter.result()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown

"""An exported file in 8-bit integers for CPUs, accepted only where its answers are still those of float32."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from spt_deploy.atomic import atomic_path
from spt_deploy.config import mask_output
from spt_deploy.errors import InputError, ResultError, UsageError, no_folder
from spt_deploy.facts import ModelFacts
from spt_deploy.image_input import Images
from spt_deploy.images import find_images
from spt_deploy.parity.agreement import WHAT_AGREES, Agreement, agreement
from spt_deploy.parity.inputs import image_cases
from spt_deploy.parity.tolerances import MAX_DROP
from spt_deploy.runtimes import Runner
from spt_deploy.runtimes.onnx_file import facts_of, inlined, load_onnx
from spt_export.exporter import SelectionOutputs
from spt_export.int8 import to_int8, without_outputs

if TYPE_CHECKING:
    from spt_deploy.datasets.dataset import DataSet
    from spt_deploy.workflows.task_metric import MetricReport

IMAGES = 64  # for the scales, and as many others to compare answers on: more do not move the scales any more
BATCH = 4
# Without labels: a model that loses a hundredth of its metric changes about twice as many answers, for as many become
# right as wrong but for that; the rest is room for models that are seldom sure.
LEAST_AGREEMENT = 0.95


@dataclass(frozen=True)
class QuantizeReport:
    """What quantising a file came to.

    Attributes:
        runtime: in which both files were run, ``openvino`` or ``onnxruntime``.
        calibrated: images that the scales come from.
        narrow: how many layers compute in int8.
        wide: names of the layers with weights that stay in float32, each with the reason.
        metrics: the task's metric of float32 and of int8; empty without labels.
        max_drop: that was allowed of it.
        compared: images on which the answers and selections of both were compared.
        agreed: answers that are the same, see `parity.agreement`.
        differing: of each SPA block the share of tokens that one keeps and the other does not.
    """

    runtime: str
    calibrated: int
    narrow: int
    wide: dict[str, str]
    metrics: tuple[MetricReport, ...]
    max_drop: float
    compared: int
    agreed: Agreement
    differing: dict[str, float]

    @property
    def drop(self) -> float | None:
        """Of the task's chief metric; negative where int8 scores more, None without labels."""
        return -self.metrics[1].difference if self.metrics else None

    @property
    def passed(self) -> bool:
        """Whether the drop is allowed; without labels, whether ``LEAST_AGREEMENT`` of the answers are the same."""
        if self.metrics:
            return self.metrics[1].passed
        return self.agreed.share >= LEAST_AGREEMENT

    @property
    def selection_differs(self) -> float | None:
        """Share of the tokens of all SPA blocks, each block weighed alike; None of a model without any."""
        return float(np.mean(list(self.differing.values()))) if self.differing else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "passed": self.passed,
            "runtime": self.runtime,
            "calibration_images": self.calibrated,
            "int8_layers": self.narrow,
            "layers_kept_in_fp32": self.wide,
            "accuracy_checked": bool(self.metrics),
            "drop": self.drop,
            "max_drop": self.max_drop,
            "metrics": [metric.to_dict() for metric in self.metrics],
            "compared_images": self.compared,
            "agreement": self.agreed._asdict() | {"share": self.agreed.share},
            "selection_differs": self.differing,
        }


@dataclass(frozen=True)
class QuantizeData:
    """Images to quantise with.

    Attributes:
        folder: that they are of.
        for_scales: files that the scales are taken from; ``IMAGES`` of them, evenly spread.
        to_compare: files that the answers are compared on, likewise.
        labelled: data set on whose validation images the task's metric is taken; None where there are no labels.
        labels: its folder, or else ``folder``.
        why_unlabelled: why the data set that ``folder`` is gives no labels; empty where they are there, or it is none.
    """

    folder: Path
    for_scales: tuple[Path, ...]
    to_compare: tuple[Path, ...]
    labelled: DataSet | None
    labels: Path
    why_unlabelled: str = ""

    @classmethod
    def read(cls, data: Path, labels: Path | None, facts: ModelFacts) -> QuantizeData:
        """Look what is there; no image is opened.

        Args:
            data: folder of images. Of a labelled data set with the model's classes the training images give the scales,
                and the validation images are the labels where none are given. Of other images every other one gives
                the scales, and the rest is compared on; where there is but one, it serves for both.
            labels: a labelled data set.
            facts: of the model.

        Raises:
            InputError: when a folder is not there or holds nothing that can be used.
            UsageError: when the format of ``labels`` does not suit the model's task.
        """
        from spt_deploy.workflows.task_metric import read_labelled

        if not data.is_dir():
            raise InputError(f"{no_folder(data)}; give a folder of images with --data")
        found, why = None, ""
        if _is_data_set(data):
            try:
                found = read_labelled(data, None, facts.model)
                why = "" if found.val else f"{data} has no validation images"
            except (InputError, UsageError) as error:  # of other classes, or damaged
                why = str(error)
        labelled = found if found is not None and found.val else None
        if labels is not None:
            labelled = read_labelled(labels, None, facts.model)
            if not labelled.val:
                raise InputError(f"{labels} has no validation images to measure the accuracy on; give other labels")
        if found is not None and found.train and found.val:
            for_scales, to_compare = ([record.path for record in split] for split in (found.train, found.val))
        else:
            files = _spread(find_images(data), 2 * IMAGES)
            for_scales, to_compare = files[::2], files[1::2] or files
        why = why if labelled is None else ""
        return cls(data, tuple(for_scales), tuple(to_compare), labelled, labels or data, why)


def write_int8(
    source: Path,
    output: Path,
    data: QuantizeData,
    *,
    max_drop: float = MAX_DROP,
    selection: SelectionOutputs = "summary",
    status: Callable[[str], None] = lambda text: None,
) -> QuantizeReport:
    """Quantise a file, compare it with its float32 form in one runtime, and write it where it passes.

    Both run in OpenVINO where it is installed, else in ONNX Runtime, with all but the int8 layers in float32.

    Args:
        source: a float32 file as ``to_onnx`` makes it with the selection outputs ``all``.
        output: the int8 file.
        data: images and labels.
        max_drop: of the task's metric, in [0, 1], up to which the file is accepted.
        selection: outputs about the selection that the file gets, see ``to_onnx``.
        status: hears what is being done.

    Raises:
        UsageError: when ``max_drop`` is out of range.
        InputError: when more images cannot be read than a run would train without.
        ResultError: when the metric drops by more or, without labels, too few answers are the same; nothing is written.
        RuntimeMissingError: when ONNX Runtime, which the scales are measured in, is not installed.
        OutputError: when the file cannot be written.
    """
    from spt_deploy.workflows.task_metric import compare_metrics

    check_max_drop(max_drop)
    model = inlined(load_onnx(source))
    facts = facts_of(model, str(source))
    left_out = cache(status)  # an image that is compared on and measured on is named once
    if data.why_unlabelled:
        status(f"the labels of {data.folder} cannot be used: {data.why_unlabelled}")
    status(f"taking the scales from {min(len(data.for_scales), IMAGES)} images of {data.folder}")
    threshold = facts.model.backbone.threshold if facts.runtime_threshold else None
    quantized = to_int8(model, _batches(data.for_scales, facts, left_out), threshold=threshold)
    metrics: list[MetricReport] = []
    with tempfile.TemporaryDirectory(prefix="spt-deploy-") as folder:
        tried = Path(folder) / output.name
        onnx.save(quantized.model, tried)
        with _runner(source) as ours, _runner(tried) as theirs:
            runtime = ours.runtime
            status(f"comparing int8 with float32 in {runtime}")
            compared, agreed, differing = _compare(ours, theirs, data.to_compare, left_out)
            if data.labelled is not None:
                status(f"measuring both on the {len(data.labelled.val)} validation images of {data.labels}")
                metrics = compare_metrics([ours, theirs], data.labelled, BATCH, max_drop, left_out)
    report = QuantizeReport(
        runtime=runtime,
        calibrated=quantized.images,
        narrow=len(quantized.narrow),
        wide=quantized.wide,
        metrics=tuple(metrics),
        max_drop=max_drop,
        compared=compared,
        agreed=agreed,
        differing=differing,
    )
    if not report.passed:
        raise ResultError(_shortfall(report, facts, data.folder))
    with atomic_path(output) as temporary:
        onnx.save(without_outputs(quantized.model, _unwanted(facts, selection)), temporary)
    return report


def check_max_drop(max_drop: float) -> None:
    """Whether a drop of a metric can be meant.

    Raises:
        UsageError: when it is not in [0, 1].
    """
    if not 0.0 <= max_drop <= 1.0:
        raise UsageError(f"max-drop is {max_drop:g}; expected a share of the metric from 0 to 1, such as 0.01")


def _runner(path: Path) -> Runner:
    """Of a file that is gone in a minute, in the runtime that int8 files are made for, or else in the other one."""
    if importlib.util.find_spec("openvino") is not None:
        from spt_deploy.runtimes.openvino_runner import OpenVinoRunner

        return OpenVinoRunner(path, keep=False)
    from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(path, "cpu")


def _is_data_set(folder: Path) -> bool:
    """Whether a folder of images is of a known format, or looks like several."""
    from spt_deploy.datasets.formats import find_format

    try:
        find_format(folder)
    except InputError:
        return False
    except UsageError:
        return True
    return True


def _spread(files: list[Path], count: int) -> list[Path]:
    """At most so many of the files, evenly spread."""
    return files if len(files) <= count else [files[i * len(files) // count] for i in range(count)]


def _batches(files: Sequence[Path], facts: ModelFacts, status: Callable[[str], None]) -> Iterator[Images]:
    for case in image_cases(files, facts.preprocessing, IMAGES, BATCH, status):
        yield facts.image_input.of(case.images)


def _compare(
    ours: Runner, theirs: Runner, files: Sequence[Path], status: Callable[[str], None]
) -> tuple[int, Agreement, dict[str, float]]:
    """Images, answers that are the same, and of each SPA block the share of tokens that differ."""
    facts = ours.facts
    images, agreed = 0, Agreement()
    masks = {block: mask_output(block) for block in facts.model.backbone.spa_blocks}
    differing = dict.fromkeys(masks, 0.0)
    for batch in _batches(files, facts, status):
        before, after = ours.infer(batch), theirs.infer(batch)
        images += len(batch)
        agreed = agreed.plus(agreement(facts.model.task, before, after))
        for block, name in masks.items():
            differing[block] += float((before[name] != after[name]).mean()) * len(batch)
    return images, agreed, {block: total / images for block, total in differing.items()}


def _unwanted(facts: ModelFacts, selection: SelectionOutputs) -> list[str]:
    masks = [mask_output(block) for block in facts.model.backbone.spa_blocks]
    return {"all": [], "summary": masks, "none": [*masks, "select_ratio", "selection", "overflow"]}[selection]


def _shortfall(report: QuantizeReport, facts: ModelFacts, data: Path) -> str:
    """Why the file is not written, and what to do."""
    remedy = "give --data images like those that the model will see, or use the float32 file with --precision bf16"
    if report.metrics:
        before, after = report.metrics
        name = before.metric
        return (
            f"in int8 {name} drops by {report.drop:.4f}, from {before.values[name]:.4f} to {after.values[name]:.4f}, "
            f"and max-drop is {report.max_drop:g}; nothing was written: {remedy}"
        )
    what = WHAT_AGREES[facts.model.task]
    if not report.agreed.counted:
        return (
            f"accuracy cannot be checked: there are no labels, and {data} has no {what} in float32 or int8; nothing "
            "was written: give images in which something is found, or labels with --labels"
        )
    return (
        f"in int8 only {report.agreed.share:.1%} of the {what} are those of float32, on {report.compared} images of "
        f"{data}, and without labels {LEAST_AGREEMENT:.0%} are wanted; nothing was written: measure the accuracy with "
        f"--labels, {remedy}"
    )

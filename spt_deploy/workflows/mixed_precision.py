"""A file's graph in mixed precision, written beside the engine that is to be built of it, once it is proven."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from spt_deploy.atomic import atomic_path, write_json
from spt_deploy.errors import ResultError, UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.image_input import Images
from spt_deploy.parity.checks import PairReport, compare_runners
from spt_deploy.parity.inputs import Case, generated_cases, image_cases, images_in
from spt_deploy.runtimes.onnx_file import facts_of
from spt_export.precision import Precision, Rewritten, to_mixed_precision
from spt_export.rounding import rounded_in_float32

if TYPE_CHECKING:
    from spt_deploy.workflows.task_metric import MetricReport

CALIBRATION_IMAGES = 64
BATCH = 4  # of --data and --labels


@dataclass(frozen=True)
class PrecisionReport:
    """What rewriting a graph came to.

    Attributes:
        files: the graph, and this report as JSON.
        precision: ``fp16`` or ``bf16``.
        narrow: how many nodes compute in it.
        wide: names of nodes that could and do not, each with the reason.
        calibrated: images on which layers were looked at that leave fp16's range.
        parity: the rewritten graph, every 16-bit value rounded, against float32 in ONNX Runtime.
        file_parity: the file itself against float32 in ONNX Runtime; None in bfloat16, which it cannot run on a CPU.
        metrics: the task's metric of both; empty where no labels were given.
    """

    files: tuple[Path, ...]
    precision: Precision
    narrow: int
    wide: dict[str, str]
    calibrated: int
    parity: PairReport
    file_parity: PairReport | None
    metrics: tuple[MetricReport, ...]

    @property
    def passed(self) -> bool:
        """Whether it says what float32 says."""
        runs = self.file_parity is None or self.file_parity.passed
        return runs and self.parity.passed and all(metric.passed for metric in self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "passed": self.passed,
            "precision": self.precision,
            "files": [str(file) for file in self.files],
            "narrow_nodes": self.narrow,
            "nodes_kept_in_fp32": self.wide,
            "calibration_images": self.calibrated,
            "parity_values_rounded": self.parity.to_dict(),
            "parity_file": self.file_parity.to_dict() if self.file_parity else None,
            "metrics": [metric.to_dict() for metric in self.metrics],
        }


def write_mixed(
    source: Path,
    output: Path,
    precision: Precision,
    *,
    keep_fp32: Sequence[str] = (),
    data: Path | None = None,
    labels: Path | None = None,
    status: Callable[[str], None] = lambda text: None,
) -> PrecisionReport:
    """Rewrite a file's graph, prove it against float32, and write it with its report.

    Two forms are compared with float32: the file itself, which proves that it runs; and the same with every 16-bit
    value rounded in float32 (`spt_export.rounding`), which says what a GPU will say. ONNX Runtime on a CPU does not: it
    computes 16-bit nodes in float32, and has no convolution in bfloat16, so that such a file is not run here.

    Args:
        source: a float32 file that ``spt-deploy export`` wrote.
        output: the rewritten file; the report is ``output`` with the suffix ``.json``.
        precision: ``fp16`` or ``bf16``.
        keep_fp32: patterns of names of nodes or weights that stay in float32.
        data: folder of images; layers that leave fp16's range on them stay in float32, and the proof runs on them too.
        labels: data set on whose validation images the task's metric must stay the same.
        status: hears what is being done.

    Raises:
        UsageError: when the file is in mixed precision already, or a pattern fits nothing.
        InputError: when ``data`` or ``labels`` cannot be used.
        ResultError: when it does not say what float32 says: only the report is written.
        RuntimeMissingError: when ONNX Runtime is not installed.
        OutputError: when a file cannot be written.
    """
    from spt_deploy.runtimes.onnx_file import load_onnx
    from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

    model = load_onnx(source)
    facts = facts_of(model, str(source))
    if facts.precision != "fp32":
        raise UsageError(f"{source} is in {facts.precision} already; give the file that spt-deploy export wrote")
    files = [] if data is None else images_in(data)
    if labels is not None:  # like the folder of images, it is refused before the proof, which takes a while
        from spt_deploy.workflows.task_metric import compare_metrics, read_labelled

        labelled = read_labelled(labels, None, facts.model)
    left_out = cache(status)  # each image is named once, however often it is run
    users = partial(image_cases, files, facts.preprocessing, CALIBRATION_IMAGES, BATCH, left_out)
    out_of_range: list[str] = []
    calibrated = 0
    if files and precision == "fp16":  # bfloat16 has float32's range
        status(f"looking for layers that leave fp16's range on {data}")
        out_of_range, calibrated = _calibrate(model, facts, users(), status)
    rewritten = to_mixed_precision(model, precision, keep_fp32, out_of_range)
    status(f"comparing {precision} with float32 in ONNX Runtime")
    report_path = output.with_suffix(".json")
    with tempfile.TemporaryDirectory(prefix="spt-deploy-") as folder, atomic_path(output) as temporary:
        onnx.save(rewritten.model, temporary)
        rounded = Path(folder) / f"{output.stem}.onnx"
        onnx.save(rounded_in_float32(rewritten), rounded)
        with OnnxRuntimeRunner(source, "cpu") as ours:
            with OnnxRuntimeRunner(rounded, "cpu") as theirs:
                parity = compare_runners(ours, theirs, chain(_generated(facts), users()))
                metrics: list[MetricReport] = []
                if labels is not None:
                    status(f"measuring both on the validation images of {labels}")
                    metrics = compare_metrics([ours, theirs], labelled, BATCH, status=left_out)
            file_parity = None
            if precision == "fp16":
                with OnnxRuntimeRunner(temporary, "cpu") as itself:
                    file_parity = compare_runners(ours, itself, _generated(facts)[:1])
        report = PrecisionReport(
            files=(output, report_path),
            precision=precision,
            narrow=len(rewritten.narrow),
            wide=rewritten.wide,
            calibrated=calibrated,
            parity=parity,
            file_parity=file_parity,
            metrics=tuple(metrics),
        )
        write_json(report_path, report.to_dict())
        if not report.passed:
            raise ResultError(_shortfall(report, source, data))
    return report


def _generated(facts: ModelFacts) -> list[Case]:
    """The smaller ones: batch sizes are not in question here, and an engine is wanted within a minute."""
    return [case for case in generated_cases(facts.preprocessing.size) if len(case.images) in (1, 3)]


def _calibrate(
    model: onnx.ModelProto, facts: ModelFacts, cases: Iterator[Case], status: Callable[[str], None]
) -> tuple[list[str], int]:
    """Names of the layers that leave fp16's range on the images, and how many images there were."""
    from spt_export.calibration import largest_magnitudes, out_of_range

    seen = 0

    def batches() -> Iterator[Images]:
        nonlocal seen
        for case in cases:
            seen += len(case.images)
            yield facts.image_input.of(case.images)

    threshold = facts.model.backbone.threshold if facts.runtime_threshold else None
    found = out_of_range(largest_magnitudes(model, batches(), threshold=threshold))
    if found:
        status(f"{len(found)} layers stay in float32: {', '.join(found[:4])}{' ...' if len(found) > 4 else ''}")
    return found, seen


def _shortfall(report: PrecisionReport, source: Path, data: Path | None) -> str:
    """Why the graph is not used, and what to do."""
    hint = "keep the layers that need it in float32 with --keep-fp32"
    hint += ", or try --bf16" if report.precision == "fp16" and data else ""
    if report.precision == "fp16" and data is None:
        hint = "give images with --data, so that layers that leave its range are found, or use --bf16"
    bad = [metric for metric in report.metrics if not metric.passed]
    if bad:
        what = f"{bad[0].metric} changes by {bad[0].difference:+.4f}"
    else:
        pair = report.file_parity if report.parity.passed and report.file_parity else report.parity
        case = next(case for case in pair.cases if not case.passed)
        name, worst = max(pair.differences.items(), key=lambda item: (not item[1].passed, item[1].max_absolute))
        what = f"on {case.name!r} {case.verdict}, and {name} is off by {worst.max_absolute:.2g}"
    return (
        f"{source} in {report.precision} does not say what it says in float32: {what}; {hint}; the whole comparison is "
        f"in {report.files[1]}, and no engine was built"
    )


__all__ = ["PrecisionReport", "Rewritten", "write_mixed"]

"""``spt-deploy validate``: any number of artefacts, in every runtime that takes them, on the same inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spt_deploy.digest import sha256_of
from spt_deploy.engine.description import read_description
from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.parity.checks import (
    IndependenceReport,
    PairReport,
    batch_independence,
    check_same_model,
    check_same_threshold,
    compare_runners,
    label_of,
)
from spt_deploy.parity.inputs import generated_cases, image_cases, images_in
from spt_deploy.runtimes import Runner, open_runner
from spt_deploy.runtimes.onnx_file import read_facts
from spt_deploy.runtimes.registry import CHECKPOINT_SUFFIXES, RUNTIMES, artefact_kind, check_precisions
from spt_deploy.workflows.artefacts import find_artefact

if TYPE_CHECKING:
    from spt_deploy.workflows.task_metric import MetricReport

COMPANY = 5  # images of the batch independence check


@dataclass(frozen=True)
class ValidateReport:
    """What validate found.

    Attributes:
        notes: artefacts that were taken without being named, runtimes that were left out.
        pairs: each candidate against the reference.
        independence: of each runner, whether an image's answer depends on its batch.
        metrics: of each runner, what it scores on labelled images; empty where none were given.
    """

    notes: tuple[str, ...]
    pairs: tuple[PairReport, ...]
    independence: tuple[IndependenceReport, ...]
    metrics: tuple[MetricReport, ...] = ()

    @property
    def passed(self) -> bool:
        """Every pair agrees, every answer is the image's own, every metric is the reference's."""
        checked: tuple[PairReport | IndependenceReport | MetricReport, ...]
        checked = (*self.pairs, *self.independence, *self.metrics)
        return all(part.passed for part in checked)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "passed": self.passed,
            "notes": list(self.notes),
            "pairs": [pair.to_dict() for pair in self.pairs],
            "batch_independence": [check.to_dict() for check in self.independence],
            "metrics": [metric.to_dict() for metric in self.metrics],
        }


def validate(
    artefacts: Sequence[Path] = (),
    *,
    data: Path | None = None,
    labels: Path | None = None,
    format: str | None = None,
    runtimes: Sequence[str] = (),
    device: str = "cpu",
    precisions: Sequence[str] = (),
    max_images: int = 64,
    batch: int = 8,
    threshold: float | None = None,
    status: Callable[[str], None] = lambda text: None,
) -> ValidateReport:
    """Compare artefacts and runtimes; the first artefact is the reference, in the first runtime that takes it.

    Args:
        artefacts: checkpoints, ONNX files and engines of one model; none takes the newest ONNX file and
            the checkpoint that it was made from.
        data: a folder of images that go through the model's own preprocessing, beside the generated inputs.
        labels: a data set on whose validation images the task's metric is taken of every artefact in every runtime.
        format: of ``labels``; None looks at the folder.
        runtimes: only these of the runtimes that take an ONNX file; empty takes all that are installed.
        device: of torch and ONNX Runtime.
        precisions: ``fp32`` and ``bf16``, of which openvino runs each; empty takes each artefact's own.
        max_images: of ``data``, evenly spread.
        batch: images of ``data`` a batch.
        threshold: of the score, in (0, 1), that all of them run at; files must take it as an input. None is the
            exported file's own.
        status: hears what is being done.

    Raises:
        InputError: when the artefacts are not of one model and threshold, one takes no threshold, or ``data`` cannot be
            used.
        ArtefactError: when an artefact cannot be used.
        UsageError: when there is only one artefact in one runtime and no ``labels``: nothing to compare; or for a
            precision that none of them can be asked for.
        RuntimeMissingError: when no runtime that takes any of them is installed.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        if text not in notes:  # each runtime and image is named once, however many are compared
            notes.append(text)
            status(text)

    files = images_in(data) if data is not None else []
    paths = list(artefacts) or _found(note)
    with ExitStack() as stack:
        runners = _runners(paths, runtimes, device, precisions, threshold, note)
        if not runners:
            raise RuntimeMissingError(f"no runtime that takes {paths[0]} is installed here; pip install openvino")
        check_precisions(precisions, runners)
        # Whatever can be refused is, before anything is compiled.
        if len(runners) < 2 and labels is None:
            raise UsageError(
                f"{runners[0].path} alone in {runners[0].runtime} has nothing to be compared with; {_remedies(paths)}"
            )
        reference, candidates = runners[0], runners[1:]
        if candidates:
            import polygraphy.comparator  # noqa: F401
        for candidate in candidates:
            named = _named(reference, candidate, paths)
            check_same_model(reference.facts, candidate.facts, label_of(candidate), named)
            check_same_threshold(reference.facts, candidate.facts, label_of(candidate), named)
        if labels is not None:
            from spt_deploy.workflows.task_metric import compare_metrics, read_labelled

            labelled = read_labelled(labels, format, reference.facts.model)
        for runner in runners:
            stack.enter_context(runner)
        preprocessing = reference.facts.preprocessing
        pairs = []
        for candidate in candidates:
            status(f"comparing {label_of(candidate)} with {label_of(reference)}")
            users = image_cases(files, preprocessing, max_images, batch, note)
            pairs.append(compare_runners(reference, candidate, chain(generated_cases(preprocessing.size), users)))
        status("checking that no answer depends on the rest of its batch")
        images = np.random.default_rng(1).standard_normal((COMPANY, 3, *preprocessing.size), dtype=np.float32)
        if files:
            users = image_cases(files, preprocessing, max_images, COMPANY - 2)
            images = np.concatenate([images[:2], next(users).images])
        independence = [batch_independence(runner, images) for runner in runners]
        metrics: list[MetricReport] = []
        if labels is not None:
            status(f"measuring on the validation images of {labels}")
            metrics = compare_metrics(runners, labelled, batch, status=note)
    return ValidateReport(tuple(notes), tuple(pairs), tuple(independence), tuple(metrics))


def _found(note: Callable[[str], None]) -> list[Path]:
    """The newest ONNX file and the checkpoint beside it that it was made from, or that has its name."""
    onnx_file, why = find_artefact(None, ("onnx",))
    note(why)
    named = [onnx_file.with_suffix(suffix) for suffix in CHECKPOINT_SUFFIXES]
    others = [path for path in sorted(onnx_file.parent.iterdir()) if path.suffix in CHECKPOINT_SUFFIXES]
    there = [path for path in dict.fromkeys([*named, *others]) if path.is_file()]
    origin = read_facts(onnx_file).checkpoint_sha256
    fitting = [path for path in there if sha256_of(path) == origin] or [path for path in there if path in named]
    if not fitting:
        note(f"{onnx_file.name} is compared with itself: the checkpoint that it was made from does not lie beside it")
        return [onnx_file]
    checkpoint = fitting[0]
    note(f"taking {checkpoint} as the reference: the checkpoint beside it")
    return [checkpoint, onnx_file]


def _runners(
    paths: Sequence[Path],
    runtimes: Sequence[str],
    device: str,
    precisions: Sequence[str],
    threshold: float | None,
    note: Callable[[str], None],
) -> list[Runner]:
    """A runner of each artefact in each runtime that takes it and is installed, none entered yet."""
    for name in runtimes:
        if name not in RUNTIMES["onnx"]:
            raise UsageError(f"runtime is {name!r}; those that take an ONNX file are {', '.join(RUNTIMES['onnx'])}")
    exported = [_facts_of(path) for path in paths if artefact_kind(path) != "checkpoint"]
    runners: list[Runner] = []
    for path in paths:
        if artefact_kind(path) == "checkpoint":
            from spt_deploy.runtimes.torch_runner import TorchRunner

            if exported:  # the checkpoint runs as the exported files do: at their size, packing and threshold
                backbone, size = exported[0].model.backbone, exported[0].preprocessing.size
                value = backbone.threshold if threshold is None else threshold
                runners.append(TorchRunner(path, device, backbone.packing, size, value, backbone.capacity))
            else:
                runners.append(open_runner(path, device=device, threshold=threshold))
            continue
        if artefact_kind(path) == "engine":
            runners.append(open_runner(path, threshold=threshold))
            continue
        for name in runtimes or RUNTIMES["onnx"]:
            if not runtimes and importlib.util.find_spec(name) is None:
                note(f"{name} is not installed and was left out (pip install {name})")
                continue
            if not runtimes and name == "onnxruntime" and device == "cpu" and read_facts(path).precision == "bf16":
                note(f"{name} was left out of {path.name}, which is in bf16: it has no convolution in that on a CPU")
                continue
            if name == "openvino":
                for precision in precisions or (None,):
                    runners.append(open_runner(path, name, "cpu", precision=precision, threshold=threshold))
            else:
                runners.append(open_runner(path, name, device, threshold=threshold))
    return runners


def _remedies(paths: Sequence[Path]) -> str:
    """What to do where one artefact in one runtime is all there is."""
    ways = ["name a second artefact"] if len(paths) == 1 else []
    missing = [name for name in reversed(RUNTIMES["onnx"]) if importlib.util.find_spec(name) is None]
    if missing and any(artefact_kind(path) == "onnx" for path in paths):
        ways.append(f"install another runtime (pip install {missing[0]})")
    return ", or ".join([*ways, "give a data set with --labels for its metric"])


def _named(reference: Runner, candidate: Runner, paths: Sequence[Path]) -> str:
    """The reference in a sentence about a candidate: a checkpoint is run as the first exported file is."""
    exported = next((path for path in paths if artefact_kind(path) != "checkpoint"), candidate.path)
    if artefact_kind(reference.path) != "checkpoint" or exported == candidate.path:
        return f"the reference {reference.path.name}"
    return f"the reference {reference.path.name}, which runs as {exported.name} does"


def _facts_of(path: Path) -> ModelFacts:
    return read_description(path).facts if artefact_kind(path) == "engine" else read_facts(path)

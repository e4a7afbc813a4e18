"""The checks themselves: one candidate against the reference on all cases, and batch independence of one artefact."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.errors import InputError
from spt_deploy.facts import ModelFacts
from spt_deploy.image_input import Images, same_for_both
from spt_deploy.parity.closed import compare_closed, infer_in_parts, is_closed
from spt_deploy.parity.compare import Comparison, Difference, compare_outputs
from spt_deploy.parity.inputs import Case
from spt_deploy.parity.probe import Probe, open_probe
from spt_deploy.parity.selection import BlockSelection, compare_selection, kept_of
from spt_deploy.parity.tolerances import Tolerance, tolerance_for
from spt_deploy.runtimes.base import Arrays, Runner

AGREEMENT = {"classify": "same top class", "multilabel": "same top label", "detect": "matched detections"}


@dataclass(frozen=True)
class CaseResult:
    """One case, candidate against reference.

    Attributes:
        name: of the case.
        images: in the batch.
        free: each with its own selection; None where the case forces one.
        forced: the candidate under the reference's selection; None where the model has no SPA block.
        blocks: selection of each SPA block; empty where it is forced or there is none.
        passed: see ``verdict``.
        verdict: why, in a few words.
    """

    name: str
    images: int
    free: Comparison | None
    forced: Comparison | None
    blocks: tuple[BlockSelection, ...]
    passed: bool
    verdict: str


@dataclass(frozen=True)
class PairReport:
    """One candidate against the reference.

    Attributes:
        reference: artefact and runtime.
        candidate: artefact and runtime.
        tolerance: what was allowed.
        task: of both.
        cases: in the order they ran.
    """

    reference: str
    candidate: str
    tolerance: Tolerance
    task: str
    cases: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Every case passed."""
        return all(case.passed for case in self.cases)

    @property
    def differences(self) -> dict[str, Difference]:
        """The worst difference of each output: where the selection could be forced equal, with it forced."""
        comparisons = [case.forced or case.free for case in self.cases]
        names = [name for c in comparisons[:1] if c for name in c.differences]
        return {n: Difference.worst([c.differences[n] for c in comparisons if c]) for n in names}

    @property
    def free_differences(self) -> dict[str, Difference]:
        """The worst difference of each output with each side's own selection."""
        comparisons = [case.free for case in self.cases if case.free]
        names = [name for c in comparisons[:1] for name in c.differences]
        return {n: Difference.worst([c.differences[n] for c in comparisons]) for n in names}

    @property
    def blocks(self) -> tuple[BlockSelection, ...]:
        """Each SPA block over all cases that select by themselves."""
        selecting = [case.blocks for case in self.cases if case.blocks]
        return tuple(BlockSelection.total(list(same)) for same in zip(*selecting, strict=True))

    @property
    def agreement(self) -> float | None:
        """Share of what users see that is the same on both sides, each with its own selection.

        None where there was nothing to count: no detection whose score is clear of the last of the K.
        """
        free = [case.free for case in self.cases if case.free]
        counted = sum(c.counted for c in free)
        return sum(c.agreed for c in free) / counted if counted else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "passed": self.passed,
            "tolerance": self.tolerance._asdict(),
            "agreement": {"of": AGREEMENT[self.task], "share": self.agreement},
            "outputs": {name: d.to_dict() for name, d in self.differences.items()},
            "outputs_with_own_selection": {name: d.to_dict() for name, d in self.free_differences.items()},
            "selection": [block.to_dict() for block in self.blocks],
            "cases": [
                {"name": c.name, "images": c.images, "passed": c.passed, "verdict": c.verdict} for c in self.cases
            ],
        }


@dataclass(frozen=True)
class IndependenceReport:
    """Whether an image's answer depends on the images beside it.

    Attributes:
        artefact: artefact and runtime.
        differences: by output name, the worst of an image in company against the same image alone.
        promised: batch packing lets container boundaries move, and promises nothing; the others do.
    """

    artefact: str
    differences: dict[str, Difference]
    promised: bool

    @property
    def passed(self) -> bool:
        """Within tolerance, or not promised."""
        return not self.promised or all(d.passed for d in self.differences.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "artefact": self.artefact,
            "passed": self.passed,
            "promised": self.promised,
            "outputs": {name: d.to_dict() for name, d in self.differences.items()},
        }


def label_of(runner: Runner) -> str:
    """Artefact and runtime, for tables."""
    return f"{runner.path.name} ({runner.name})"


def check_same_model(reference: ModelFacts, candidate: ModelFacts, where: str, against: str = "the reference") -> None:
    """Whether two artefacts can be compared at all; ``where`` names the candidate and ``against`` the reference.

    Raises:
        InputError: when task, classes, model, packing or preprocessing differ.
    """
    pairs = {
        "task": (reference.model.task, candidate.model.task),
        "model": (reference.model.backbone.name, candidate.model.backbone.name),
        "list of classes": (", ".join(reference.model.class_names), ", ".join(candidate.model.class_names)),
        **{name: (ours, theirs) for name, ours, theirs in _forms(reference.model, candidate.model)},
        "packing": (_packing(reference.model.backbone), _packing(candidate.model.backbone)),
        "preprocessing": (str(reference.preprocessing), str(candidate.preprocessing)),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise InputError(
                f"{where} has another {what} than {against} ({_short(theirs)} against {_short(ours)}); "
                "compare artefacts that were made from one checkpoint at one size and packing"
            )


def check_same_threshold(
    reference: ModelFacts, candidate: ModelFacts, where: str, against: str = "the reference"
) -> None:
    """Whether two artefacts of one model select by one threshold, without which they are sure to differ.

    Raises:
        InputError: when they do not; arguments as for ``check_same_model``.
    """
    ours, theirs = (facts.model.backbone.threshold for facts in (reference, candidate))
    if reference.model.backbone.selects_by_threshold and ours != theirs:
        raise InputError(
            f"{where} selects by another threshold than {against} ({theirs:g} against {ours:g}), and so other tokens; "
            "compare files that were exported at one --threshold, or with --runtime-threshold and --threshold here; "
            "what a threshold costs is seen where each file is validated against its checkpoint with --labels"
        )


def _forms(reference: ModelConfig, candidate: ModelConfig) -> Iterator[tuple[str, str, str]]:
    """What a model is beside its name, task and classes; how it was trained and is run is another question."""
    for field in fields(BackboneConfig):
        matters = field.name != "keep_ratio" or reference.backbone.selector == "topk"
        if matters and field.name not in ("name", "threshold", "packing", "capacity", "drop_path", "gate_bias"):
            ours, theirs = (getattr(model.backbone, field.name) for model in (reference, candidate))
            yield field.name, str(ours), str(theirs)
    if reference.task == "detect":
        yield "head_width", str(reference.head_width), str(candidate.head_width)
        yield "top_k", str(reference.top_k), str(candidate.top_k)


def _packing(backbone: BackboneConfig) -> str:
    room = f" with capacity {backbone.capacity:g}" if backbone.packing == "static" and backbone.spa_blocks else ""
    return f"{backbone.packing}{room}"


def _short(text: str) -> str:
    """A value as a sentence can hold it: a thousand class names are too many."""
    return textwrap.shorten(text, 80, placeholder=" ...")


def compare_runners(
    reference: Runner,
    candidate: Runner,
    cases: Iterable[Case],
    on_case: Callable[[CaseResult], None] = lambda result: None,
) -> PairReport:
    """Compare two open runners on all cases; ``on_case`` hears of each as it is done.

    Where one of them takes bytes, the cases' images are rounded to bytes, and the other gets these normalised.

    An int8 candidate passes where it gives numbers: how far single elements are off says little of 8 bits, whose scales
    fit the images that they were taken from, and what it is worth shows on labels (`workflows/task_metric.py`).

    Raises:
        InputError: when they are not the same model.
    """
    check_same_model(reference.facts, candidate.facts, label_of(candidate))
    tolerance = tolerance_for(reference.precision, candidate.precision)
    if candidate.facts.precision == "int8":
        results = []
        for case in cases:
            if case.force is None:
                results.append(_run_int8(case, reference, candidate, tolerance))
                on_case(results[-1])
        return PairReport(
            label_of(reference), label_of(candidate), tolerance, reference.facts.model.task, tuple(results)
        )
    selects = bool(reference.facts.model.backbone.spa_blocks)
    closed = is_closed(candidate)
    probes = (open_probe(reference), None if closed else open_probe(candidate)) if selects else None
    results = []
    for case in cases:
        if case.force is not None and (probes is None or closed):
            continue  # there is nothing to force, or no way to
        result = _run_case(case, reference, candidate, probes, tolerance)
        on_case(result)
        results.append(result)
    return PairReport(label_of(reference), label_of(candidate), tolerance, reference.facts.model.task, tuple(results))


def _run_case(
    case: Case, reference: Runner, candidate: Runner, probes: tuple[Probe, Probe | None] | None, tolerance: Tolerance
) -> CaseResult:
    backbone = reference.facts.model.backbone
    count = len(case.images)
    if probes is not None and probes[1] is None:
        return _run_closed(case, reference, candidate, probes[0], tolerance)
    first, second = same_for_both(reference.facts.image_input, candidate.facts.image_input, case.images)
    if probes is not None and probes[1] is not None and case.force is not None:
        sizes = [score.shape for score in probes[0].run(first[:1]).scores]
        masks = [np.full((count, shape[1]), case.force == "keep") for shape in sizes]
        ours, theirs = probes[0].run(first, masks).outputs, probes[1].run(second, masks).outputs
        forced = compare_outputs(ours, theirs, tolerance)
        return CaseResult(case.name, count, None, forced, (), forced.passed, _verdict(forced.passed, 0, True))

    free = compare_outputs(infer_in_parts(reference, first), infer_in_parts(candidate, second), tolerance)
    if probes is None or probes[1] is None:
        return CaseResult(case.name, count, free, None, (), free.passed, _verdict(free.passed, 0, True))
    seen = probes[0].run(first)
    held = probes[1].run(second, [kept_of(score, backbone) for score in seen.scores])
    forced = compare_outputs(seen.outputs, held.outputs, tolerance)
    blocks = tuple(compare_selection(seen.scores, held.scores, backbone))
    flips = sum(block.flips for block in blocks)
    scores_agree = all(block.max_score_error <= tolerance.score for block in blocks)
    passed = forced.passed and scores_agree
    if passed and not free.passed:  # which borderline tokens may explain, if they are what it selects
        passed = flips > 0 and _selects_as_it_scores(probes[1], second, backbone, tolerance)
    return CaseResult(case.name, count, free, forced, blocks, passed, _verdict(passed, flips, scores_agree))


def _selects_as_it_scores(probe: Probe, images: Images, backbone: BackboneConfig, tolerance: Tolerance) -> bool:
    """Whether an artefact, left alone, keeps the tokens that its own scores say."""
    free = probe.run(images)
    held = probe.run(images, [kept_of(score, backbone) for score in free.scores])
    return compare_outputs(free.outputs, held.outputs, tolerance).passed


def _run_closed(case: Case, reference: Runner, candidate: Runner, probe: Probe, tolerance: Tolerance) -> CaseResult:
    """The candidate's selection can be seen, at best, and not be forced."""
    count = len(case.images)
    first, second = same_for_both(reference.facts.image_input, candidate.facts.image_input, case.images)
    theirs = infer_in_parts(candidate, second)
    free = compare_outputs(infer_in_parts(reference, first), theirs, tolerance)
    found = compare_closed(probe, theirs, first, reference.facts.model.backbone, tolerance)
    if found is None:
        verdict = "equal" if free.passed else "outputs differ; export --selection all tells whether the selection does"
        return CaseResult(case.name, count, free, None, (), free.passed, verdict)
    forced, blocks = found
    flips = sum(block.flips for block in blocks)
    scores_agree = all(block.max_margin <= tolerance.score for block in blocks)
    passed = forced.passed and scores_agree and (free.passed or flips > 0)
    return CaseResult(case.name, count, free, forced, blocks, passed, _verdict(passed, flips, scores_agree))


def _run_int8(case: Case, reference: Runner, candidate: Runner, tolerance: Tolerance) -> CaseResult:
    first, second = same_for_both(reference.facts.image_input, candidate.facts.image_input, case.images)
    free = compare_outputs(infer_in_parts(reference, first), infer_in_parts(candidate, second), tolerance)
    close = free.passed
    numbers = {name: replace(found, passed=not found.not_finite) for name, found in free.differences.items()}
    free = replace(free, differences=numbers)
    verdict = "equal" if close else "as far off as 8 bits are; --labels shows what that costs"
    return CaseResult(
        case.name, len(case.images), free, None, (), free.passed, verdict if free.passed else "outputs differ"
    )


def _verdict(passed: bool, flips: int, scores_agree: bool) -> str:
    if passed:
        return f"equal but for {flips} borderline token{'s' * (flips != 1)}" if flips else "equal"
    return "outputs differ" if scores_agree else "selection scores differ"


def batch_independence(runner: Runner, images: npt.NDArray[np.float32]) -> IndependenceReport:
    """The same images alone, together, and together in reverse order.

    Args:
        runner: open.
        images: B x 3 x H x W float32, normalised, at least two different ones.
    """
    tolerance = tolerance_for(runner.precision)
    given = runner.facts.image_input.of(images)
    alone: list[Arrays] = [runner.infer(given[i : i + 1]) for i in range(len(images))]
    together = infer_in_parts(runner, given)
    backwards = infer_in_parts(runner, given[::-1])
    worst: dict[str, list[Difference]] = {}
    for i, single in enumerate(alone):
        for batch, at in ((together, i), (backwards, len(images) - 1 - i)):
            companion = {name: value[at : at + 1] for name, value in batch.items()}
            for name, found in compare_outputs(single, companion, tolerance).differences.items():
                worst.setdefault(name, []).append(found)
    promised = runner.facts.model.backbone.packing != "batch" or not runner.facts.model.backbone.spa_blocks
    return IndependenceReport(label_of(runner), {n: Difference.worst(d) for n, d in worst.items()}, promised)

"""``spt-deploy bench``: artefacts and runtimes side by side, in one run, at a known share of kept tokens."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.bench import Timing, Turns, check_rounds
from spt_deploy.errors import InputError, RuntimeMissingError, UsageError
from spt_deploy.image_input import Images
from spt_deploy.parity.checks import label_of
from spt_deploy.parity.probe import Masks, Probe, open_probe
from spt_deploy.runtimes import Runner, open_runner
from spt_deploy.runtimes.registry import RUNTIME_NAMES, RUNTIMES, artefact_kind, check_precisions, is_installed
from spt_deploy.version import __version__
from spt_deploy.workflows.artefacts import find_artefact, runnable_kinds
from spt_deploy.workflows.bench_memory import peak_memory
from spt_deploy.workflows.bench_profile import OperatorTime, profile
from spt_deploy.workflows.bench_work import Inputs, folder_inputs, forced_mask, gmacs, one_size, random_inputs


@dataclass(frozen=True)
class BenchRow:
    """One artefact in one runtime, at one batch size and share of kept tokens.

    Attributes:
        timing: see `Timing`; the first row of a batch size is what the others are held against.
        batch: images a run.
        select_ratio: mean share of tokens kept in the SPA blocks; None of a model without them.
        gmacs: multiply-accumulates of one image at that share, in 10^9; what it must do, not what it was seen to do.
        memory_mib: see `peak_memory`; None where it was not measured.
        profile: see `bench_profile.profile`; empty where it was not asked for.
    """

    timing: Timing
    batch: int
    select_ratio: float | None
    gmacs: float
    memory_mib: float | None = None
    profile: tuple[OperatorTime, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return self.timing.to_dict() | {
            "batch": self.batch,
            "select_ratio": self.select_ratio,
            "gmacs": self.gmacs,
            "memory_mib": self.memory_mib,
            "profile": [part.to_dict() for part in self.profile],
        }


@dataclass(frozen=True)
class BenchReport:
    """All rows, and what they were measured on."""

    rows: tuple[BenchRow, ...]
    machine: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {"machine": self.machine, "rows": [row.to_dict() for row in self.rows]}


def bench(
    artefacts: Sequence[Path] = (),
    *,
    runtimes: Sequence[str] = (),
    device: str = "auto",
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (1, 8),
    ratios: Sequence[float] = (),
    data: Path | None = None,
    rounds: int = 20,
    repeats: int = 3,
    memory: bool = False,
    profiled: bool = False,
    training: bool = False,
    status: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Time artefacts on random images, or on those of a folder, contenders taking turns.

    Args:
        artefacts: checkpoints, ONNX files and engines, of any models; none takes the newest artefact.
        runtimes: only these; empty takes every installed runtime that takes the artefact.
        device: of the runtimes that have a choice.
        precisions: ``fp32`` and ``bf16``, of which openvino runs each; empty takes each artefact's own.
        batches: images a run; each is a comparison of its own.
        ratios: shares of kept tokens in (0, 1] to force on models with SPA blocks; empty leaves them their own
            selection, which on random images says little about real ones.
        data: folder of images to run instead of noise; each round runs its next batch.
        rounds: timed, of each batch size.
        repeats: how often everything is opened anew, see `Turns`; the rounds are shared out among them.
        memory: also measure how much memory each artefact needs, in processes of their own.
        profiled: also measure how long each operator takes, of ONNX files.
        training: time a step of training instead (forward, backward, update), of checkpoints in PyTorch.
        status: hears what is being done.

    Raises:
        InputError: when no artefact is named or found, the artefacts take images of different sizes, ``data`` cannot be
            used, or an artefact does not say what it selects and no ratios are given.
        UsageError: when an argument is out of range.
        RuntimeMissingError: when no runtime that takes an artefact is installed.
    """
    if any(not 0 < ratio <= 1 for ratio in ratios):
        raise UsageError(f"ratios are {', '.join(map(str, ratios))}; expected numbers above 0 and at most 1")
    if any(size < 1 for size in batches):
        raise UsageError(f"batches are {', '.join(map(str, batches))}; expected positive numbers")
    paths = list(artefacts)
    if training and not ratios:
        raise UsageError("a training step draws its selection at random; give the shares to force with --ratio")
    if training and (runtimes or any(artefact_kind(path) != "checkpoint" for path in paths)):
        raise UsageError("training is timed of checkpoints, in PyTorch; name checkpoints only, and no runtime")
    if not paths:
        found = find_artefact(None, ("checkpoint",) if training else runnable_kinds())
        status(found.why)
        paths = [found.path]
    if training and (data or memory or profiled or precisions):
        raise UsageError("a step of training is timed on random images, without memory, profile and precision")
    check_rounds(rounds)
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}; expected at least 1")
    repeats = min(repeats, rounds)
    turns = [Turns(size) for size in batches]
    given: dict[int, Inputs] = {}  # by batch size: those of a folder go on where the last repeat ended

    def repeat(number: int) -> list[BenchRow]:
        """Open everything, and take a share of the rounds; the rows are of all rounds until then."""
        rows: list[BenchRow] = []
        share = rounds // repeats + (number < rounds % repeats)
        said = _counted(share, "round") + (f", repeat {number + 1} of {repeats}" if repeats > 1 else "")
        with ExitStack() as stack:
            runners = [] if training else [r for p in paths for r in _runners(p, runtimes, device, precisions)]
            if not training:
                check_precisions(precisions, runners)
            for runner in runners:
                runner.expect(batches[0])
                stack.enter_context(runner)
            for batch, turn in zip(batches, turns, strict=True):
                if training:
                    contenders, inputs = _training_contenders(paths, batch, ratios, device), None
                else:
                    for runner in runners:
                        runner.expect(batch)
                    inputs = given.get(batch) or given.setdefault(batch, _inputs(runners, batch, data))
                    contenders = _contenders(runners, inputs, ratios)
                status(f"batch {batch}: {_counted(len(contenders), 'contender')}, {said}")
                runs = {contender.name: contender.run for contender in contenders}
                turn.take(runs, share, on_round=lambda done, inputs=inputs: inputs.next_round() if inputs else None)  # type: ignore[misc]
                if number + 1 == repeats:
                    timings = turn.timings(runs, _peers(contenders))
                    rows += [_row(*each, batch, inputs) for each in zip(contenders, timings, strict=True)]
        return rows

    def _row(contender: Contender, timing: Timing, batch: int, inputs: Inputs | None) -> BenchRow:
        row = BenchRow(timing, batch, contender.select_ratio, contender.gmacs)
        if memory and contender.runner:
            status(f"memory of {contender.name}")
            row = replace(row, memory_mib=_memory(contender.runner, batch))
        if profiled and contender.runner and inputs:
            status(f"profile of {contender.name}")
            now = inputs.taken_by(contender.runner.facts.image_input)[inputs.place]
            row = replace(row, profile=tuple(profile(contender.runner, now, contender.masks)))
        return row

    for number in range(repeats):
        rows = repeat(number)
    return BenchReport(tuple(rows), _machine())


@dataclass(frozen=True)
class Contender:
    """What takes its turn.

    Attributes:
        name: of it.
        group: contenders of one group are held against the first of it.
        run: one run.
        select_ratio: see ``BenchRow``; so ``gmacs``.
        gmacs: see ``select_ratio``.
        runner: of the artefact; None of a training step.
        masks: that are forced on it; None leaves it its own selection.
    """

    name: str
    group: str
    run: Callable[[], object]
    select_ratio: float | None
    gmacs: float
    runner: Runner | None = None
    masks: Masks | None = None


def _counted(number: int, noun: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _training_contenders(paths: Sequence[Path], batch: int, ratios: Sequence[float], device: str) -> list[Contender]:
    from spt_deploy.workflows.bench_training import training_contenders

    runs, about = training_contenders(paths, batch, ratios, device)
    return [Contender(name, "", run, *about[name]) for name, run in runs.items()]


def _peers(contenders: Sequence[Contender]) -> dict[str, str]:
    first: dict[str, str] = {}
    return {each.name: first.setdefault(each.group, each.name) for each in contenders}


def _inputs(runners: Sequence[Runner], batch: int, data: Path | None) -> Inputs:
    size = one_size([runner.facts.preprocessing.size for runner in runners])
    if data is None:
        return random_inputs(batch, size)
    if len({runner.facts.preprocessing for runner in runners}) > 1:
        raise InputError("the artefacts prepare images differently, so that --data cannot give all of them the same")
    return folder_inputs(data, runners[0].facts.preprocessing, batch)


def _contenders(runners: Sequence[Runner], inputs: Inputs, ratios: Sequence[float]) -> list[Contender]:
    found: list[Contender] = []
    for runner in runners:
        config, size = runner.facts.model, runner.facts.preprocessing.size
        label, group = label_of(runner), runner.name
        if any(each.name.startswith(label) and each.runner is not runner for each in found):
            label = label.replace(runner.path.name, str(runner.path), 1)

        batches = inputs.taken_by(runner.facts.image_input)

        def run(runner: Runner = runner, batches: Sequence[Images] = batches) -> object:
            return runner.infer(batches[inputs.place])

        if not config.backbone.spa_blocks:
            found.append(Contender(label, group, run, None, gmacs(config, size, ()), runner))
        elif not ratios:
            kept = np.mean([_kept_by(runner, images) for images in batches], axis=0)
            work = gmacs(config, size, [float(share) for share in kept])
            found.append(Contender(f"{label}, its own selection", group, run, float(kept.mean()), work, runner))
        else:
            now = batches[inputs.place]
            probe = open_probe(runner, len(now))
            tokens = [score.shape[1] for score in probe.run(now).scores]
            for ratio in ratios:
                masks = [forced_mask(len(now), count, ratio) for count in tokens]
                exact = [float(mask.mean()) for mask in masks]

                def forced(probe: Probe = probe, masks: Masks = masks, batches: Sequence[Images] = batches) -> object:
                    return probe.run(batches[inputs.place], masks)

                name, work = f"{label}, {ratio:.0%} kept", gmacs(config, size, exact)
                found.append(Contender(name, group, forced, float(np.mean(exact)), work, runner, masks))
    return _told_apart(found)


def _kept_by(runner: Runner, images: Images) -> npt.NDArray[np.float64]:
    """Share of tokens that each SPA block keeps of a batch."""
    outputs = runner.infer(images)
    if "select_ratio" not in outputs:
        raise InputError(
            f"{runner.path.name} does not say what it keeps, as it was exported with --selection none; force shares "
            "with --ratio, or export it without --selection none"
        )
    return np.asarray(outputs["select_ratio"].mean(0), dtype=np.float64)


def _told_apart(contenders: Sequence[Contender]) -> list[Contender]:
    """With a number behind each name that was there before: an artefact may be named twice, to see the noise."""
    times: Counter[str] = Counter()
    apart = []
    for each in contenders:
        times[each.name] += 1
        apart.append(replace(each, name=f"{each.name} #{times[each.name]}") if times[each.name] > 1 else each)
    return apart


def _memory(runner: Runner, batch: int) -> float:
    return peak_memory(runner.path, runner.runtime, runner.device, batch, runner.computes_in or "")


def _runners(path: Path, runtimes: Sequence[str], device: str, precisions: Sequence[str]) -> list[Runner]:
    for name in runtimes:
        if name not in RUNTIME_NAMES:
            raise UsageError(f"runtime is {name!r}; known are {', '.join(RUNTIME_NAMES)}")
    kind = artefact_kind(path)
    if kind == "engine":
        return [open_runner(path)]
    fitting = RUNTIMES[kind]
    names = [n for n in fitting if n in runtimes or (not runtimes and is_installed(n))]
    if not names:
        raise RuntimeMissingError(f"no runtime that takes {path.name} is left; it runs in {', '.join(fitting)}")
    runners: list[Runner] = []
    for name in names:
        if name == "openvino":
            runners += [open_runner(path, name, "cpu", precision=precision) for precision in precisions or (None,)]
        else:
            runners.append(open_runner(path, name, device))
    return runners


def _machine() -> dict[str, str]:
    """What a figure must be read with."""
    versions = {"spt-deploy": __version__, "python": platform.python_version()}
    for module in ("torch", "onnxruntime", "openvino"):
        if importlib.util.find_spec(module) is not None:
            versions[module] = str(importlib.import_module(module).__version__).split("-")[0]
    date = datetime.now(timezone.utc).date().isoformat()
    return {"processor": _processor(), "cores": str(os.cpu_count()), "date": date} | versions


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

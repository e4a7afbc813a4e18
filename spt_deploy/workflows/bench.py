"""``spt-deploy bench``: artefacts and runtimes side by side, in one run, at a known share of kept tokens."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

from spt_deploy.bench import Timing, Turns, check_rounds
from spt_deploy.errors import UsageError
from spt_deploy.runtimes import Runner
from spt_deploy.runtimes.registry import artefact_kind, check_precisions, lanes_for_throughput
from spt_deploy.version import __version__
from spt_deploy.workflows.artefacts import find_artefact, runnable_kinds
from spt_deploy.workflows.bench_contenders import (
    Contender,
    contenders_of,
    inputs_for,
    peers,
    runners_of,
    training_steps,
)
from spt_deploy.workflows.bench_memory import peak_memory
from spt_deploy.workflows.bench_profile import PROFILED, OperatorTime, check_profiled, profile
from spt_deploy.workflows.bench_work import Inputs


@dataclass(frozen=True)
class BenchRow:
    """One artefact in one runtime, at one batch size and share of kept tokens.

    Attributes:
        timing: see `Timing`; the first row of a batch size is what the others are held against.
        batch: images a batch; a run is ``at_once`` of them, and the timing is of all of them together.
        select_ratio: mean share of tokens kept in the SPA blocks; None of a model without them.
        gmacs: multiply-accumulates of one image at that share, in 10^9; what it must do, not what it was seen to do.
        at_once: batches that run at the same time, or one after the other where a runtime takes no more.
        memory_mib: see `peak_memory`; None where it was not measured.
        profile: see `bench_profile.profile`; empty where it was not asked for.
    """

    timing: Timing
    batch: int
    select_ratio: float | None
    gmacs: float
    at_once: int = 1
    memory_mib: float | None = None
    profile: tuple[OperatorTime, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return self.timing.to_dict() | {
            "batch": self.batch,
            "at_once": self.at_once,
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
    throughput: bool = False,
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
        profiled: also measure how long each operator takes, of ONNX files in ONNX Runtime and OpenVINO.
        training: time a step of training instead (forward, backward, update), of checkpoints in PyTorch.
        throughput: run several batches at the same time, each on its share of the cores, as `infer` does with a
            recording: more images a second, and each later.
        status: hears what is being done.

    Raises:
        InputError: when no artefact is named or found, the artefacts take images of different sizes, ``data`` cannot be
            used, or an artefact does not say what it selects and no ratios are given.
        UsageError: when an argument is out of range.
        RuntimeMissingError: when no runtime that takes an artefact is installed.
    """
    if any(not 0 < ratio <= 1 for ratio in ratios):
        raise UsageError(f"ratios are {', '.join(map(str, ratios))}; expected numbers above 0 and at most 1")
    if not batches or any(size < 1 for size in batches):
        raise UsageError(f"batches are {', '.join(map(str, batches)) or 'none'}; expected positive numbers")
    paths = list(artefacts)
    if training and (runtimes or any(artefact_kind(path) != "checkpoint" for path in paths)):
        raise UsageError("training is timed of checkpoints, in PyTorch; name checkpoints only, and no runtime")
    if training and not ratios:
        raise UsageError("a training step draws its selection at random; give the shares to force with --ratio")
    if not paths:
        found = find_artefact(None, ("checkpoint",) if training else runnable_kinds())
        status(found.why)
        paths = [found.path]
    if training and (data or memory or profiled or precisions or throughput):
        raise UsageError(
            "a step of training is timed on random images, without memory, profile, precision and throughput"
        )
    if throughput and profiled:
        raise UsageError("a profile is of one batch on all cores; leave out --profile or --throughput")
    check_rounds(rounds)
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}; expected at least 1")
    repeats = min(repeats, rounds)
    at_once = lanes_for_throughput() if throughput else 1
    turns = {size: Turns(size * at_once) for size in batches}
    inputs: dict[int, Inputs] = {}  # by batch size: those of a folder go on where the last repeat ended
    contenders: dict[int, list[Contender]] = {}
    left_out = cache(status)  # each image is named once, whatever the batch sizes
    for number in range(repeats):
        contenders.clear()  # before the next are opened
        share = rounds // repeats + (number < rounds % repeats)
        said = _counted(share, "round") + (f", repeat {number + 1} of {repeats}" if repeats > 1 else "")
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(at_once))
            runners: list[Runner] = []
            if not training:
                runners += [r for path in paths for r in runners_of(path, runtimes, device, precisions, throughput)]
                check_precisions(precisions, runners)
                check_profiled(profiled, runners)
            for runner in runners:
                runner.expect(batches[0])
                stack.enter_context(runner)
            for batch in turns:
                if training:
                    contenders[batch] = training_steps(paths, batch, ratios, device)
                else:
                    for runner in runners:
                        runner.expect(batch)
                    if batch not in inputs:
                        inputs[batch] = inputs_for(runners, batch, data, left_out)
                    contenders[batch] = contenders_of(runners, inputs[batch], ratios)
                status(f"batch {batch}: {_counted(len(contenders[batch]), 'contender')}, {said}")
                runs = {each.name: each.together(at_once, pool) for each in contenders[batch]}
                turns[batch].take(runs, share, on_round=partial(_next_round, inputs.get(batch)))
    rows: list[BenchRow] = []
    for batch, turn in turns.items():
        timings = turn.timings((each.name for each in contenders[batch]), peers(contenders[batch]))
        for contender, timing in zip(contenders[batch], timings, strict=True):
            row = BenchRow(timing, batch, contender.select_ratio, contender.gmacs, at_once)
            if memory and contender.runner:
                status(f"memory of {contender.name}")
                row = replace(row, memory_mib=_memory(contender.runner, batch, throughput))
            if profiled and contender.runner and contender.runner.runtime in PROFILED:
                status(f"profile of {contender.name}")
                now = inputs[batch].taken_by(contender.runner.facts.image_input)[inputs[batch].place]
                row = replace(row, profile=tuple(profile(contender.runner, now, contender.masks)))
            rows.append(row)
    return BenchReport(tuple(rows), _machine())


def _next_round(inputs: Inputs | None, done: int) -> None:
    """Give all contenders the next batch, where there are several."""
    if inputs:
        inputs.next_round()


def _counted(number: int, noun: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _memory(runner: Runner, batch: int, throughput: bool) -> float:
    return peak_memory(runner.path, runner.runtime, runner.device, batch, runner.computes_in or "", throughput)


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

"""``spt-deploy bench``: artefacts and runtimes side by side, in one run, at a known share of kept tokens."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spt_deploy.bench import Timing, take_turns
from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_deploy.parity.checks import label_of
from spt_deploy.parity.probe import open_probe
from spt_deploy.runtimes import Runner, open_runner
from spt_deploy.runtimes.registry import RUNTIME_NAMES, RUNTIMES, artefact_kind, is_installed
from spt_deploy.version import __version__
from spt_deploy.workflows.artefacts import find_artefact, runnable_kinds
from spt_deploy.workflows.bench_work import forced_mask, gmacs, one_size


@dataclass(frozen=True)
class BenchRow:
    """One artefact in one runtime, at one batch size and share of kept tokens.

    Attributes:
        timing: see `Timing`; the first row of a batch size is what the others are held against.
        batch: images a run.
        select_ratio: mean share of tokens kept in the SPA blocks; None of a model without them.
        gmacs: multiply-accumulates of one image at that share, in 10^9; what it must do, not what it was seen to do.
    """

    timing: Timing
    batch: int
    select_ratio: float | None
    gmacs: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return self.timing.to_dict() | {
            "batch": self.batch,
            "select_ratio": self.select_ratio,
            "gmacs": self.gmacs,
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
    batches: Sequence[int] = (1, 8),
    ratios: Sequence[float] = (),
    rounds: int = 20,
    training: bool = False,
    status: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Time artefacts on random images, contenders taking turns.

    Args:
        artefacts: checkpoints, ONNX files and engines, of any models; none takes the newest artefact.
        runtimes: only these; empty takes every installed runtime that takes the artefact.
        device: of the runtimes that have a choice.
        batches: images a run; each is a comparison of its own.
        ratios: shares of kept tokens in (0, 1] to force on models with SPA blocks; empty leaves them their own
            selection, which on random images says little about real ones.
        rounds: timed, of each batch size.
        training: time a step of training instead (forward, backward, update), of checkpoints in PyTorch.
        status: hears what is being done.

    Raises:
        InputError: when no artefact is named or found, or the artefacts take images of different sizes.
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
    rows: list[BenchRow] = []
    with ExitStack() as stack:
        runners = [] if training else [stack.enter_context(r) for p in paths for r in _runners(p, runtimes, device)]
        for batch in batches:
            if training:
                from spt_deploy.workflows.bench_training import training_contenders

                contenders, about = training_contenders(paths, batch, ratios, device)
            else:
                size = one_size([runner.facts.preprocessing.size for runner in runners])
                images = np.random.default_rng(0).standard_normal((batch, 3, *size), dtype=np.float32)
                contenders, about = _contenders(runners, images, ratios)
            status(f"batch {batch}: {len(contenders)} contenders, {rounds} rounds")
            for timing in take_turns(contenders, images=batch, rounds=rounds):
                rows.append(BenchRow(timing, batch, *about[timing.name]))
    return BenchReport(tuple(rows), _machine())


def _contenders(
    runners: Sequence[Runner], images: npt.NDArray[np.float32], ratios: Sequence[float]
) -> tuple[dict[str, Callable[[], object]], dict[str, tuple[float | None, float]]]:
    """Runs by name, and the select ratio and GMACs of an image of each."""
    runs: dict[str, Callable[[], object]] = {}
    about: dict[str, tuple[float | None, float]] = {}
    for runner in runners:
        config, size = runner.facts.model, runner.facts.preprocessing.size
        if not config.backbone.spa_blocks:
            name = label_of(runner)
            runs[name] = lambda runner=runner: runner.infer(images)  # type: ignore[misc]
            about[name] = (None, gmacs(config, size, ()))
        elif not ratios:
            name = f"{label_of(runner)}, its own selection"
            runs[name] = lambda runner=runner: runner.infer(images)  # type: ignore[misc]
            kept = [float(k) for k in runner.infer(images)["select_ratio"].mean(0)]
            about[name] = (float(np.mean(kept)), gmacs(config, size, kept))
        else:
            probe = open_probe(runner)
            tokens = [score.shape[1] for score in probe.run(images).scores]
            for ratio in ratios:
                masks = [forced_mask(len(images), count, ratio) for count in tokens]
                name = f"{label_of(runner)}, {ratio:.0%} kept"
                runs[name] = lambda probe=probe, masks=masks: probe.run(images, masks)  # type: ignore[misc]
                exact = [float(mask.mean()) for mask in masks]
                about[name] = (float(np.mean(exact)), gmacs(config, size, exact))
    return runs, about


def _runners(path: Path, runtimes: Sequence[str], device: str) -> list[Runner]:
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
    return [open_runner(path, name, "cpu" if name == "openvino" else device) for name in names]


def _machine() -> dict[str, str]:
    """What a figure must be read with."""
    versions = {"spt-deploy": __version__, "python": platform.python_version()}
    for module in ("torch", "onnxruntime", "openvino"):
        if importlib.util.find_spec(module) is not None:
            versions[module] = str(importlib.import_module(module).__version__).split("-")[0]
    return {"processor": _processor(), "cores": str(os.cpu_count())} | versions


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

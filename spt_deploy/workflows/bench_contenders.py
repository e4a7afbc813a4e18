"""What a bench lets take turns: each artefact in each of its runtimes and precisions, at each forced share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spt_deploy.config import BackboneConfig
from spt_deploy.errors import InputError, RuntimeMissingError, UsageError
from spt_deploy.image_input import Images
from spt_deploy.parity.checks import label_of
from spt_deploy.parity.probe import Masks, Probe, open_probe
from spt_deploy.runtimes import Runner, open_runner
from spt_deploy.runtimes.registry import RUNTIME_NAMES, RUNTIMES, artefact_kind, is_installed
from spt_deploy.workflows.bench_work import Inputs, folder_inputs, forced_mask, gmacs, one_size, random_inputs


@dataclass(frozen=True)
class Contender:
    """What takes its turn.

    Attributes:
        name: of it.
        group: contenders of one group are held against the first of it.
        run: one run.
        select_ratio: mean share of tokens kept in the SPA blocks; None of a model without them.
        gmacs: multiply-accumulates of one image at that share, in 10^9.
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

    def together(self, number: int, pool: Executor) -> Callable[[], object]:
        """So many runs: at the same time where the runner has lanes, else one after the other.

        Args:
            number: of runs.
            pool: of as many threads.
        """
        several = self.runner is not None and self.runner.lanes > 1
        each = pool.map if several else map
        return lambda: list(each(lambda _: self.run(), range(number)))


def training_steps(paths: Sequence[Path], batch: int, ratios: Sequence[float], device: str) -> list[Contender]:
    """A step of training of each checkpoint, at each share."""
    from spt_deploy.workflows.bench_training import training_contenders

    runs, about = training_contenders(paths, batch, ratios, device)
    return [Contender(name, "", run, *about[name]) for name, run in runs.items()]


def peers(contenders: Sequence[Contender]) -> dict[str, str]:
    """By name, the first contender of the same group."""
    first: dict[str, str] = {}
    return {each.name: first.setdefault(each.group, each.name) for each in contenders}


def inputs_for(
    runners: Sequence[Runner], batch: int, data: Path | None, status: Callable[[str], None] = lambda text: None
) -> Inputs:
    """What all of these run on: the images of a folder, or noise if there is none.

    Raises:
        InputError: when the runners take images of different sizes, or ``data`` cannot be used.
    """
    size = one_size([runner.facts.preprocessing.size for runner in runners])
    if data is None:
        return random_inputs(batch, size)
    if len({runner.facts.preprocessing for runner in runners}) > 1:
        raise InputError("the artefacts prepare images differently, so that --data cannot give all of them the same")
    return folder_inputs(data, runners[0].facts.preprocessing, batch, status)


def contenders_of(runners: Sequence[Runner], inputs: Inputs, ratios: Sequence[float]) -> list[Contender]:
    """The runners, which are open and expect such batches: one each, or one for each share of a model with SPA blocks.

    Raises:
        InputError: when a model does not say what it selects, and no ratios are given.
    """
    found: list[Contender] = []
    for runner in runners:
        config, size = runner.facts.model, runner.facts.preprocessing.size
        label, group = label_of(runner), runner.name
        if any(each.name.startswith(label) and each.runner is not runner for each in found):
            label = label.replace(runner.path.name, str(runner.path), 1)
        batches = inputs.taken_by(runner.facts.image_input)
        run = partial(_infer, runner, batches, inputs)
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
                room = [_room(config.backbone, count) for count in tokens]
                masks = [forced_mask(len(now), n, min(ratio, most)) for n, most in zip(tokens, room, strict=True)]
                exact = [float(mask.mean()) for mask in masks]
                forced = partial(_infer_forced, probe, masks, batches, inputs)
                kept = f"{ratio:.0%} kept" if min(room) >= ratio else f"{np.mean(exact):.0%} kept, for want of room"
                name, work = f"{label}, {kept}", gmacs(config, size, exact)
                found.append(Contender(name, group, forced, float(np.mean(exact)), work, runner, masks))
    return _told_apart(found)


def _room(backbone: BackboneConfig, tokens: int) -> float:
    """Share of a block's tokens that can be kept; less than 1 in static packing."""
    return min(1.0, backbone.static_slots(tokens) / tokens) if str(backbone.packing) == "static" else 1.0


def _infer(runner: Runner, batches: Sequence[Images], inputs: Inputs) -> object:
    return runner.infer(batches[inputs.place])


def _infer_forced(probe: Probe, masks: Masks, batches: Sequence[Images], inputs: Inputs) -> object:
    return probe.run(batches[inputs.place], masks)


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


def runners_of(
    path: Path, runtimes: Sequence[str], device: str, precisions: Sequence[str], throughput: bool = False
) -> list[Runner]:
    """An artefact in each runtime that takes it and is installed, in each precision that the runtime has.

    Args:
        path: of the artefact.
        runtimes: only these; empty takes all.
        device: of the runtimes that have a choice.
        precisions: of openvino; empty takes the artefact's own.
        throughput: see `open_runner`.

    Raises:
        InputError: when it is no artefact.
        UsageError: when a runtime is unknown.
        RuntimeMissingError: when none is left.
    """
    for name in runtimes:
        if name not in RUNTIME_NAMES:
            raise UsageError(f"runtime is {name!r}; known are {', '.join(RUNTIME_NAMES)}")
    kind = artefact_kind(path)
    if kind == "engine":
        return [open_runner(path)]
    fitting = RUNTIMES[kind]
    names = [n for n in fitting if n in runtimes or (not runtimes and is_installed(n))]
    if not names:
        remedy = "name one of them with --runtime" if runtimes else f"pip install {fitting[-1]}"
        raise RuntimeMissingError(
            f"no runtime that takes {path.name} is left; it runs in {', '.join(fitting)}; {remedy}"
        )
    runners: list[Runner] = []
    for name in names:
        if name == "openvino":
            runners += [
                open_runner(path, name, "cpu", throughput=throughput, precision=precision)
                for precision in precisions or (None,)
            ]
        else:
            runners.append(open_runner(path, name, device, throughput=throughput))
    return runners

"""Which library builds an engine of a file, and for which GPU; and what is missing when none can."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from spt_deploy.engine.description import PORTABLE
from spt_deploy.engine.library import EngineRuntime, Gpu, Library, current_gpu, is_installed, load_library
from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.model.shapes import stage_sizes

RuntimeChoice = Literal["auto", "tensorrt", "tensorrt-rtx"]
RUNTIME_CHOICES: tuple[RuntimeChoice, ...] = get_args(RuntimeChoice)
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121", PORTABLE)  # of TensorRT-RTX

_WITHOUT_GPU = (
    "TensorRT-RTX builds engines for GeForce and RTX cards without a GPU: pip install 'spt-deploy[rtx]', "
    "spt-deploy export --packing static, and spt-deploy build-engine --runtime tensorrt-rtx"
)


_MOST_OF_TOPK = 3840  # elements that TensorRT's TopK lists


@dataclass(frozen=True)
class Target:
    """What builds, and for what.

    Attributes:
        library: TensorRT or TensorRT-RTX.
        gpu: of this machine; None without one.
        capability: that the engine will run on: ``sm_89``, or ``portable``.
    """

    library: Library
    gpu: Gpu | None
    capability: str


def choose_target(runtime: str, arch: str | None, facts: ModelFacts, source: Path) -> Target:
    """Decide.

    Args:
        runtime: ``tensorrt``, ``tensorrt-rtx``, or ``auto``: TensorRT where it and a GPU are, else TensorRT-RTX where
            it is and the file suits it.
        arch: one of ``ARCHS``; None is this machine's GPU, or ``portable`` where there is none.
        facts: of the file.
        source: the file, for sentences.

    Raises:
        UsageError: when an argument is unknown, or the file does not suit the library.
        RuntimeMissingError: when the library, or the GPU that it needs, is missing.
    """
    if runtime not in RUNTIME_CHOICES:
        raise UsageError(f"runtime is {runtime!r}; known are {', '.join(RUNTIME_CHOICES)}")
    if arch is not None and arch not in ARCHS:
        raise UsageError(f"arch is {arch!r}; known are {', '.join(ARCHS)}")
    _check_selection(facts, source)
    gpu = current_gpu()
    name = _named(runtime, facts, gpu)
    if name == "tensorrt-rtx":
        if not _suits_rtx(facts):
            raise UsageError(
                f"{source} is packed {facts.model.backbone.packing}, and TensorRT-RTX needs static shapes: "
                f"spt-deploy export {source.with_suffix('.pt').name} --packing static"
            )
        return Target(load_library(name), gpu, arch or (gpu.capability if gpu else PORTABLE))
    if arch is not None:
        raise UsageError(
            f"arch is {arch}, and TensorRT builds for the GPU at hand; leave --arch out, or use --runtime tensorrt-rtx"
        )
    try:
        library = load_library(name)
    except RuntimeMissingError as error:
        raise RuntimeMissingError(f"{error}, on a machine with an NVIDIA GPU; {_WITHOUT_GPU}") from error
    if gpu is None:
        raise RuntimeMissingError(
            f"TensorRT {library.version} builds an engine on the NVIDIA GPU that runs it, and PyTorch sees none here; "
            f"build where it is; or {_WITHOUT_GPU}"
        )
    return Target(library, gpu, gpu.capability)


def _check_selection(facts: ModelFacts, source: Path) -> None:
    """Raise a UsageError where a selection counts further than TensorRT does, from the nearer end of the scores."""
    backbone = facts.model.backbone
    for stage in backbone.spa_stages:
        height, width = stage_sizes(facts.preprocessing.size)[stage - 1]
        tokens, length = height * width, backbone.window**2
        fitting = math.floor(100 * (_MOST_OF_TOPK // length * length) / tokens) / 100
        ranked = backbone.best_count(tokens) if backbone.selector == "topk" else tokens
        slots = min(tokens, backbone.static_slots(tokens)) if str(backbone.packing) == "static" else tokens
        for kept, remedy in ((ranked, ""), (slots, f"with --capacity {fitting:g} or less, or ")):
            if min(kept, tokens - kept + 1) > _MOST_OF_TOPK:
                raise UsageError(
                    f"{source} selects the best {kept} of the {tokens} tokens of stage {stage}, and TensorRT lists no "
                    f"more than {_MOST_OF_TOPK}; export it {remedy}at a smaller --imgsz"
                )


def _named(runtime: str, facts: ModelFacts, gpu: Gpu | None) -> EngineRuntime:
    if runtime == "auto":
        has_tensorrt = is_installed("tensorrt") and gpu is not None
        return "tensorrt-rtx" if not has_tensorrt and is_installed("tensorrt-rtx") and _suits_rtx(facts) else "tensorrt"
    return "tensorrt-rtx" if runtime == "tensorrt-rtx" else "tensorrt"


def _suits_rtx(facts: ModelFacts) -> bool:
    """TensorRT-RTX has neither plugins nor NonZero: selection must have static shapes, or there must be none."""
    backbone = facts.model.backbone
    return not backbone.spa_blocks or str(backbone.packing) == "static"

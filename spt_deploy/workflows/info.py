"""``spt-deploy info``: what an artefact is, and what running it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spt_deploy.config import BackboneConfig, ModelConfig, check_image_size
from spt_deploy.digest import sha256_of
from spt_deploy.engine.description import EngineDescription, read_description, read_plan
from spt_deploy.errors import ArtefactError
from spt_deploy.facts import ModelFacts
from spt_deploy.model.complexity import Complexity, complexity, kept_tokens
from spt_deploy.runtimes.onnx_file import read_facts
from spt_deploy.runtimes.registry import RUNTIMES, artefact_kind, is_installed
from spt_deploy.workflows.artefacts import find_artefact


@dataclass(frozen=True)
class Work:
    """One forward pass of one image, under an assumption about the selection.

    Attributes:
        what: the assumption, for a table's head: ``all kept``, ``25 % kept``, ``kept as measured``.
        select_ratio: of each SPA block by name.
        cost: MACs and parameters by place and part.
    """

    what: str
    select_ratio: dict[str, float]
    cost: Complexity

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "what": self.what,
            "select_ratio": self.select_ratio,
            "macs": self.cost.total.macs,
            "components": [component._asdict() for component in self.cost.components],
        }


@dataclass(frozen=True)
class Info:
    """What an artefact is.

    Attributes:
        path: of the artefact.
        why: how it was found; empty when it was named.
        kind: ``checkpoint``, ``onnx`` or ``engine``.
        size_mb: of the file, in 10^6 bytes.
        facts: what it says of itself; the SHA-256 of a checkpoint is that of the file.
        image_size: (height, width) in pixels that the work is counted at.
        work: with everything kept, and then as asked for or measured.
        swin_macs: of the same model without selection.
        runtimes: those that take this kind of artefact, and whether they are installed here.
        engine: what lies beside an engine; None of other kinds.
    """

    path: Path
    why: str
    kind: str
    size_mb: float
    facts: ModelFacts
    image_size: tuple[int, int]
    work: tuple[Work, ...]
    swin_macs: int
    runtimes: dict[str, bool]
    engine: EngineDescription | None = None

    @property
    def parameters(self) -> int:
        """Numbers that training changes."""
        return self.work[0].cost.total.parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "size_mb": self.size_mb,
            "parameters": self.parameters,
            **self.facts.to_dict(),
            "image_size": self.image_size,
            "work": [work.to_dict() for work in self.work],
            "swin_macs": self.swin_macs,
            "runtimes": self.runtimes,
            "engine": self.engine.to_dict() if self.engine else None,
        }


def info(
    artefact: Path | None = None,
    *,
    select_ratio: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> Info:
    """Look at an artefact.

    Args:
        artefact: a checkpoint, an exported ONNX file or an engine; None takes the newest, see ``find_artefact``.
        select_ratio: share of tokens that SPA blocks keep, for counting the work; None takes what training measured in
            validation, where a checkpoint carries that.
        image_size: (height, width) in pixels to count the work at; None takes the artefact's.

    Raises:
        InputError: when there is no artefact.
        ArtefactError: when the file is no artefact of this toolkit, or damaged.
        UsageError: when ``select_ratio`` or ``image_size`` is out of range.
    """
    path, why = find_artefact(artefact)
    kind = artefact_kind(path)
    engine = None
    training: Mapping[str, Any] = {}
    if kind == "checkpoint":
        from spt_deploy.model.checkpoint import load_checkpoint  # the only kind that needs PyTorch

        checkpoint = load_checkpoint(path)
        facts = replace(checkpoint.facts, checkpoint_sha256=sha256_of(path))
        training = checkpoint.training
    elif kind == "engine":
        engine = read_description(path)
        read_plan(path, engine)  # a description of another file would tell of the wrong one
        facts = engine.facts
    else:
        facts = read_facts(path)
    size = check_image_size(image_size or facts.preprocessing.size)
    work = _work(facts.model, size, select_ratio, training)
    if kind == "checkpoint":
        held = sum(tensor.numel() for tensor in checkpoint.weights.values())
        if held != work[0].cost.total.parameters:
            raise ArtefactError(
                f"{path} holds {held} parameters, and {facts.model.backbone.name} has "
                f"{work[0].cost.total.parameters}; the checkpoint is damaged, write it again"
            )
    return Info(
        path=path,
        why=why,
        kind=kind,
        size_mb=path.stat().st_size / 1e6,
        facts=facts,
        image_size=size,
        work=work,
        swin_macs=complexity(_without_selection(facts.model), size).total.macs,
        runtimes={name: is_installed(name) for name in ((engine.runtime,) if engine else RUNTIMES[kind])},
        engine=engine,
    )


def _work(
    config: ModelConfig, image_size: tuple[int, int], asked: float | None, training: Mapping[str, Any]
) -> tuple[Work, ...]:
    backbone = config.backbone
    if not backbone.spa_blocks:
        return (Work("no selection", {}, complexity(config, image_size)),)
    assumptions: list[tuple[str, float | Sequence[float]]] = [("all kept", 1.0)]
    measured = measured_select_ratio(training, backbone)
    if asked is not None:
        assumptions.append((f"{100 * asked:g} % kept", asked))
    elif backbone.selector == "topk":
        assumptions.append((f"{100 * backbone.keep_ratio:g} % kept, always", backbone.keep_ratio))
    elif measured is not None:
        assumptions.append(("kept as measured", measured))
    work = []
    for what, ratio in assumptions:
        cost = complexity(config, image_size, kept_tokens(backbone, image_size, ratio))
        ratios = [ratio] * len(backbone.spa_blocks) if isinstance(ratio, float) else ratio
        work.append(Work(what, dict(zip(backbone.spa_blocks, ratios, strict=True)), cost))
    return tuple(work)


def measured_select_ratio(training: Mapping[str, Any], backbone: BackboneConfig) -> tuple[float, ...] | None:
    """Share of tokens that each SPA block kept in the last validation of a training run.

    Args:
        training: of a checkpoint; ``best.pt`` says it in a line, ``last.pt`` in its history.
        backbone: whose blocks are meant.

    Returns:
        One ratio a block; None where the checkpoint does not say, or says what is no share.
    """
    try:
        by_block = (
            training["select_ratio"] if "select_ratio" in training else training["history"][-1]["val"]["select_ratio"]
        )
        ratios = tuple(float(by_block[name]) for name in backbone.spa_blocks)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return ratios if all(0 <= ratio <= 1 for ratio in ratios) else None


def _without_selection(config: ModelConfig) -> ModelConfig:
    return replace(config, backbone=replace(config.backbone, spa_stages=()))

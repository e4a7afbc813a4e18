"""Checkpoints and exported files that several tests share: made once a session, of models with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from spt_deploy.config import Packing, Task
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes.torch_runner import deployed_checkpoint
from spt_export.exporter import SelectionOutputs, to_onnx
from tests.spt_deploy.model.models import make_model


class Exported(NamedTuple):
    """A checkpoint and the ONNX file made from it, without the exporter's own check."""

    checkpoint: Path
    onnx: Path


def make_exported(
    folder: Path,
    size: tuple[int, int],
    task: Task = "classify",
    packing: Packing = "per-image",
    selection: SelectionOutputs = "summary",
    runtime_threshold: bool = False,
    model: SptModel | None = None,
    **backbone: Any,
) -> Exported:
    """A model, or a randomised one, as checkpoint and as ONNX file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Exported(folder / "model.pt", folder / "model.onnx")
    save_checkpoint(made.checkpoint, model or make_model(task=task, **backbone), Preprocessing.for_task(task, size))
    loaded = deployed_checkpoint(made.checkpoint, packing)
    facts = replace(loaded.facts, runtime_threshold=runtime_threshold)
    onnx.save(to_onnx(loaded.build(), facts, selection), made.onnx)
    return made

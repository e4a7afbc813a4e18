"""Checkpoints and exported files that several tests share: made once a process, of models with random weights."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from spt_deploy.config import Packing, Task
from spt_deploy.facts import METADATA_KEY
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes.onnx_file import facts_of
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
    uint8_input: bool = False,
    model: SptModel | None = None,
    **backbone: Any,
) -> Exported:
    """A model, or a randomised one, as checkpoint and as ONNX file in ``folder``; the same one is exported once."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Exported(folder / "model.pt", folder / "model.onnx")
    how = size, task, packing, selection, runtime_threshold, uint8_input
    if model is not None:
        _export(made, model, *how)
        return made
    for file, content in zip(made, _exported(*how, **backbone), strict=True):
        file.write_bytes(content)
    return made


@functools.cache
def _exported(size: tuple[int, int], task: Task, *how: Any, **backbone: Any) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        made = Exported(Path(folder, "model.pt"), Path(folder, "model.onnx"))
        _export(made, make_model(task=task, **backbone), size, task, *how)
        return [file.read_bytes() for file in made]


def _export(
    made: Exported,
    model: SptModel,
    size: tuple[int, int],
    task: Task,
    packing: Packing,
    selection: SelectionOutputs,
    runtime_threshold: bool,
    uint8_input: bool,
) -> None:
    save_checkpoint(made.checkpoint, model, Preprocessing.for_task(task, size))
    loaded = deployed_checkpoint(made.checkpoint, packing)
    facts = replace(loaded.facts, runtime_threshold=runtime_threshold, uint8_input=uint8_input)
    onnx.save(to_onnx(loaded.build(), facts, selection), made.onnx)


def save_taking_numbers(source: Path, path: Path) -> Path:
    """The twin of a file that takes bytes: the same graph without its normalisation, written to ``path``."""
    model = onnx.load(source)
    graph, facts = model.graph, facts_of(model, source.name)
    (last,) = (node for node in graph.node if "normalise.offset" in node.input)
    graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, *facts.preprocessing.size])
    )
    for node in list(graph.node)[list(graph.node).index(last) + 1 :]:
        for index, name in enumerate(node.input):
            if name == last.output[0]:
                node.input[index] = "images"
    for node in list(graph.node)[: list(graph.node).index(last) + 1]:
        graph.node.remove(node)
    onnx.helper.set_model_props(model, {METADATA_KEY: replace(facts, uint8_input=False).to_json()})
    onnx.save(model, path)
    return path

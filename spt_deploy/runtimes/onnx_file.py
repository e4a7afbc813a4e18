"""Reading an exported ONNX file: is it ours, what does it say of itself, and how to run it without functions."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from spt_deploy.errors import ArtefactError
from spt_deploy.facts import METADATA_KEY, ModelFacts


def load_onnx(path: Path) -> onnx.ModelProto:
    """The file's model.

    Raises:
        ArtefactError: when there is no such file or it is no whole ONNX file.
    """
    if not path.is_file():
        raise ArtefactError(f"there is no file {path}; give an ONNX file that exists, or make one: spt-deploy export")
    try:
        proto = onnx.load(path)
    except (DecodeError, ValueError) as error:
        raise ArtefactError(f"{path} is no ONNX file or is cut short; export it again: spt-deploy export") from error
    if not proto.graph.node:
        raise ArtefactError(f"{path} holds no graph; export it again: spt-deploy export")
    return proto


def facts_of(proto: onnx.ModelProto, where: str) -> ModelFacts:
    """What the model says of itself; ``where`` names the file in errors.

    Raises:
        ArtefactError: when this toolkit did not write the file.
    """
    for entry in proto.metadata_props:
        if entry.key == METADATA_KEY:
            return ModelFacts.from_json(entry.value, where)
    raise ArtefactError(
        f"{where} is an ONNX file that spt-deploy did not write (no {METADATA_KEY!r} in its metadata); "
        "make one from a checkpoint: spt-deploy export"
    )


def read_facts(path: Path) -> ModelFacts:
    """What the file says of itself.

    Raises:
        ArtefactError: when the file cannot be read or this toolkit did not write it.
    """
    return facts_of(load_onnx(path), str(path))


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its functions inlined, for readers that know none (OpenVINO)."""
    from onnx import inliner

    return inliner.inline_local_functions(proto)

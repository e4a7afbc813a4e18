"""Reading an exported ONNX file: is it ours, what does it say of itself, and how to run it without functions."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

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
    """What the file says of itself, without reading its weights.

    Raises:
        ArtefactError: when the file cannot be read or this toolkit did not write it.
    """
    try:
        around, has_graph = _around_the_graph(path)
    except OSError:
        load_onnx(path)  # says why
        raise
    if not has_graph:
        load_onnx(path)  # says what is the matter
    return facts_of(around, str(path))


def _around_the_graph(path: Path) -> tuple[onnx.ModelProto, bool]:
    """The file's model without its graph, and whether it has one.

    A message of protobuf is a row of fields, each with its number, its kind and, here, its length: those that are not
    wanted can be passed over (protobuf.dev/programming-guides/encoding).
    """
    wanted = bytearray()
    has_graph = False
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            tag = _varint(file)
            number, kind = tag >> 3, tag & 7
            start = file.tell()
            if kind == _VARINT:
                _varint(file)
                wanted += _field(file, tag, start)
            elif kind == _BYTES:
                length = _varint(file)
                end = file.tell() + length
                if end > size:
                    return onnx.ModelProto(), False
                if number == _GRAPH:
                    has_graph = length > 0
                    file.seek(end)
                else:
                    file.seek(end)
                    wanted += _field(file, tag, start)
            else:
                return onnx.ModelProto(), False  # no kind that an ONNX model has
    try:
        return onnx.ModelProto.FromString(bytes(wanted)), has_graph
    except DecodeError:
        return onnx.ModelProto(), False


_VARINT, _BYTES = 0, 2  # kinds of field
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            return value
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value


def _field(file: BinaryIO, tag: int, start: int) -> bytes:
    """The bytes of a field that ends where the file stands, with its tag."""
    end = file.tell()
    file.seek(start)
    head = bytearray()
    while tag > 0x7F:
        head.append(tag & 0x7F | 0x80)
        tag >>= 7
    head.append(tag)
    return bytes(head) + file.read(end - start)


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its functions inlined, for readers that know none (OpenVINO)."""
    from onnx import inliner

    if not proto.functions:
        return proto
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    del light.graph.initializer[:]  # the inliner copies what it is given several times over
    result = inliner.inline_local_functions(light)
    result.graph.initializer.extend(proto.graph.initializer)
    return result

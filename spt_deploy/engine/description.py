"""What belongs to an engine and is not in it: ``FILE.engine.json``, and whether an engine can run here."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spt_deploy.atomic import write_json
from spt_deploy.engine.batches import BatchRange
from spt_deploy.engine.library import ENGINE_RUNTIMES, EngineRuntime, Gpu
from spt_deploy.errors import ArtefactError, InputError, RuntimeMissingError, UsageError
from spt_deploy.facts import ModelFacts

FORMAT = 1  # of the JSON document
PORTABLE = "portable"
_KINDS = {"str": str, "int": int, "bool": bool}
_FORMS = {
    "runtime": "|".join(ENGINE_RUNTIMES),
    "runtime_version": r"\d[\w.]*",
    "capability": rf"sm_\d+|{PORTABLE}",
    "onnx": r"[^/]+",
}
# What a portable engine of TensorRT-RTX runs on (its documentation, "CPU-Only AOT and TensorRT-RTX Engines").
OLDEST_PORTABLE = 80
OLDEST_COMPATIBLE = 80  # of TensorRT's hardware-compatible engines, wherever they were built (NvInfer.h, kAMPERE_PLUS)


@dataclass(frozen=True)
class EngineDescription:
    """An engine, as its builder describes it.

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        runtime_version: of the library that built it.
        precision: ``fp32``, ``fp16`` or ``bf16``; found in the built network, not taken from the request.
        narrow_layers: matrix products, convolutions and plugins that compute in it; all of them in an fp32 engine.
        seen_in: where the precision was seen: in the ``engine``, or in the ``network`` where no GPU can open an engine.
        gpu: name of the GPU that it was built on; empty where it was built without one.
        capability: compute capability that it runs on, ``sm_89``, or ``portable``.
        batch: images a run.
        version_compatible: runs in later versions of the library's same major version.
        hardware_compatible: runs on all GPUs from Ampere on.
        onnx: name of the ONNX file that it was built from.
        onnx_sha256: of that file.
        plan_bytes: size of the engine file.
        plan_sha256: of the engine file.
        command: that builds it again.
        facts: of the model.
    """

    runtime: EngineRuntime
    runtime_version: str
    precision: str
    narrow_layers: int
    seen_in: str
    gpu: str
    capability: str
    batch: BatchRange
    version_compatible: bool
    hardware_compatible: bool
    onnx: str
    onnx_sha256: str
    plan_bytes: int
    plan_sha256: str
    command: str
    facts: ModelFacts

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {"format": FORMAT} | asdict(self) | {"batch": str(self.batch), "facts": self.facts.to_dict()}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> EngineDescription:
        """The inverse of ``to_dict``; ``where`` names the file in errors.

        Raises:
            ArtefactError: when the values describe no engine, or one of a later format.
        """
        try:
            if values["format"] != FORMAT:
                raise ArtefactError(
                    f"{where} has format {values['format']}, this spt-deploy reads {FORMAT}; update it, or build again"
                )
            rest = {k: v for k, v in values.items() if k not in ("format", "batch", "facts")}
            _check_values(rest)
            facts = ModelFacts.from_dict(values["facts"], where)
            return cls(**rest, batch=BatchRange.parse(values["batch"]), facts=facts)
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise ArtefactError(f"{where} is no description of an engine: {error}; build the engine again") from error


def _check_values(values: dict[str, Any]) -> None:
    """Raise a ValueError where a value is not of its kind: a file that somebody wrote by hand, or another program."""
    for field in fields(EngineDescription):
        kind = _KINDS.get(str(field.type))
        value = values.get(field.name)
        form = _FORMS.get(field.name, "")
        if (kind is not None and type(value) is not kind) or (form and not re.fullmatch(form, str(value))):
            raise ValueError(f"{field.name} is {value!r}")


def description_path(engine: Path) -> Path:
    """``model.engine.json`` of ``model.engine``."""
    return engine.with_name(f"{engine.name}.json")


def sha256(data: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_description(engine: Path, description: EngineDescription) -> Path:
    """Write it beside the engine.

    Raises:
        OutputError: see ``atomic.write_json``.
    """
    path = description_path(engine)
    write_json(path, description.to_dict())
    return path


def read_description(engine: Path) -> EngineDescription:
    """What lies beside an engine.

    Raises:
        ArtefactError: when there is no engine, nothing beside it, or nothing that can be read.
    """
    path = description_path(engine)
    if not engine.is_file():
        raise ArtefactError(
            f"there is no file {engine}; give an engine that exists, or build one: spt-deploy build-engine"
        )
    if not path.is_file():
        raise ArtefactError(
            f"{engine} has no {path.name} beside it, which says what the engine is; keep the two together, or build "
            "the engine again: spt-deploy build-engine"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} is no JSON: {error}; build the engine again: spt-deploy build-engine") from error
    return EngineDescription.from_dict(values, str(path))


def read_plan(engine: Path, description: EngineDescription) -> bytes:
    """The engine's bytes, if they are the ones described. An engine is executable code: nothing else is ever loaded.

    Raises:
        ArtefactError: when the file is cut short, or another one.
    """
    plan = engine.read_bytes()
    if len(plan) < description.plan_bytes:
        raise ArtefactError(
            f"{engine} is cut short: {len(plan)} of {description.plan_bytes} bytes; copy it again, or rebuild it: "
            f"{description.command}"
        )
    if sha256(plan) != description.plan_sha256:
        raise ArtefactError(
            f"{description_path(engine).name} describes another engine than {engine} (SHA-256 "
            f"{description.plan_sha256[:16]} against {sha256(plan)[:16]}); put the two files of one build together, or "
            f"rebuild it: {description.command}"
        )
    return plan


def check_version(description: EngineDescription, installed: str, where: str) -> None:
    """Whether the installed library can open the engine; ``where`` names it.

    Raises:
        ArtefactError: when it was built by another version, and is not compatible with this one.
    """
    built = description.runtime_version
    if built == installed:
        return
    ours, theirs = (tuple(map(int, re.findall(r"\d+", version))) for version in (installed, built))  # 10.0.0b6, too
    if description.version_compatible and ours[0] == theirs[0] and ours > theirs:
        return
    raise ArtefactError(
        f"{where} was built by {description.runtime} {built}, and {installed} is installed; "
        f"install {built}, or rebuild it: {description.command}"
    )


def check_gpu(description: EngineDescription, gpu: Gpu | None, engine: Path) -> None:
    """Whether the engine can run on the GPU of this machine.

    Raises:
        RuntimeMissingError: when there is no GPU.
        ArtefactError: when the engine is for another.
    """
    made_for = f"{description.gpu} ({description.capability})" if description.gpu else description.capability
    if gpu is None:
        beside = engine.with_name(description.onnx)  # as build-engine writes it where nothing else was asked for
        raise RuntimeMissingError(
            f"{engine} is an engine for an NVIDIA GPU ({made_for}), and PyTorch sees none here; run it where one is, "
            "or run the ONNX file that it was built from in its place: "
            f"{beside if beside.is_file() else description.onnx}"
        )
    here, there = _number(gpu.capability), description.capability
    if there == PORTABLE:
        if here >= OLDEST_PORTABLE:
            return
    elif here == _number(there) or (description.hardware_compatible and here >= OLDEST_COMPATIBLE):
        return
    raise ArtefactError(
        f"{engine.name} was built for {made_for}, and this machine has {gpu.name} ({gpu.capability}); rebuild it here: "
        f"{description.command}"
    )


def check_batch(description: EngineDescription, images: int, where: str) -> None:
    """Whether the engine takes so many images at once; ``where`` names it.

    Raises:
        InputError: when they are too many.
    """
    batch = description.batch
    if images > batch.largest:
        raise InputError(
            f"a batch of {images} images is more than {where} takes ({batch}); use a smaller --batch, or rebuild it: "
            f"spt-deploy build-engine {description.onnx} --batch {batch.smallest}:{batch.usual}:{images}"
        )


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm_"))

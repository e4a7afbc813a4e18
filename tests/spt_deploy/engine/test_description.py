"""What lies beside an engine is read back as it was, and an engine that cannot run here says why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.engine.batches import BatchRange
from spt_deploy.engine.description import (
    PORTABLE,
    EngineDescription,
    check_batch,
    check_gpu,
    check_version,
    description_path,
    read_description,
    read_plan,
    sha256,
    write_description,
)
from spt_deploy.engine.library import Gpu
from spt_deploy.errors import ArtefactError, InputError, RuntimeMissingError
from spt_deploy.facts import ModelFacts
from spt_deploy.preprocess import Preprocessing

PLAN = b"a plan" * 100
ADA = Gpu("NVIDIA GeForce RTX 4090", "sm_89")
AMPERE = Gpu("NVIDIA RTX A2000", "sm_86")
HOPPER = Gpu("NVIDIA H100", "sm_90")
TURING = Gpu("NVIDIA T4", "sm_75")


def describe(**changes: object) -> EngineDescription:
    model = ModelConfig(BackboneConfig.from_name("spt_micro"), "classify", ("cat", "dog"))
    described = EngineDescription(
        runtime="tensorrt",
        runtime_version="11.4.0.106",
        precision="fp16",
        narrow_layers=77,
        seen_in="engine",
        gpu=ADA.name,
        capability=ADA.capability,
        batch=BatchRange(1, 8, 16),
        version_compatible=False,
        hardware_compatible=False,
        onnx="best.onnx",
        onnx_sha256="0" * 64,
        plan_bytes=len(PLAN),
        plan_sha256=sha256(PLAN),
        command="spt-deploy build-engine best.onnx --fp16",
        facts=ModelFacts(model, Preprocessing.for_task("classify", (64, 96)), "1.0", "abc", "fp16"),
    )
    return replace(described, **changes)  # type: ignore[arg-type]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "best.fp16.engine"
    path.write_bytes(PLAN)
    write_description(path, describe())
    return path


def test_a_description_is_read_back_as_it_was_written(engine: Path) -> None:
    assert description_path(engine).name == "best.fp16.engine.json"
    assert read_description(engine) == describe()
    assert read_plan(engine, describe()) == PLAN


def test_a_truncated_engine_says_how_much_is_there(engine: Path) -> None:
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(ArtefactError, match=r"cut short: 599 of 600 bytes.*spt-deploy build-engine best.onnx --fp16"):
        read_plan(engine, read_description(engine))


@pytest.mark.parametrize("change", [b"b" + PLAN[1:], PLAN + b"more"])
def test_another_models_description_is_not_believed(engine: Path, change: bytes) -> None:
    engine.write_bytes(change)
    with pytest.raises(ArtefactError, match="describes another engine"):
        read_plan(engine, read_description(engine))


def test_an_engine_without_description_and_a_description_without_engine(engine: Path) -> None:
    description_path(engine).unlink()
    with pytest.raises(ArtefactError, match=r"has no best.fp16.engine.json beside it.*keep the two together"):
        read_description(engine)
    write_description(engine, describe())
    engine.unlink()
    with pytest.raises(ArtefactError, match="there is no file"):
        read_description(engine)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is no JSON"),
        ("[]", "no description of an engine"),
        ("{}", "no description of an engine"),
        (json.dumps({"format": 99}), "format 99"),
        (json.dumps(describe().to_dict() | {"batch": 3}), "no description of an engine"),
        (json.dumps({k: v for k, v in describe().to_dict().items() if k != "onnx"}), "no description of an engine"),
        (json.dumps(describe().to_dict() | {"facts": {}}), "model description that cannot be read"),
    ],
)
def test_a_damaged_description_is_an_error_of_one_sentence(engine: Path, text: str, match: str) -> None:
    description_path(engine).write_text(text)
    with pytest.raises(ArtefactError, match=match):
        read_description(engine)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("runtime", value) for value in (None, "onnx.runtime")),
        *(("runtime_version", value) for value in (None, 11, "", "newest")),
        *(("capability", value) for value in (None, 89, "sm_", "1.2")),
        *(("onnx", value) for value in (None, "", "../best.onnx")),
        *(("plan_bytes", value) for value in (None, "600", 1.5)),
        ("plan_sha256", 5),
        ("version_compatible", "no"),
        ("batch", "8:1"),
    ],
)
def test_a_value_of_another_kind_is_named(engine: Path, name: str, value: object) -> None:
    description_path(engine).write_text(json.dumps(describe().to_dict() | {name: value}))
    with pytest.raises(
        ArtefactError, match=rf"json is no description of an engine: {name} is .*build the engine again"
    ):
        read_description(engine)


def test_a_version_before_its_release_is_compared_as_others_are() -> None:
    described = describe(version_compatible=True, runtime_version="11.0.0b6")
    check_version(described, "11.1.0.1", "best.engine")
    with pytest.raises(ArtefactError, match=r"11\.0\.0b6, and 10\.9\.0b1 is installed"):
        check_version(described, "10.9.0b1", "best.engine")


def test_another_version_names_both_and_the_command_that_rebuilds() -> None:
    check_version(describe(), "11.4.0.106", "best.engine")
    with pytest.raises(
        ArtefactError, match=r"built by tensorrt 11.4.0.106, and 11.5.0.1 is installed.*spt-deploy build-engine"
    ):
        check_version(describe(), "11.5.0.1", "best.engine")


def test_a_version_compatible_engine_runs_in_later_versions_of_its_major_one_only() -> None:
    described = describe(version_compatible=True)
    check_version(described, "11.5.0.1", "best.engine")
    check_version(described, "11.10.0.0", "best.engine")
    for version in ("11.3.0.0", "12.0.0.0", "10.14.0.0"):
        with pytest.raises(ArtefactError, match=version):
            check_version(described, version, "best.engine")


@pytest.mark.parametrize(
    ("changes", "runs", "does_not"),
    [
        ({}, [ADA], [AMPERE, HOPPER, TURING]),
        ({"hardware_compatible": True}, [AMPERE, ADA, HOPPER], [TURING]),
        ({"gpu": "", "capability": PORTABLE}, [ADA, AMPERE, HOPPER], [TURING]),
        ({"gpu": "", "capability": "sm_75"}, [TURING], [ADA]),
    ],
)
def test_an_engine_runs_on_the_gpu_it_was_built_for(
    changes: dict[str, object], runs: list[Gpu], does_not: list[Gpu]
) -> None:
    described = describe(**changes)
    for gpu in runs:
        check_gpu(described, gpu, Path("runs/best.engine"))
    for gpu in does_not:
        with pytest.raises(ArtefactError, match=rf"this machine has {gpu.name} \({gpu.capability}\); rebuild it here"):
            check_gpu(described, gpu, Path("runs/best.engine"))


def test_without_a_gpu_the_onnx_file_is_named_instead_with_its_folder_where_it_lies_beside(tmp_path: Path) -> None:
    engine, beside = tmp_path / "best.engine", tmp_path / "best.onnx"
    with pytest.raises(RuntimeMissingError, match=r"PyTorch sees none here.* in its place: best\.onnx$"):
        check_gpu(describe(), None, engine)
    beside.touch()
    with pytest.raises(RuntimeMissingError, match=rf"in its place: {re.escape(str(beside))}$"):
        check_gpu(describe(), None, engine)


def test_a_batch_above_the_profile_names_the_command_that_widens_it() -> None:
    check_batch(describe(), 16, "best.engine")
    with pytest.raises(InputError, match=r"17 images is more than best.engine takes \(1:8:16\).*--batch 1:8:17"):
        check_batch(describe(), 17, "best.engine")

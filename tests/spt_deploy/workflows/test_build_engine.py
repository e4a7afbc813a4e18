"""Engines are built where no GPU is, say what they are, and are refused with a sentence where they cannot run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from spt_deploy.cli import main
from spt_deploy.config import BackboneConfig, ModelConfig, Task
from spt_deploy.engine.description import description_path, read_description, sha256
from spt_deploy.errors import ArtefactError, InputError, ResultError, RuntimeMissingError, UsageError
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.onnx_file import read_facts
from spt_deploy.runtimes.torch_runner import deployed_checkpoint
from spt_deploy.workflows.build_engine import BuildReport, build_engine
from spt_deploy.workflows.engine_target import Target, choose_target
from spt_deploy.workflows.mixed_precision import write_mixed
from spt_export.exporter import to_onnx
from spt_export.precision import to_mixed_precision
from tests.exported import make_exported
from tests.spt_deploy.model.models import make_model

SIZE = (64, 96)
RTX = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Swin: no selection, so that every runtime takes it."""
    folder = tmp_path_factory.mktemp("dense")
    return make_exported(folder, SIZE, spa_stages=()).onnx


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exported(tmp_path_factory.mktemp("static"), SIZE, packing="static").onnx


@pytest.fixture(scope="module")
def per_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exported(tmp_path_factory.mktemp("per-image"), SIZE).onnx


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["build-engine", *map(str, arguments)])


def built_without_gpu(model: Path, batch: str, precision: str | None) -> BuildReport:
    return build_engine(model, runtime="tensorrt-rtx", arch="sm_89", batch=batch, precision=precision)  # type: ignore[arg-type]


@RTX
@pytest.mark.parametrize(("batch", "precision"), [("8", None), ("1:4:8", "fp16")])
def test_an_engine_takes_bytes_where_the_file_does(tmp_path: Path, batch: str, precision: str | None) -> None:
    exported = make_exported(tmp_path, SIZE, packing="static", uint8_input=True, depths=(1, 1, 1, 1))
    built = built_without_gpu(exported.onnx, batch, precision)
    assert read_description(built.engine).facts.uint8_input
    if precision:
        images = onnx.load(built.files[2]).graph.input[0].type.tensor_type
        assert images.elem_type == onnx.TensorProto.UINT8


@RTX
@pytest.mark.parametrize(("batch", "precision"), [("8", None), ("1:4:8", "fp16")])
def test_an_engine_takes_the_threshold_where_the_file_does(tmp_path: Path, batch: str, precision: str | None) -> None:
    exported = make_exported(tmp_path, SIZE, packing="static", runtime_threshold=True)
    built = built_without_gpu(exported.onnx, batch, precision)
    assert read_description(built.engine).facts.runtime_threshold
    if precision:
        graph = onnx.load(built.files[2]).graph
        assert {value.name: value.type.tensor_type.elem_type for value in graph.input} == {
            "images": onnx.TensorProto.FLOAT,
            "threshold": onnx.TensorProto.FLOAT,
        }
        (logit,) = [node for node in graph.node if node.op_type == "Log"]
        assert all(logit.output[0] in node.input for node in graph.node if node.op_type == "SelectTokens")


@RTX
@pytest.mark.parametrize("batch", ["8", "1:4:8"])
@pytest.mark.parametrize("precision", [None, "fp16", "bf16"])
def test_an_engine_of_a_static_spt_is_built_described_and_whole(
    static: Path, tmp_path: Path, batch: str, precision: str | None
) -> None:
    engine = tmp_path / "model.engine"
    flags = [f"--{precision}"] if precision else []
    result = run(
        static, "-o", engine, "--runtime", "tensorrt-rtx", "--arch", "sm_89", "--batch", batch, *flags, "--json"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    described = read_description(engine)
    assert document["description"] == json.loads(json.dumps(described.to_dict()))
    assert described.precision == (precision or "fp32")
    assert described.capability == "sm_89"
    assert str(described.batch) == batch
    assert described.onnx_sha256 == sha256(static.read_bytes())
    assert described.plan_sha256 == sha256(engine.read_bytes())
    written = {path.name for path in tmp_path.iterdir()}
    extra = {f"model.{precision}.onnx", f"model.{precision}.json"} if precision else set()
    assert written == {"model.engine", "model.engine.json", *extra}
    assert {Path(file).name for file in document["files"]} == written


@RTX
@pytest.mark.parametrize(("task", "size", "batch"), [("classify", (224, 224), "1:8:16"), ("detect", (128, 192), "8")])
def test_engines_of_spt_t_are_built_on_a_cpu(task: Task, size: tuple[int, int], batch: str, tmp_path: Path) -> None:
    config = ModelConfig(BackboneConfig.from_name("spt_t"), task, ("cat", "dog"))
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "spt_t.pt", SptModel(config), Preprocessing.for_task(task, size))
    loaded = deployed_checkpoint(tmp_path / "spt_t.pt", "static")
    onnx.save(to_onnx(loaded.build(), loaded.facts), tmp_path / "spt_t.onnx")
    built = build_engine(tmp_path / "spt_t.onnx", precision="fp16", runtime="tensorrt-rtx", arch="sm_89", batch=batch)
    assert built.precision is not None
    limit = built.precision.parity.tolerance
    assert (limit.absolute, limit.relative) == (1e-2, 1e-2)
    assert built.precision.parity.passed
    assert built.description.narrow_layers > 70
    assert built.engine.stat().st_size > 55e6  # 28 million weights of two bytes


@RTX
def test_half_the_bits_make_half_the_engine_and_the_precision_is_in_its_name(dense: Path) -> None:
    wide = build_engine(dense, runtime="tensorrt-rtx", arch="sm_89")
    narrow = build_engine(dense, runtime="tensorrt-rtx", arch="sm_89", precision="fp16")
    assert wide.engine.name == "model.engine"
    assert narrow.engine.name == "model.fp16.engine"
    assert narrow.description.plan_bytes < 0.7 * wide.description.plan_bytes
    assert narrow.description.narrow_layers == wide.description.narrow_layers
    assert narrow.precision is not None
    assert narrow.precision.passed
    assert onnx.load(dense.with_name("model.fp16.onnx")).graph.node


@RTX
@pytest.mark.parametrize("arch", ["sm_86", "sm_120", "portable"])
def test_an_engine_is_built_for_the_gpu_that_is_named(dense: Path, tmp_path: Path, arch: str) -> None:
    built = build_engine(dense, tmp_path / "model.engine", runtime="tensorrt-rtx", arch=arch, batch="2")
    assert built.description.capability == arch
    assert built.description.command.endswith(f"--arch {arch}")


@RTX
def test_turing_needs_16_bits_and_gets_them_gates_and_all(static: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --fp16"):
        build_engine(static, tmp_path / "model.engine", arch="sm_75")
    with pytest.raises(UsageError, match="have no bfloat16; build the float32 file with --fp16"):
        build_engine(static, tmp_path / "model.engine", arch="sm_75", precision="bf16")
    assert not list(tmp_path.iterdir())
    built = build_engine(static, tmp_path / "model.engine", arch="sm_75", precision="fp16", batch="1")
    assert built.description.capability == "sm_75"


@RTX
def test_a_file_in_another_packing_names_the_export_that_is_needed(per_image: Path) -> None:
    result = run(per_image, "--runtime", "tensorrt-rtx")
    assert result.exit_code == 2
    assert "packed per-image" in result.stderr
    assert "spt-deploy export model.pt --packing static" in result.stderr


@RTX
@pytest.mark.parametrize("option", ["--version-compatible", "--hardware-compatible"])
def test_what_only_tensorrt_has_is_refused_of_the_other(dense: Path, option: str) -> None:
    result = run(dense, "--runtime", "tensorrt-rtx", option)
    assert result.exit_code == 2
    assert "are TensorRT's; " in result.stderr
    assert "--arch portable" in result.stderr


@RTX
def test_the_command_that_rebuilds_says_everything_that_was_said(dense: Path, tmp_path: Path) -> None:
    options = {"opt_level": 1, "tf32": True, "workspace_gib": 0.5, "keep_fp32": ["*head*"], "precision": "fp16"}
    built = build_engine(dense, tmp_path / "model.engine", runtime="tensorrt-rtx", batch="2", **options)  # type: ignore[arg-type]
    words = shlex.split(built.description.command)
    assert words[:2] == ["spt-deploy", "build-engine"]
    for pair in (["--opt-level", "1"], ["--workspace", "0.5"], ["--keep-fp32", "*head*"], ["--batch", "2"]):
        assert words[words.index(pair[0]) + 1] == pair[1]
    assert {"--tf32", "--fp16"} <= set(words)


@RTX
def test_a_selection_that_tensorrt_cannot_list_names_the_capacity_that_it_can(static: Path) -> None:
    facts = read_facts(static)

    def choose(capacity: float) -> Target:
        model = replace(facts.model, backbone=replace(facts.model.backbone, capacity=capacity))
        preprocessing = replace(facts.preprocessing, size=(1080, 1920))  # 8160 tokens in stage 3
        return choose_target("tensorrt-rtx", None, replace(facts, model=model, preprocessing=preprocessing), static)

    for capacity in (0.5, 0.47):
        with pytest.raises(UsageError, match=r"best \d+ of the 8160 .* no more than 3840; .*--capacity 0\.46 or less"):
            choose(capacity)
    for capacity in (0.46, 0.6):  # the latter is counted from below
        assert choose(capacity).library.name == "tensorrt-rtx"


@RTX
def test_a_ranking_that_tensorrt_cannot_list_is_refused_without_a_capacity_that_would_change_nothing(
    static: Path, per_image: Path
) -> None:
    def choose(source: Path, keep_ratio: float) -> Target:
        facts = read_facts(source)
        backbone = replace(facts.model.backbone, selector="topk", keep_ratio=keep_ratio, capacity=0.1)
        preprocessing = replace(facts.preprocessing, size=(1080, 1920))  # 8160 tokens in stage 3
        facts = replace(facts, model=replace(facts.model, backbone=backbone), preprocessing=preprocessing)
        return choose_target("tensorrt-rtx", None, facts, source)

    for source in (static, per_image):
        with pytest.raises(UsageError, match=r"best 4080 of the 8160 .* no more than 3840; export it at a smaller"):
            choose(source, 0.5)
    for keep_ratio in (0.45, 0.6):
        assert choose(static, keep_ratio).library.name == "tensorrt-rtx"


@NO_GPU
@pytest.mark.parametrize("runtime", ["auto", "tensorrt"])
def test_without_tensorrt_and_gpu_the_sentence_names_the_extra_and_the_way_without_a_gpu(
    per_image: Path, runtime: str
) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("is about machines without TensorRT")
    result = run(per_image, "--runtime", runtime)
    assert result.exit_code == 3
    assert "pip install 'spt-deploy[gpu]'" in result.stderr
    assert "pip install 'spt-deploy[rtx]'" in result.stderr
    assert "--packing static" in result.stderr
    assert not list(per_image.parent.glob("*.engine*"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--batch", "8:1"], "write 8, or MIN:OPT:MAX"),
        (["--opt-level", "6"], "opt-level is 6"),
        (["--workspace", "0"], "workspace is 0.0 GiB"),
        (["--workspace", "nan"], "workspace is nan GiB"),
        (["--workspace", "1e12"], "at most 1048576"),
        (["--arch", "sm_1"], "known are sm_75"),
        (["--fp16", "--bf16"], "two precisions"),
        (["--keep-fp32", "head*"], "give --fp16 or --bf16"),
        (["--runtime", "tensorrt", "--arch", "sm_89"], "GPU at hand"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused_before_any_work(
    dense: Path, options: list[str], match: str
) -> None:
    result = run(dense, *options)
    assert (result.exit_code, match in result.stderr) == (2, True), result.stderr


def test_a_file_in_mixed_precision_is_not_rewritten_again(dense: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "half.onnx"
    onnx.save(to_mixed_precision(onnx.load(dense), "fp16").model, mixed)
    with pytest.raises(UsageError, match="is in fp16 already"):
        build_engine(mixed, runtime="tensorrt-rtx" if find_spec("tensorrt_rtx") else "auto", precision="fp16")


@pytest.mark.parametrize("given", ["data", "labels"])
def test_a_folder_that_cannot_be_used_is_refused_before_the_proof(dense: Path, tmp_path: Path, given: str) -> None:
    heard: list[str] = []
    with pytest.raises(InputError, match="there is no folder"):
        write_mixed(dense, tmp_path / "a.onnx", "bf16", status=heard.append, **{given: tmp_path / "none"})  # type: ignore[arg-type]
    assert heard == []


@RTX
def test_the_file_is_never_replaced_by_its_rewritten_graph(dense: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.fp16.onnx"
    source.write_bytes(dense.read_bytes())
    with pytest.raises(UsageError, match=r"model\.fp16\.onnx would replace the file it is made from; .* -o"):
        build_engine(source, tmp_path / "model.engine", runtime="tensorrt-rtx", arch="sm_89", precision="fp16")
    assert source.read_bytes() == dense.read_bytes()


@RTX
def test_a_file_in_mixed_precision_is_built_as_it_is(dense: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "half.onnx"
    onnx.save(to_mixed_precision(onnx.load(dense), "fp16").model, mixed)
    built = build_engine(mixed, runtime="tensorrt-rtx", arch="sm_89")
    assert built.description.precision == "fp16"
    assert built.description.facts.precision == "fp16"


def overflowing(folder: Path) -> Path:
    """A Swin whose first MLP passes numbers that float16 does not hold, and gives them back in range."""
    model = make_model(spa_stages=())
    block = model.backbone.stages[0].blocks[0].mlp
    first, *_, last = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        scale = 6e4 / max(first.weight.abs().max(), first.bias.abs().max())  # the weights themselves can be held
        first.weight.mul_(scale)
        first.bias.mul_(scale)
        last.weight.div_(scale)
    checkpoint = folder / "model.pt"
    save_checkpoint(checkpoint, model, Preprocessing.for_task("classify", SIZE))
    loaded = deployed_checkpoint(checkpoint)
    onnx.save(to_onnx(loaded.build(), loaded.facts), checkpoint.with_suffix(".onnx"))
    return checkpoint.with_suffix(".onnx")


@RTX
def test_what_overflows_in_fp16_stops_the_build_until_images_or_a_pattern_tell_which_layers(tmp_path: Path) -> None:
    import cv2

    source = overflowing(tmp_path)
    with pytest.raises(ResultError, match=r"does not say what it says in float32.*--data.*no engine was built"):
        build_engine(source, runtime="tensorrt-rtx", arch="sm_89", precision="fp16")
    assert not list(tmp_path.glob("*.engine*"))
    assert not list(tmp_path.glob("*.fp16.onnx"))
    assert json.loads((tmp_path / "model.fp16.json").read_text())["passed"] is False
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 256, (80, 100, 3), dtype=np.uint8)
        assert cv2.imwrite(str(images / f"{index}.png"), picture)
    built = build_engine(source, runtime="tensorrt-rtx", arch="sm_89", precision="fp16", data=images)
    assert built.precision is not None
    assert built.precision.calibrated == 3
    assert "left fp16's range in calibration" in built.precision.wide.values()


@RTX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_build_leaves_no_engine(dense: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "spt_deploy", "build-engine", str(dense), "-o", str(tmp_path / "model.engine")]
    command += ["--runtime", "tensorrt-rtx", "--arch", "sm_89"]
    folders = [str(Path(__file__).resolve().parents[3] / name) for name in (".", "export", "plugins")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stderr is not None
        line = ""
        while "building with" not in line:  # said when the library begins
            line = child.stderr.readline()
            assert line, "it ended before it built"
        time.sleep(0.1)
        child.send_signal(number)
        rest = child.stderr.read()
        code = child.wait(timeout=60)
    if code == 0:
        pytest.skip("the build was done before the signal came")
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130), rest
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


@pytest.fixture(scope="module")
def built(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx")
    return build_engine(dense, tmp_path_factory.mktemp("built") / "model.engine", arch="sm_120", batch="2").engine


@NO_GPU
def test_an_engine_where_no_gpu_is_names_the_file_that_runs(built: Path) -> None:
    with pytest.raises(RuntimeMissingError, match=r"engine for an NVIDIA GPU \(sm_120\).* in its place: model\.onnx$"):
        open_runner(built)


def test_an_engine_of_another_version_names_both_and_the_rebuild(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.engine"
    copy.write_bytes(built.read_bytes())
    values = json.loads(description_path(built).read_text()) | {"runtime_version": "1.5.0.1"}
    description_path(copy).write_text(json.dumps(values))
    with pytest.raises(ArtefactError, match=r"was built by tensorrt-rtx 1.5.0.1, and .* is installed.*build-engine"):
        open_runner(copy)


def test_a_truncated_engine_and_another_models_description_are_refused(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.engine"
    description_path(copy).write_text(description_path(built).read_text())
    copy.write_bytes(built.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="is cut short"):
        open_runner(copy)
    copy.write_bytes(bytes(len(built.read_bytes())))
    with pytest.raises(ArtefactError, match="describes another engine"):
        open_runner(copy)


def test_an_engine_runs_on_cuda_and_in_the_library_that_built_it(built: Path) -> None:
    with pytest.raises(UsageError, match="--device cuda"):
        open_runner(built, device="cpu")
    with pytest.raises(UsageError, match="does not take"):
        open_runner(built, runtime="tensorrt")
    with pytest.raises(UsageError, match="does not take"):
        open_runner(built, runtime="onnxruntime")

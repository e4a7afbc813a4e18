"""Runners: one contract, the same answers, errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from spt_deploy.config import Packing
from spt_deploy.errors import ArtefactError, InputError, RuntimeMissingError, UsageError
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.onnx_file import read_facts
from spt_deploy.runtimes.registry import is_installed
from spt_deploy.runtimes.torch_runner import TorchRunner
from tests.exported import Exported, make_exported
from tests.spt_deploy.model.models import make_model

SIZE = (48, 64)
LARGER = (96, 128)  # has tokens for more than one container


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("runners"), SIZE)


@pytest.fixture(scope="module")
def says(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A file that says what each block kept."""
    return make_exported(tmp_path_factory.mktemp("says"), SIZE, selection="all")


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A file that keeps the best tokens, whose scores are all about -14."""
    model = make_model(selector="topk")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.bias"):
                parameter.fill_(-14.0)
    return make_exported(tmp_path_factory.mktemp("low"), SIZE, model=model)


def _images(batch: int, size: tuple[int, int] = SIZE) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((batch, 3, *size), dtype=np.float32)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_runtime_answers_as_pytorch_does(made: Exported, runtime: str, batch: int) -> None:
    pytest.importorskip(runtime, reason="an extra")
    images = _images(batch)
    with open_runner(made.checkpoint) as ours, open_runner(made.onnx, runtime, "cpu") as theirs:
        expected, found = ours.infer(images), theirs.infer(images)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_gates_however_small_weigh_as_they_do_in_pytorch(low: Exported, runtime: str) -> None:
    """The best tokens of an image without objects; ONNX Runtime's sigmoid of -14 is off by a tenth of itself."""
    pytest.importorskip(runtime, reason="an extra")
    images = _images(3)
    with open_runner(low.checkpoint) as ours, open_runner(low.onnx, runtime, "cpu") as theirs:
        expected, found = ours.infer(images), theirs.infer(images)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4, rtol=1e-4)


def test_pytorch_computes_float32_without_tf32_and_leaves_the_setting_as_it_was(made: Exported) -> None:
    seen: list[str] = []
    before = torch.backends.cudnn.conv.fp32_precision
    with TorchRunner(made.checkpoint) as runner:
        runner.model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
        runner.infer(_images(1))
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_onnxruntime_computes_float32_on_cuda_without_tf32(made: Exported) -> None:
    ort = pytest.importorskip("onnxruntime", reason="an extra")
    if not torch.cuda.is_available() or "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs a GPU and onnxruntime-gpu")
    from spt_deploy.runtimes.onnxruntime_runner import open_session

    options = open_session(made.onnx, "cuda").get_provider_options()["CUDAExecutionProvider"]
    assert options["use_tf32"] == "0"


def test_an_artefact_goes_to_the_runtime_that_takes_it(made: Exported) -> None:
    assert open_runner(made.checkpoint).runtime == "torch"
    assert open_runner(made.onnx, device="cpu").runtime == ("openvino" if is_installed("openvino") else "onnxruntime")


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (np.zeros((3, *SIZE), np.float32), "B x 3 x 48 x 64"),  # no batch dimension
        (np.zeros((0, 3, *SIZE), np.float32), "B >= 1"),
        (np.zeros((1, 3, 64, 48), np.float32), "B x 3 x 48 x 64"),  # sides swapped
        (np.zeros((1, 3, *SIZE), np.float64), "float32"),
        (np.zeros((1, 3, *SIZE), np.uint8), "float32"),
    ],
)
def test_what_the_model_does_not_take_is_refused_before_it_runs(
    made: Exported, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], match: str
) -> None:
    with open_runner(made.onnx) as runner, pytest.raises(InputError, match=match):
        runner.infer(images)


def test_a_runner_must_be_open_to_run(made: Exported) -> None:
    runner = open_runner(made.onnx)
    with pytest.raises(InputError, match="with statement"):
        runner.infer(_images(1))
    with runner:
        runner.infer(_images(1))
    with pytest.raises(InputError, match="with statement"):
        runner.infer(_images(1))


@pytest.fixture(scope="module", params=["per-image", "batch"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Packing, Exported]:
    return request.param, make_exported(tmp_path_factory.mktemp("packed"), LARGER, packing=request.param)


@pytest.fixture
def one_image_fills_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spt_deploy.runtimes.onnxruntime_batches._FAST_BYTES", 1)
    monkeypatch.setattr("spt_deploy.runtimes.openvino_runner._FAST_BYTES", 1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("expected", [4, None])
def test_in_parts_or_not_a_batch_is_answered_as_a_whole(
    runtime: str, packed: tuple[Packing, Exported], expected: int | None, one_image_fills_a_core: None
) -> None:
    """Containers that are packed across images answer otherwise for one image than for four, so these are not cut."""
    pytest.importorskip(runtime, reason="an extra")
    (packing, made), images = packed, _images(4, LARGER)
    with TorchRunner(made.checkpoint, "cpu", packing=packing) as ours:
        whole = ours.infer(images)
        alone = np.concatenate([ours.infer(image[None])["logits"] for image in images])
    assert np.allclose(whole["logits"], alone, atol=1e-5) == (packing == "per-image")
    runner = open_runner(made.onnx, runtime, "cpu")
    runner.expect(expected)
    with runner:
        found = runner.infer(images)
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_a_runner_that_is_open_stays_open_in_an_inner_with_statement(made: Exported, runtime: str) -> None:
    pytest.importorskip(runtime, reason="an extra")
    with open_runner(made.checkpoint if runtime == "torch" else made.onnx, runtime, "cpu") as runner:
        before = runner.infer(_images(2))
        with runner as same:
            assert same is runner
        after = runner.infer(_images(2))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    runner.__exit__(None, None, None)  # once too often is no harm
    with pytest.raises(InputError, match="with statement"):
        runner.infer(_images(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_cuda_that_is_not_there_is_an_error_and_no_silent_fall_to_the_cpu(made: Exported, kind: str) -> None:
    with pytest.raises(RuntimeMissingError, match="CUDA"):
        open_runner(getattr(made, kind), device="cuda")


def test_a_runtime_that_does_not_take_the_artefact_says_which_does(made: Exported) -> None:
    with pytest.raises(UsageError, match="use torch"):
        open_runner(made.checkpoint, "onnxruntime")
    with pytest.raises(UsageError, match="onnxruntime or openvino"):
        open_runner(made.onnx, "torch")


def test_unknown_names_are_refused_with_the_known_ones(made: Exported) -> None:
    with pytest.raises(UsageError, match="known are auto, torch, onnxruntime, openvino"):
        open_runner(made.onnx, "tflite")
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        open_runner(made.onnx, device="tpu")
    with pytest.raises(ArtefactError, match=r"\.safetensors\), an \.onnx file or an \.engine"):
        open_runner(made.onnx.with_suffix(".txt"))


def test_files_that_are_no_onnx_of_ours_are_named_in_one_sentence(made: Exported, tmp_path: Path) -> None:
    missing = tmp_path / "missing.onnx"
    short = tmp_path / "short.onnx"
    short.write_bytes(made.onnx.read_bytes()[:100_000])
    text = tmp_path / "text.onnx"
    text.write_text("no model", encoding="utf-8")
    foreign = tmp_path / "foreign.onnx"
    proto = onnx.load(made.onnx)
    del proto.metadata_props[:]
    onnx.save(proto, foreign)
    for path, match in (
        (missing, "there is no file"),
        (short, "cut short"),
        (text, "no ONNX file"),
        (foreign, "did not write"),
    ):
        with pytest.raises(ArtefactError, match=match) as caught:
            read_facts(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_what_each_block_kept_is_returned_when_asked_for_where_it_can_be(
    made: Exported, says: Exported, runtime: str
) -> None:
    pytest.importorskip(runtime, reason="an extra")
    images = _images(2)
    with open_runner(says.checkpoint if runtime == "torch" else says.onnx, runtime, "cpu") as runner:
        if runtime == "torch":
            assert not any(name.startswith("kept_") for name in runner.infer(images))
        assert runner.with_masks()
        found = runner.infer(images)
    for place, block in enumerate(runner.facts.model.backbone.spa_blocks):
        mask = found[f"kept_{block}"]
        assert mask.dtype == np.bool_
        np.testing.assert_allclose(mask.reshape(2, -1).mean(1), found["select_ratio"][:, place], atol=1e-6)
    if runtime != "torch":
        with open_runner(made.onnx, runtime, "cpu") as runner:
            assert not runner.with_masks()


def test_a_model_without_spa_blocks_has_no_masks(tmp_path: Path) -> None:
    path = tmp_path / "swin.pt"
    save_checkpoint(path, make_model("swin_micro"), Preprocessing.for_task("classify", SIZE))
    with open_runner(path, device="cpu") as runner:
        assert not runner.with_masks()
        assert list(runner.infer(_images(1))) == ["logits"]

"""The threshold at run time: the same tokens in every runtime at every value, and sentences where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spt_deploy.errors import InputError, UsageError
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.parity.checks import compare_runners
from spt_deploy.parity.inputs import generated_cases
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.torch_runner import TorchRunner
from tests.exported import Exported, make_exported
from tests.spt_deploy.model.models import make_model

SIZE = (64, 96)
THRESHOLDS = (0.01, 0.3, 0.9)
PACKINGS = ("per-image", "static")


def _model() -> SptModel:
    """Its scores are spread over all of (0, 1), so that every threshold keeps another share."""
    model = make_model(capacity=1.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.bias"):
                parameter.fill_(-5.5)
            elif name.endswith("gate.weight"):
                parameter.mul_(3.0)
    return model


@pytest.fixture(scope="module", params=PACKINGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    return make_exported(
        folder, SIZE, packing=request.param, selection="all", runtime_threshold=True, model=_model(), capacity=1.0
    )


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("fixed"), SIZE)


def _images(batch: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((batch, 3, *SIZE), dtype=np.float32)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_runtime_keeps_the_tokens_that_pytorch_keeps_at_each_threshold(made: Exported, runtime: str) -> None:
    pytest.importorskip(runtime, reason="an extra")
    images = _images()
    shares = []
    with open_runner(made.onnx, runtime, "cpu") as theirs:
        packing = theirs.facts.model.backbone.packing
        with TorchRunner(made.checkpoint, "cpu", packing) as ours:
            for threshold in THRESHOLDS:
                found, expected = theirs.infer(images, threshold), ours.infer(images, threshold)
                logit = torch.logit(torch.tensor(threshold))
                with torch.inference_mode():
                    kept = ours.model(torch.from_numpy(images), threshold=logit).features.kept
                for block, mask in zip(theirs.facts.model.backbone.spa_blocks, kept, strict=True):
                    np.testing.assert_array_equal(found[f"kept_{block}"], mask.numpy(), err_msg=block)
                for name, value in expected.items():
                    np.testing.assert_allclose(found[name], value, atol=1e-4, rtol=1e-4, err_msg=name)
                shares.append(float(found["select_ratio"].mean()))
    assert 1 > shares[0] > shares[1] > shares[2] > 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_none_is_the_model_s_own_and_a_runner_opened_at_one_has_that(made: Exported, runtime: str) -> None:
    if runtime != "torch":
        pytest.importorskip(runtime, reason="an extra")
    path = made.checkpoint if runtime == "torch" else made.onnx
    images = _images()
    with open_runner(path, runtime, "cpu") as runner, open_runner(path, runtime, "cpu", threshold=0.3) as at_03:
        assert runner.takes_threshold
        assert (runner.facts.model.backbone.threshold, at_03.facts.model.backbone.threshold) == (0.01, 0.3)
        for first, second in (
            (runner.infer(images), runner.infer(images, 0.01)),
            (at_03.infer(images), runner.infer(images, 0.3)),
            (at_03.infer(images, 0.01), runner.infer(images)),
        ):
            for name, value in first.items():
                np.testing.assert_array_equal(second[name], value, err_msg=name)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_parity_holds_at_every_threshold(made: Exported, threshold: float) -> None:
    with open_runner(made.onnx, "onnxruntime", "cpu", threshold=threshold) as theirs:
        backbone = theirs.facts.model.backbone
        with TorchRunner(made.checkpoint, "cpu", backbone.packing, threshold=threshold) as ours:
            report = compare_runners(ours, theirs, generated_cases(SIZE)[1:7])
    assert report.passed, [(c.name, c.verdict) for c in report.cases if not c.passed]
    assert all(0 < block.select_ratio < 1 for block in report.blocks[:2])


def test_parity_finds_two_that_run_at_different_thresholds(made: Exported) -> None:
    packing = open_runner(made.onnx).facts.model.backbone.packing
    with (
        TorchRunner(made.checkpoint, "cpu", packing, threshold=0.3) as ours,
        open_runner(made.onnx, "onnxruntime", "cpu", threshold=0.35) as theirs,
    ):
        assert not compare_runners(ours, theirs, generated_cases(SIZE)[:2]).passed


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_without_the_input_says_how_to_get_it(fixed: Exported, runtime: str) -> None:
    pytest.importorskip(runtime, reason="an extra")
    with (
        open_runner(fixed.onnx, runtime, "cpu") as runner,
        pytest.raises(InputError, match=r"its own is 0\.01 for good; export it again with --runtime-threshold"),
    ):
        runner.infer(_images(1), 0.3)
    with pytest.raises(InputError, match="export it again"):
        open_runner(fixed.onnx, runtime, "cpu", threshold=0.3)


@pytest.mark.parametrize("variant", [{"name": "swin_micro"}, {"selector": "topk"}], ids=str)
def test_a_checkpoint_that_selects_by_no_threshold_takes_none(variant: dict[str, str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    save_checkpoint(checkpoint, make_model(**variant), Preprocessing.for_task("classify", SIZE))
    with open_runner(checkpoint) as runner, pytest.raises(InputError, match="selects no tokens by a threshold"):
        runner.infer(_images(1), 0.3)
    with pytest.raises(InputError, match="selects no tokens by a threshold"):
        open_runner(checkpoint, threshold=0.3)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 4.6, float("nan"), 0.99999999])
def test_a_threshold_is_a_share_and_no_logit(fixed: Exported, threshold: float) -> None:
    with open_runner(fixed.checkpoint) as runner, pytest.raises(UsageError, match="between 0 and 1, both excluded"):
        runner.infer(_images(1), threshold)

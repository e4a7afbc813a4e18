"""Bytes as input: what is normalised in the graph is answered as what was normalised before it, in every runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy import Predictor
from spt_deploy.errors import InputError
from spt_deploy.parity.checks import batch_independence, compare_runners
from spt_deploy.parity.inputs import generated_cases
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.torch_runner import TorchRunner
from spt_deploy.workflows.infer import infer
from tests.exported import make_exported, save_taking_numbers
from tests.spt_deploy.streaming.support import picture, write_video

SIZE = (64, 96)
RUNTIMES = ("onnxruntime", "openvino")
CASES: list[dict[str, Any]] = [
    {"task": "classify"},
    {"task": "multilabel", "packing": "batch"},
    {"task": "detect", "packing": "static", "selection": "all", "runtime_threshold": True},
]


class Made(NamedTuple):
    """A checkpoint, the file that takes bytes, and its twin that takes numbers."""

    checkpoint: Path
    bytes: Path
    numbers: Path


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case["task"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    checkpoint, exported = make_exported(folder, SIZE, uint8_input=True, depths=(1, 1, 1, 1), **request.param)
    return Made(checkpoint, exported, save_taking_numbers(exported, folder / "numbers.onnx"))


def _pictures(count: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_answers_are_those_of_the_file_that_takes_numbers(made: Made, runtime: str) -> None:
    pytest.importorskip(runtime, reason="an extra")
    with (
        open_runner(made.numbers, runtime, "cpu") as before,
        open_runner(made.bytes, runtime, "cpu") as after,
    ):
        thresholds = (None, 0.3) if after.takes_threshold else (None,)
        for threshold in thresholds:
            expected = before.infer(before.facts.preprocessing.normalise(_pictures()), threshold)
            found = after.infer(_pictures(), threshold)
            assert list(found) == list(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_parity_holds_against_the_checkpoint_that_takes_numbers(made: Made, runtime: str) -> None:
    pytest.importorskip(runtime, reason="an extra")
    with open_runner(made.bytes, runtime, "cpu") as theirs:
        backbone = theirs.facts.model.backbone
        with TorchRunner(made.checkpoint, "cpu", backbone.packing, capacity=backbone.capacity) as ours:
            cases = generated_cases(SIZE)[1:7]
            for report in (compare_runners(ours, theirs, cases), compare_runners(theirs, ours, cases[:1])):
                assert report.passed, [(c.name, c.verdict) for c in report.cases if not c.passed]
        assert batch_independence(theirs, cases[0].images).passed


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_numbers_for_a_model_that_takes_bytes_are_refused(made: Made, runtime: str) -> None:
    pytest.importorskip(runtime, reason="an extra")
    with (
        open_runner(made.bytes, runtime, "cpu") as runner,
        pytest.raises(InputError, match=r"dtype float32; model\.onnx takes B x 64 x 96 x 3 uint8, RGB, not normalised"),
    ):
        runner.infer(np.zeros((1, 3, *SIZE), np.float32))


def test_a_stream_and_a_predictor_prepare_bytes(made: Made, tmp_path: Path) -> None:
    """Frames of the input's own shape: there is no padding, in which alone the two may differ.

    ONNX Runtime rounds alike in both, so that not even a tie of two scores falls otherwise.
    """
    pytest.importorskip("onnxruntime", reason="an extra")
    video = write_video(tmp_path / "v.mp4", range(0, 280, 40), size=SIZE)
    lines = []
    for name, path in (("numbers", made.numbers), ("bytes", made.bytes)):
        out = tmp_path / name
        report = infer([video], path, runtime="onnxruntime", device="cpu", out=out, batch=3, video=False, conf=0.01)
        text = (report.folder / "predictions.jsonl").read_text(encoding="utf-8")
        lines.append([json.loads(line) for line in text.splitlines()])
    _assert_close(lines[1], lines[0])
    images = [picture(7, *SIZE), picture(40, 30, 30)]
    with Predictor(made.bytes, device="cpu", batch=2) as predictor:
        together, alone = predictor.predict_batch(images), [predictor.predict(image) for image in images]
    assert [each.to_dict() for each in together] == [each.to_dict() for each in alone]


def _assert_close(found: Any, expected: Any) -> None:
    """Equal JSON values, but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            _assert_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-3)
    else:
        assert found == expected

"""Artefacts whose selection can be seen and not be forced: a flipped token is told from a wrong number all the same."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from spt_deploy.errors import UsageError
from spt_deploy.parity.checks import PairReport, batch_independence, compare_runners
from spt_deploy.parity.closed import infer_in_parts
from spt_deploy.parity.inputs import generated_cases
from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from spt_deploy.runtimes.torch_runner import TorchRunner
from spt_export.precision import to_mixed_precision
from spt_export.rounding import rounded_in_float32
from tests.exported import Exported, make_exported

SIZE = (64, 64)


class ClosedRunner(OnnxRuntimeRunner):
    """An exported file as an engine would be: no more than two images at once, and no way in."""

    runtime: ClassVar[str] = "tensorrt-rtx"

    @property
    def max_batch(self) -> int | None:
        return 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("closed"), SIZE, selection="all")


@pytest.fixture(scope="module")
def rounded(made: Exported) -> Path:
    """What the file computes in float16 on a GPU, with the flips that this brings."""
    path = made.onnx.with_name("rounded.onnx")
    onnx.save(rounded_in_float32(to_mixed_precision(onnx.load(made.onnx), "fp16")), path)
    return path


def compare(checkpoint: Path, engine: Path) -> PairReport:
    with TorchRunner(checkpoint, "cpu", "per-image", SIZE) as ours, ClosedRunner(engine, "cpu") as theirs:
        return compare_runners(ours, theirs, generated_cases(SIZE))


def test_an_engine_in_float16_equals_its_checkpoint_but_for_borderline_tokens(made: Exported, rounded: Path) -> None:
    report = compare(made.checkpoint, rounded)
    assert report.passed, [(c.name, c.verdict) for c in report.cases if not c.passed]
    assert not any(case.name.startswith("keeps") for case in report.cases)  # nothing can be forced
    assert any(0 < block.select_ratio < 1 for block in report.blocks)
    assert all(block.max_margin <= report.tolerance.score for block in report.blocks)
    assert not any(name.startswith("kept_") for name in report.differences)


def changed(source: Path, suffix: str, factor: float) -> Path:
    proto = onnx.load(source)
    found = [t for t in proto.graph.initializer if t.name.endswith(suffix)]
    assert found
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    path = source.with_name(f"changed-{suffix}.onnx")
    onnx.save(proto, path)
    return path


def test_a_wrong_weight_is_found(made: Exported) -> None:
    report = compare(made.checkpoint, changed(made.onnx, "head.fc.weight", 1.01))
    assert not report.passed
    assert "outputs differ" in {case.verdict for case in report.cases}


def test_a_selection_that_rounding_does_not_explain_is_found(made: Exported) -> None:
    report = compare(made.checkpoint, changed(made.onnx, "gate.bias", 0.9))
    assert not report.passed
    assert "selection scores differ" in {case.verdict for case in report.cases}


def test_without_masks_outputs_are_compared_as_they_are_and_the_verdict_says_what_would_tell_more(
    tmp_path: Path,
) -> None:
    made = make_exported(tmp_path, SIZE)
    assert compare(made.checkpoint, made.onnx).passed
    report = compare(made.checkpoint, changed(made.onnx, "head.fc.weight", 1.01))
    assert not report.passed
    assert any("--selection all" in case.verdict for case in report.cases)


def test_a_batch_runs_in_the_parts_that_an_engine_takes(made: Exported) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, *SIZE), dtype=np.float32)
    with OnnxRuntimeRunner(made.onnx, "cpu") as whole, ClosedRunner(made.onnx, "cpu") as parts:
        expected, found = whole.infer(images), infer_in_parts(parts, images)
        assert batch_independence(parts, images).passed
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, rtol=1e-4, err_msg=name)


def test_an_engine_is_no_reference(made: Exported) -> None:
    with (
        ClosedRunner(made.onnx, "cpu") as ours,
        TorchRunner(made.checkpoint, "cpu", "per-image", SIZE) as theirs,
        pytest.raises(UsageError, match="name it after the checkpoint"),
    ):
        compare_runners(ours, theirs, generated_cases(SIZE))

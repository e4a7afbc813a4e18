"""Facts are read without the weights, and say the same; what is no whole file is said, whatever it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from spt_deploy.errors import ArtefactError
from spt_deploy.runtimes.onnx_file import facts_of, inlined, load_onnx, read_facts
from tests.exported import Exported, make_exported


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("file"), (64, 64))


def test_the_facts_are_those_of_the_whole_file(made: Exported) -> None:
    assert read_facts(made.onnx) == facts_of(load_onnx(made.onnx), "")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_said(made: Exported, share: float, tmp_path: Path) -> None:
    data = made.onnx.read_bytes()
    path = tmp_path / "short.onnx"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ArtefactError, match=r"short\.onnx"):
        read_facts(path)


def test_any_bytes_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "any.onnx"
    random = np.random.default_rng(0)
    for length in (1, 2, 3, 5, 17, 100, 4096):
        for _ in range(40):
            path.write_bytes(random.bytes(length))
            with pytest.raises(ArtefactError, match=r"any\.onnx"):
                read_facts(path)


def test_inlining_keeps_every_weight_and_leaves_the_file_as_it_is(made: Exported) -> None:
    proto = load_onnx(made.onnx)
    before = proto.SerializeToString(deterministic=True)
    result = inlined(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert not result.functions
    assert {node.domain for node in result.graph.node} <= {"", "ai.onnx"}
    assert [each.name for each in result.graph.initializer] == [each.name for each in proto.graph.initializer]
    onnx.checker.check_model(result, full_check=True)

"""Compiling the dense parts changes neither names nor numbers; what fails is said in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.model.blocks import Mlp
from spt_deploy.model.network import SptModel
from spt_deploy.training.compiled import compile_dense_parts, compile_errors

# dynamo itself warns of what torch deprecates in itself
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_compiled_model_has_the_same_names_and_says_the_same() -> None:
    torch.manual_seed(0)
    backbone = BackboneConfig.from_name("spt_micro", depths=(1, 1, 1, 1))  # tracing a block takes a second
    model = SptModel(ModelConfig(backbone, "classify", ("a", "b"))).eval()
    images = torch.randn(2, 3, 32, 32)
    names, before = list(model.state_dict()), model(images).task["logits"]
    assert compile_dense_parts(model, backend="eager") == 2 + 2 + 3  # Swin blocks, MLPs of SPA blocks, mergings
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(images).task["logits"], before)


def test_a_failure_to_compile_is_one_sentence() -> None:
    def no_compiler(graph: Any, inputs: Any) -> Callable[..., Any]:
        raise OSError("g++ not found")

    block = Mlp(4, 4)
    assert compile_dense_parts(block, backend=no_compiler) == 1
    sentence = r"--compile: torch.compile failed here .*train without --compile"
    with pytest.raises(RuntimeMissingError, match=sentence), compile_errors():
        block(torch.randn(1, 4))


def test_other_errors_pass_through() -> None:
    with pytest.raises(ValueError, match="mine"), compile_errors():
        raise ValueError("mine")

"""Compiling the dense parts changes neither names nor numbers; what fails is said in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.model.backbone import PatchMerging, Stage
from spt_deploy.model.blocks import Mlp
from spt_deploy.model.network import SptModel
from spt_deploy.training.compiled import compile_dense_parts, compile_errors

# dynamo itself warns of what torch deprecates in itself
pytestmark = pytest.mark.filterwarnings("ignore")


def test_dense_parts_keep_their_names_and_say_the_same() -> None:
    torch.manual_seed(0)
    config = BackboneConfig.from_name("spt_micro", depths=(1, 1, 1, 1))
    stage, x = Stage(config, 2, [0.0]).eval(), torch.randn(2, 8, 8, 32)
    assert stage.downsample is not None
    names, before = list(stage.state_dict()), stage.blocks[0](stage.downsample(x))
    assert compile_dense_parts(stage, backend="eager") == 2  # patch merging, MLP
    assert list(stage.state_dict()) == names
    torch.testing.assert_close(stage.blocks[0](stage.downsample(x)), before)


@pytest.mark.parametrize("name", ["swin_micro", "spt_micro"])
def test_attention_and_selection_stay_eager(name: str) -> None:
    model = SptModel(ModelConfig(BackboneConfig.from_name(name), "classify", ("a", "b")))
    assert compile_dense_parts(model, backend="eager") == 8 + 3  # an MLP a block, and patch mergings
    compiled = {type(module) for module in model.modules() if module._compiled_call_impl is not None}
    assert compiled == {Mlp, PatchMerging}


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

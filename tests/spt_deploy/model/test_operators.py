from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spt_deploy.model import operators
from spt_deploy.model.order import window_order
from tests.spt_deploy.model.models import images, make_model
from tests.tolerances import assert_close

CPU = torch.device("cpu")
SIZES = {"heads": 2, "window": 3, "tokens": 30, "width": 6}


def selected(kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of 5 x 6 tokens that keep ``kept`` in all."""
    logits = torch.full((2, 30), -1.0)
    logits.view(-1)[torch.randperm(60, generator=torch.Generator().manual_seed(0))[:kept]] = 1.0
    return operators.select_tokens(logits, window_order(5, 6, 3, 1, CPU), torch.zeros(()))


@pytest.mark.parametrize("kept", [0, 1, 17, 60])
def test_operators_keep_the_rules_of_torch_library(kept: int) -> None:
    token_of_slot, slot_of_token, cu_seqlens = selected(kept)
    check = torch.library.opcheck
    # A selection has no gradient, and where others need one the plain functions run: autograd is not theirs.
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    logits, order = torch.randn(2, 30), window_order(5, 6, 3, 1, CPU)
    check(torch.ops.spt.select_tokens.default, (logits, order, torch.zeros(())), test_utils=tests)
    h, gate = torch.randn(2, 30, 8), torch.rand(2, 30)
    weights = (torch.randn(24, 8), torch.randn(24))
    check(torch.ops.spt.packed_qkv.default, (h, gate, token_of_slot, *weights), test_utils=tests)
    qkv, table = torch.randn(kept, 24), torch.randn(25, 2)
    for packing in ("batch", "per-image"):
        arguments = (qkv, token_of_slot, cu_seqlens, table, *SIZES.values(), packing)
        check(torch.ops.spt.packed_attention.default, arguments, test_utils=tests)
    o, residual = torch.randn(kept, 8), torch.randn(2, 30, 8)
    weights = (torch.randn(8, 8), torch.randn(8))
    check(torch.ops.spt.unpack_project.default, (o, slot_of_token, residual, *weights), test_utils=tests)


class _Outputs(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        named: dict[str, Tensor] = self.model(batch).named()
        return named


def test_a_model_exported_by_torch_keeps_the_four_operators_and_computes_the_same() -> None:
    model = make_model(depths=(1, 1, 2, 1), packing="per-image")
    batch = images(2, 64, 96)
    with torch.no_grad():
        program = torch.export.export(_Outputs(model), (batch,))
        called = [str(node.target) for node in program.graph.nodes if "spt." in str(node.target)]
        assert len(called) == 4 * 3
        actual, expected = program.module()(images(2, 64, 96, seed=5)), model(images(2, 64, 96, seed=5)).named()
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name])

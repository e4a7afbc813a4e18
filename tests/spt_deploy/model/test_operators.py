from __future__ import annotations

from collections.abc import Callable

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
        for given in (arguments, (*arguments, 1.0)):
            check(torch.ops.spt.packed_attention.default, given, test_utils=tests)
    o, residual = torch.randn(kept, 8), torch.randn(2, 30, 8)
    weights = (torch.randn(8, 8), torch.randn(8))
    for into in (residual, residual.transpose(0, 1).contiguous().transpose(0, 1)):
        check(torch.ops.spt.unpack_project.default, (o, token_of_slot, slot_of_token, into, *weights), test_utils=tests)


def test_under_autocast_operators_give_the_dtype_that_their_fakes_promise() -> None:
    token_of_slot, slot_of_token, cu_seqlens = selected(17)
    h, gate, residual = torch.randn(2, 30, 8), torch.rand(2, 30), torch.randn(2, 30, 8)
    w_qkv, b_qkv, table, w_proj, b_proj = (torch.randn(s) for s in [(24, 8), (24,), (25, 2), (8, 8), (8,)])

    def chain() -> list[Tensor]:
        qkv = operators.packed_qkv(h, gate, token_of_slot, w_qkv, b_qkv)
        o = operators.packed_attention(qkv, token_of_slot, cu_seqlens, table, **SIZES, packing="batch")
        return [qkv, o, operators.unpack_project(o, token_of_slot, slot_of_token, residual, w_proj, b_proj)]

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        real = chain()
        traced = torch.export.export(_Call(chain), ()).module()()
    assert [t.dtype for t in real] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert [t.dtype for t in traced] == [t.dtype for t in real]


class _Call(nn.Module):
    def __init__(self, function: Callable[[], list[Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self) -> list[Tensor]:
        return self.function()


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

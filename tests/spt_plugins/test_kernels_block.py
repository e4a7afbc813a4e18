from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spt_deploy.config import DYNAMIC_PACKINGS, BackboneConfig, Packing
from spt_deploy.model import operators
from spt_deploy.model.blocks import SpaBlock
from spt_plugins import torch_cuda
from spt_plugins.packed_attention import packed_attention
from spt_plugins.packed_qkv import packed_qkv
from spt_plugins.select_tokens import select_tokens
from spt_plugins.unpack_project import unpack_project
from tests.spt_deploy.model.models import images, make_model, randomise
from tests.spt_plugins.kernel_cases import DEVICE, DTYPES, normal
from tests.tolerances import MODEL, assert_close

WIDTH = 64
THRESHOLD = torch.logit(torch.tensor(0.01)).to(DEVICE)


def make_block(number: int, **changes: object) -> SpaBlock:
    """A randomised SPA block of two heads that keeps about half of the tokens."""
    config = BackboneConfig.from_name("spt_micro", **({"spa_stages": (2, 3, 4)} | changes))
    block = SpaBlock(config, 2, number, drop_path=0.0)
    randomise(block)
    nn.init.constant_(block.gate.bias, float(THRESHOLD))
    return block.eval().to(DEVICE)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks run the kernels: on CUDA as registered, else in the interpreter behind the same seam."""
    if DEVICE.type == "cuda":
        torch_cuda.register()
        return
    for launcher in (select_tokens, packed_qkv, packed_attention, unpack_project):
        monkeypatch.setattr(operators, launcher.__name__, as_operator(launcher))


def as_operator(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator's call without what only static packing needs: slots of an image, and the packing of all four."""
    inputs = len(inspect.signature(function).parameters)
    return lambda *given, **sizes: function(*given[: inputs - len(sizes)], **sizes)


def reference_block(block: SpaBlock, x: Tensor, kept: Tensor) -> Tensor:
    """The block in float64 with the given selection; with gradients on, the operators are the reference."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("select_tokens", "packed_qkv", "packed_attention", "unpack_project"):
            patch.setattr(operators, name, as_operator(getattr(operators.reference, name)))
        out: Tensor = copy.deepcopy(block).double()(x.double(), None, THRESHOLD, forced=kept)[0]
    return out.detach()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("batch", "height", "width", "window", "number"), [(3, 9, 11, 7, 1), (2, 8, 5, 3, 0)])
def test_a_block_of_the_four_kernels_is_the_reference_block(
    batch: int, height: int, width: int, window: int, number: int, packing: Packing, dtype: torch.dtype
) -> None:
    block = make_block(number, window=window, packing=packing).to(dtype)
    x = normal(batch, height, width, WIDTH, dtype=dtype)
    with torch.no_grad():
        found, logits, kept = block(x, None, THRESHOLD)
    assert found.dtype == dtype
    assert torch.equal(kept, logits > THRESHOLD)
    assert 0.2 < kept.float().mean() < 0.8
    assert_close(found, reference_block(block, x, kept), MODEL)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
def test_a_block_that_keeps_nothing_is_its_mlp(packing: Packing) -> None:
    block = make_block(0, packing=packing)
    x = normal(2, 7, 8, WIDTH)
    none = torch.zeros(2, 56, dtype=torch.bool, device=DEVICE)
    with torch.no_grad():
        found = block(x, None, THRESHOLD, forced=none)[0]
        assert torch.equal(found, x + block.mlp(block.norm2(x)))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_cuda_graph_of_the_model_follows_new_images(dtype: torch.dtype) -> None:
    """Nothing in it waits for the host: capture would fail, and a frozen selection would show."""
    torch_cuda.register()
    model = make_model("spt_micro").to(DEVICE, dtype)
    static = images(4, 64, 96).to(DEVICE, dtype)
    with torch.cuda.stream(torch.cuda.Stream()):
        model(static)  # compiles the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(static).named()
    for seed in (2, 3):
        fresh = images(4, 64, 96, seed=seed).to(DEVICE, dtype)
        static.copy_(fresh)
        graph.replay()
        for name, expected in model(fresh).named().items():
            assert torch.equal(captured[name], expected), name


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the kernels are compiled for CUDA only")
@torch.no_grad()
def test_torch_compile_takes_the_model_in_one_graph() -> None:
    torch_cuda.register()
    model = make_model("spt_micro").to(DEVICE)
    batch = images(4, 64, 96).to(DEVICE)
    compiled = torch.compile(model, fullgraph=True)
    for name, expected in model(batch).named().items():
        assert_close(compiled(batch).named()[name], expected, MODEL)

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import spt_plugins
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.model import operators, reference
from spt_plugins import torch_cuda
from tests.spt_plugins.kernel_cases import DEVICE, linear, normal, select
from tests.tolerances import MODEL, assert_close


def as_on_cuda(operator: torch._ops.OpOverload, *arguments: object) -> Any:
    """What dispatch runs for tensors on CUDA; without a GPU, on CPU tensors in the interpreter."""
    return operator.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)


def test_registered_twice_every_operator_runs_its_kernel_on_cuda() -> None:
    spt_plugins.register_torch_cuda()
    torch_cuda.register()
    assert "cuda" in operators.BOUNDED_DEVICES
    ops, chosen = torch.ops.spt, select(2, 5, 8, share=0.5, window=3)
    h, table = normal(2, 40, 64), normal(25, 2)
    w_qkv, w_proj = linear(192, 64, h.dtype), linear(64, 64, h.dtype)
    lists = as_on_cuda(ops.select_tokens.default, *chosen.scores)
    assert torch.equal(lists[0], chosen.token_of_slot)  # with a tail of -1, that the reference knows nothing of
    gate = chosen.logits.sigmoid()
    qkv = as_on_cuda(ops.packed_qkv.default, h, gate, lists[0], *w_qkv)
    o = as_on_cuda(ops.packed_attention.default, qkv, lists[0], lists[2], table, 2, 3, 40, 8, "batch")
    x = as_on_cuda(ops.unpack_project.default, o, lists[0], lists[1], h, *w_proj)
    exact = chosen.exact, chosen.slot_of_token, chosen.cu_seqlens
    qkv = reference.packed_qkv(h, gate, exact[0], *w_qkv)
    sizes: Any = {"heads": 2, "window": 3, "tokens": 40, "width": 8, "packing": "batch"}
    o = reference.packed_attention(qkv, exact[0], exact[2], table, **sizes)
    assert_close(x, reference.unpack_project(o, exact[0], exact[1], h, *w_proj), MODEL)


def test_without_triton_registering_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cuda, "_registered", False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeMissingError, match="pip install 'triton"):
        torch_cuda.register()


def test_importing_the_package_imports_neither_triton_nor_tensorrt() -> None:
    look = "import sys, spt_plugins, spt_plugins.torch_cuda; print(sorted({'triton', 'tensorrt'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_on_cuda_fakes_promise_lists_of_the_upper_bound() -> None:
    """No size depends on data, so `torch.compile` sees static shapes."""
    torch_cuda.register()
    with FakeTensorMode():
        device = torch.device("cuda:0")
        logits, threshold = torch.empty(3, 40, device=device), torch.empty((), device=device)
        order = torch.empty(40, dtype=torch.int64, device=device)
        lists = torch.ops.spt.select_tokens(logits, order, threshold)
    assert [tuple(each.shape) for each in lists] == [(120,), (3, 40), (4,)]


@pytest.mark.skipif(DEVICE.type != "cuda", reason="fakes are compared with what CUDA does")
def test_on_cuda_operators_keep_the_rules_of_torch_library() -> None:
    torch_cuda.register()
    chosen = select(2, 5, 8, share=0.5, window=3)
    check = torch.library.opcheck
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    check(torch.ops.spt.select_tokens.default, chosen.scores, test_utils=tests)
    h: Tensor = normal(2, 40, 64)
    o, qkv = normal(80, 64), normal(80, 192)  # full lists: what lies past the end would be compared
    everything = select(2, 5, 8, window=3)
    lists = everything.token_of_slot, everything.slot_of_token
    gate = everything.logits.sigmoid()
    check(torch.ops.spt.packed_qkv.default, (h, gate, lists[0], *linear(192, 64, h.dtype)), test_utils=tests)
    table = normal(25, 2)
    for packing in ("batch", "per-image"):
        arguments = (qkv, lists[0], everything.cu_seqlens, table, 2, 3, 40, 8, packing)
        check(torch.ops.spt.packed_attention.default, arguments, test_utils=tests)
    check(torch.ops.spt.unpack_project.default, (o, *lists, h, *linear(64, 64, h.dtype)), test_utils=tests)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_on_the_gpu_that_holds_their_tensors() -> None:
    torch_cuda.register()
    chosen = select(2, 5, 8, share=0.5, window=3)
    scores = (each.to("cuda:1") for each in chosen.scores)
    token_of_slot = torch.ops.spt.select_tokens(*scores)[0]
    assert torch.cuda.current_device() == 0
    assert torch.equal(token_of_slot.to(DEVICE), chosen.token_of_slot)

"""Kernels as TensorRT gets them: its grids, its order of arguments, launched through the CUDA driver.

Where there is no GPU, Triton's interpreter takes the driver's place, with the same grids and arguments.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_deploy.model import reference
from spt_plugins import driver, launches
from spt_plugins.launches import Launch
from spt_plugins.ptx import CompiledKernel, compile_ptx
from tests.spt_plugins.kernel_cases import DEVICE, DTYPES, Selection, assert_close, double, linear, normal, select

ON_GPU = DEVICE.type == "cuda"
KERNEL = CompiledKernel("k", "", 89, threads=128, shared_memory=0, parameters=("u64", "u64", "u32", "u32", "u64"))


def test_arguments_are_packed_as_inputs_then_sizes_then_outputs() -> None:
    first, second, out = (torch.zeros(64) for _ in range(3))
    packed = driver.pack_arguments(KERNEL, [first, second], [7, -1], [out])
    assert [argument.value for argument in packed] == [first.data_ptr(), second.data_ptr(), 7, -1, out.data_ptr()]
    assert [ctypes.sizeof(argument) for argument in packed] == [8, 8, 4, 4, 8]


@pytest.mark.parametrize(("inputs", "sizes", "outputs"), [(2, 2, 0), (2, 1, 1), (1, 2, 2), (2, 3, 1), (0, 0, 0)])
def test_another_number_of_arguments_is_refused(inputs: int, sizes: int, outputs: int) -> None:
    tensor = torch.zeros(64)
    with pytest.raises(UsageError, match=r"k takes \(u64, u64, u32, u32, u64\)"):
        driver.pack_arguments(KERNEL, [tensor] * inputs, [1] * sizes, [tensor] * outputs)


@pytest.mark.parametrize("cut", [lambda t: t[1:], lambda t: t.view(8, 8).t()], ids=["address", "strides"])
def test_a_tensor_that_vector_loads_would_misread_is_refused(cut: Callable[[Tensor], Tensor]) -> None:
    tensor = torch.zeros(64)
    with pytest.raises(UsageError, match="aligned to 16 bytes"):
        driver.pack_arguments(KERNEL, [tensor, cut(tensor)], [1, 1], [tensor])


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a CUDA driver")
def test_without_a_driver_the_error_says_what_is_missing() -> None:
    with pytest.raises(RuntimeMissingError, match=r"libcuda\.so\.1"):
        driver.compute_capability()


def run(launch: Launch, inputs: list[Tensor], *outputs: Tensor) -> None:
    """Compile for this GPU and launch; interpret where there is none."""
    if ON_GPU:
        kernel = compile_ptx(launch.variant, driver.compute_capability())
        driver.launch(kernel, launch.grid, inputs, launch.sizes, outputs)
    else:
        launch.variant.launch(launch.grid, *inputs, *launch.sizes, *outputs)


# The interpreter is slow, and has tests of its own for more cases.
SELECTIONS = [(3, 8, 9, 0.3), *([(1, 14, 14, None), (5, 25, 40, 0.25), (2, 6, 4, 0.0)] if ON_GPU else [])]
FLOATS = DTYPES if ON_GPU else DTYPES[:1]


@pytest.fixture(params=SELECTIONS, ids=str)
def selection(request: pytest.FixtureRequest) -> Selection:
    """All, some and none of the tokens kept, of maps that are no multiple of any tile."""
    batch, height, width, share = request.param
    return select(batch, height, width, share=share)


def test_select_tokens_is_the_reference(selection: Selection) -> None:
    outputs = [torch.full_like(t, 77) for t in (selection.token_of_slot, selection.slot_of_token, selection.cu_seqlens)]
    launch = launches.for_select_tokens(selection.batch, selection.tokens, usual_tokens=selection.tokens)
    run(launch, list(selection.scores), *outputs)
    for written, expected in zip(
        outputs, (selection.token_of_slot, selection.slot_of_token, selection.cu_seqlens), strict=True
    ):
        assert torch.equal(written, expected)


@pytest.mark.parametrize("usual_slots", [1, 1 << 30], ids=["small tiles", "large tiles"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("channels", [96, 384] if ON_GPU else [96])
def test_packed_qkv_is_the_reference(selection: Selection, dtype: torch.dtype, channels: int, usual_slots: int) -> None:
    h = normal(selection.batch, selection.tokens, channels, dtype=dtype)
    gate = normal(selection.batch, selection.tokens).sigmoid()
    weight, bias = linear(3 * channels, channels, dtype)
    slots = selection.token_of_slot.numel()
    qkv = h.new_full((slots, 3 * channels), float("nan"))
    launch = launches.for_packed_qkv(slots, dtype=dtype, channels=channels, usual_slots=usual_slots)
    run(launch, [h, gate, selection.token_of_slot, weight, bias], qkv)
    assert_close(qkv[: selection.kept], reference.packed_qkv(*double(h, gate, selection.exact, weight, bias)))
    assert qkv[selection.kept :].isnan().all()  # past the last kept token, nothing is written


@pytest.mark.parametrize("packing", ["per-image", "batch"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("heads", [3, 12] if ON_GPU else [3])
def test_packed_attention_is_the_reference(selection: Selection, dtype: torch.dtype, heads: int, packing: str) -> None:
    slots, window = selection.token_of_slot.numel(), selection.window
    qkv = normal(slots, 96 * heads, dtype=dtype)
    table = normal((2 * window - 1) ** 2, heads, dtype=dtype, seed=1)
    o = qkv.new_full((slots, 32 * heads), float("nan"))
    sizes = {"heads": heads, "window": window, "tokens": selection.tokens, "width": selection.width}
    launch = launches.for_packed_attention(
        slots, selection.batch, dtype=dtype, bias_dtype=dtype, packing=packing, **sizes
    )
    run(launch, [qkv, selection.token_of_slot, selection.cu_seqlens, table], o)
    exact = double(qkv[: selection.kept], selection.exact, selection.cu_seqlens, table)
    assert_close(o[: selection.kept], reference.packed_attention(*exact, packing=packing, **sizes))
    assert o[selection.kept :].isnan().all()


@pytest.mark.parametrize("usual_slots", [1, 1 << 30], ids=["small tiles", "large tiles"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.float16] if ON_GPU else [torch.float32], ids=str)
def test_unpack_project_is_the_reference(
    selection: Selection, dtype: torch.dtype, residual_dtype: torch.dtype, usual_slots: int
) -> None:
    slots, channels = selection.token_of_slot.numel(), 384 if ON_GPU else 96
    o = normal(slots, channels, dtype=dtype)
    residual = normal(selection.batch, selection.tokens, channels, dtype=residual_dtype, seed=2)
    weight, bias = linear(channels, channels, dtype)
    out = torch.full_like(residual, float("nan"))
    launch = launches.for_unpack_project(
        slots,
        selection.batch * selection.tokens,
        dtype=dtype,
        residual_dtype=residual_dtype,
        channels=channels,
        usual_slots=usual_slots,
    )
    run(launch, [o, selection.token_of_slot, selection.slot_of_token, residual, weight, bias], out)
    exact = double(o[: selection.kept], selection.exact, selection.slot_of_token, residual, weight, bias)
    assert_close(out, reference.unpack_project(*exact))

"""Launch of a compiled kernel through the CUDA driver, with the arguments in TensorRT's order.

TensorRT embeds the PTX of a plugin in its engine and launches it with inputs, extra arguments (sizes) and outputs.
This module takes the same things and does the same, so that what the plugins hand over can be proven on any NVIDIA
GPU, without TensorRT. PyTorch's tensors give the memory, and its current stream the order.

Source: CUDA driver API reference, "Module Management" and "Execution Control".
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_plugins.ptx import CompiledKernel

# Values of cuda.h's enumerations.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_JIT_ERROR_LOG_BUFFER = 5
_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6

# A block gets this much without asking; with static shared memory beside it, even that much has to be asked for.
_SHARED_MEMORY_UNASKED = 48 << 10
_LOG_BYTES = 8192
_ALIGNMENT = 16  # what the PTX was compiled for


@functools.cache
def _cuda() -> ctypes.CDLL:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeMissingError(
            "There is no CUDA driver (libcuda.so.1) on this machine: install NVIDIA's driver, or use a CPU runtime."
        ) from error
    _check(cuda, cuda.cuInit(0), "cuInit")
    return cuda


def _check(cuda: ctypes.CDLL, status: int, call: str, detail: str = "") -> None:
    if status:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(name))
        said = (name.value or b"unknown").decode()
        raise RuntimeMissingError(
            f"The CUDA driver answered {call} with {said}{detail}: update NVIDIA's driver, or free the GPU."
        )


def compute_capability() -> int:
    """Of the device that is current in this thread, else of the first one: 89 for 8.9.

    Raises:
        RuntimeMissingError: no driver or no device.
    """
    cuda = _cuda()
    device = ctypes.c_int()
    if cuda.cuCtxGetDevice(ctypes.byref(device)):  # no context yet
        _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    value = ctypes.c_int()
    parts = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        _check(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
        parts.append(value.value)
    return 10 * parts[0] + parts[1]


def pack_arguments(
    kernel: CompiledKernel, inputs: Sequence[Tensor], sizes: Sequence[int], outputs: Sequence[Tensor]
) -> list[ctypes.c_uint64 | ctypes.c_int32]:
    """The kernel's arguments as values of the width it declares: inputs, sizes, outputs.

    Raises:
        UsageError: their number, or the place of the sizes among them, is not the kernel's; or a tensor is not
            contiguous, or not aligned to 16 bytes.
    """
    given = ["u64"] * len(inputs) + ["u32"] * len(sizes) + ["u64"] * len(outputs)
    if tuple(given) != kernel.parameters:
        raise UsageError(
            f"{kernel.name} takes ({', '.join(kernel.parameters)}) and got ({', '.join(given)}): pass its inputs, "
            "then its sizes, then its outputs."
        )
    for tensor in (*inputs, *outputs):
        if not tensor.is_contiguous() or tensor.data_ptr() % _ALIGNMENT:
            raise UsageError(
                f"{kernel.name} got a tensor of strides {tensor.stride()} at address {tensor.data_ptr():#x}, expected "
                f"a contiguous one aligned to {_ALIGNMENT} bytes: clone it."
            )
    return [
        *(ctypes.c_uint64(tensor.data_ptr()) for tensor in inputs),
        *(ctypes.c_int32(size) for size in sizes),
        *(ctypes.c_uint64(tensor.data_ptr()) for tensor in outputs),
    ]


def launch(
    kernel: CompiledKernel,
    grid: Sequence[int],
    inputs: Sequence[Tensor],
    sizes: Sequence[int],
    outputs: Sequence[Tensor],
) -> None:
    """Launch on PyTorch's current stream of the outputs' device; returns at once.

    Args:
        kernel: compiled for this device.
        grid: one to three numbers of blocks; nothing happens if one of them is 0.
        inputs: contiguous CUDA tensors.
        sizes: the kernel's extra arguments.
        outputs: contiguous CUDA tensors, which the kernel writes.

    Raises:
        UsageError: see `pack_arguments`.
        RuntimeMissingError: the driver refused the PTX or the launch; its log is in the message.
    """
    arguments = pack_arguments(kernel, inputs, sizes, outputs)
    if 0 in grid:
        return
    device = outputs[0].device
    with torch.cuda.device(device):
        cuda = _cuda()
        function = _load(kernel, torch.cuda.current_device())
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        blocks = [*grid, 1, 1][:3]
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        status = cuda.cuLaunchKernel(
            function, *blocks, kernel.threads, 1, 1, kernel.shared_memory, stream, addresses, None
        )
        _check(cuda, status, f"the launch of {kernel.name}")


@functools.cache
def _load(kernel: CompiledKernel, device: int) -> ctypes.c_void_p:
    """Compile the PTX for the device and keep it: modules live as long as the process."""
    cuda = _cuda()
    torch.cuda.current_stream(device).synchronize()  # makes PyTorch's context the current one
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = (ctypes.c_int * 2)(_JIT_ERROR_LOG_BUFFER, _JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
    values: Any = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    status = cuda.cuModuleLoadDataEx(ctypes.byref(module), kernel.ptx.encode(), 2, options, values)
    _check(cuda, status, f"the PTX of {kernel.name}", f" ({log.value.decode(errors='replace').strip()})")
    _check(cuda, cuda.cuModuleGetFunction(ctypes.byref(function), module, kernel.name.encode()), "cuModuleGetFunction")
    if kernel.shared_memory >= _SHARED_MEMORY_UNASKED:
        status = cuda.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared_memory)
        _check(cuda, status, f"cuFuncSetAttribute ({kernel.shared_memory} bytes of shared memory)")
    return function

"""The ``spt`` operator set on NVIDIA GPUs: Triton kernels for PyTorch, and the same as TensorRT plugins.

Importing this package imports neither Triton nor TensorRT; each function below imports what it registers with.
"""

from __future__ import annotations

__all__ = ["register", "register_torch_cuda"]


def register(arch: int | None = None) -> None:
    """Register the TensorRT plugins; ``arch`` and errors as in `spt_plugins.tensorrt_plugins.register`."""
    from spt_plugins import tensorrt_plugins

    tensorrt_plugins.register(arch)


def register_torch_cuda() -> None:
    """Make the kernels PyTorch's operators on CUDA; see `spt_plugins.torch_cuda.register`."""
    from spt_plugins import torch_cuda

    torch_cuda.register()

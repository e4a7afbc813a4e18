"""The ``spt`` operator set on NVIDIA GPUs: Triton kernels for PyTorch, and the same as TensorRT plugins.

There are no kernels yet; on CUDA the model runs the operators' meaning in PyTorch.
"""

from __future__ import annotations

__all__: list[str] = []

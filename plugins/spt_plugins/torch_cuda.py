"""PyTorch on CUDA: the kernels as the implementation of ``torch.ops.spt.*``."""

from __future__ import annotations

from importlib.util import find_spec

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.model import operators

_registered = False


def register() -> None:
    """Make the kernels what the operators run on CUDA where no gradient is asked for; again is no harm.

    From then on the lists of kept tokens have the upper bound's length on CUDA, B*N, and no operator waits for the
    device: `torch.compile` sees static shapes and a CUDA graph can hold the whole model.

    Raises:
        RuntimeMissingError: there is no Triton.
    """
    global _registered
    if _registered:
        return
    if find_spec("triton") is None:
        raise RuntimeMissingError("The CUDA kernels need triton, which is not installed: pip install 'triton>=3.6'.")
    from spt_plugins.packed_attention import packed_attention
    from spt_plugins.packed_qkv import packed_qkv
    from spt_plugins.select_tokens import select_tokens
    from spt_plugins.unpack_project import unpack_project

    operators._select_tokens.register_kernel("cuda", select_tokens)
    operators._packed_qkv.register_kernel("cuda", packed_qkv)
    operators._packed_attention.register_kernel("cuda", packed_attention)
    operators._unpack_project.register_kernel("cuda", unpack_project)
    operators.BOUNDED_DEVICES.add("cuda")
    _registered = True

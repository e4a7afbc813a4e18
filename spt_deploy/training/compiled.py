"""torch.compile where it helps: the parts that are plain matrix products and activations, more than half of all work.

What selects and packs stays eager: its shapes follow the selection and differ in every step, so each would be
compiled anew or fall back. So does window attention: compiling it took minutes on a CPU, its index tables break the
graph, and its matrix products are a library's either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.model.backbone import PatchMerging
from spt_deploy.model.blocks import Mlp

DENSE_PARTS = (PatchMerging, Mlp)
_RECOMPILES = 64  # every stage and batch size is a case of its own, and torch gives up after 8


def compile_dense_parts(model: nn.Module, backend: str | Any = "inductor") -> int:
    """Compile the dense parts in place, each on its first call; names and state dicts stay as they are.

    Args:
        model: changed in place.
        backend: of torch.compile.

    Returns:
        How many parts there are.
    """
    torch._dynamo.config.recompile_limit = max(_RECOMPILES, torch._dynamo.config.recompile_limit)
    count = 0
    pending = [model]
    while pending:
        module = pending.pop()
        if isinstance(module, DENSE_PARTS):  # what lies inside is compiled with it
            module.compile(backend=backend)
            count += 1
        else:
            pending += module.children()
    return count


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turn a failure to compile into one sentence.

    Raises:
        RuntimeMissingError: when torch.compile fails inside the block.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_compiler(error):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RuntimeMissingError(
            f"--compile: torch.compile failed here ({reason}); train without --compile, "
            "or install what it needs: a C++ compiler on a CPU, triton on a GPU"
        ) from error


def _is_of_compiler(error: BaseException) -> bool:
    # By module name: asking torch for the classes would import the compiler into every run.
    return any(c.__module__.startswith(("torch._dynamo", "torch._inductor")) for c in type(error).__mro__)

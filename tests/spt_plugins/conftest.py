"""Kernels run on the GPU where there is one, and in Triton's interpreter where there is none.

Triton decides between the two when it is imported, so the choice is made here, before any test module is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

# Triton is to be had for Linux only.
collect_ignore_glob = [] if find_spec("triton") is not None else ["test_kernels_*.py"]

if not torch.cuda.is_available() and find_spec("triton") is not None:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("triton was imported without its interpreter: run pytest with TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.spt_plugins import interpreter

    interpreter.mend_bfloat16()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: tensors are so small here that threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""Kernels run on the GPU where there is one, and in Triton's interpreter where there is none (`tests/conftest.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

# Triton is to be had for Linux only.
collect_ignore_glob = [] if find_spec("triton") is not None else ["test_kernels_*.py"]

if not torch.cuda.is_available() and find_spec("triton") is not None:
    from tests.spt_plugins import interpreter

    interpreter.mend_bfloat16()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: tensors are so small here that threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""Settings for all tests of the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: tensors are so small here that threads wait for each other longer than they compute."""
    torch = sys.modules.get("torch")
    if torch is None:  # the module under test needs none
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""Fixtures that more than one part of the tests needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Triton decides at its import whether kernels run in its interpreter, and parts of torch import it while tests are
# collected. Where there is no GPU, the interpreter is the only way to run a kernel.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_IN_PACKAGE = Path("usr/share/doc/opencv-doc/examples/data/vtest.avi")  # of Debian's opencv-doc
_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled models go where the tests are, not into the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def vtest_video() -> Path:
    """vtest.avi: 795 frames of 768x576 pixels, 10 a second, pedestrians; skips where it is not to be had."""
    named = os.environ.get("SPT_VTEST")
    if named and not Path(named).is_file():
        pytest.fail(f"SPT_VTEST names {named}, which is no file")
    places = [Path(named)] if named else [Path("/") / _IN_PACKAGE, _REPOSITORY / ".cache/opencv-doc" / _IN_PACKAGE]
    for place in places:
        if place.is_file():
            return place
    pytest.skip("no vtest.avi: install Debian's opencv-doc, or name the file in SPT_VTEST")

"""The library that engines are made with: what is missing or broken is said, and how to mend it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spt_deploy.engine.library import load_library
from spt_deploy.errors import RuntimeMissingError


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        ("FileNotFoundError('libnvinfer.so.11')", r"installed and does not load \(libnvinfer\.so\.11\); again"),
        ("RuntimeError('driver mismatch')", r"installed and does not load \(driver mismatch\)"),
        ("ImportError('no module tensorrt_libs')", r"tensorrt is not installed \(no module tensorrt_libs\)"),
    ],
)
def test_a_tensorrt_that_does_not_load_is_a_runtime_that_is_missing(
    raised: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt/__init__.py").write_text(f"raise {raised}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    load_library.cache_clear()
    with pytest.raises(RuntimeMissingError, match=sentence + r".*pip install 'spt-deploy\[gpu\]'"):
        load_library("tensorrt")

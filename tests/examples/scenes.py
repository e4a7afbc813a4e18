"""The data script of example 02 as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[2] / "examples/02_detect/make_data.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("detect_make_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

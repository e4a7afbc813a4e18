"""``import spt_deploy`` and every ``--help`` work where nothing heavy or optional is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spt_deploy.cli import COMMANDS

_REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = (
    "av",
    "cv2",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "polygraphy",
    "rich",
    "tensorrt",
    "torch",
)

_BLOCKING = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run_without(blocked: tuple[str, ...], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter that cannot import the packages named."""
    return subprocess.run(
        [sys.executable, "-c", _BLOCKING.format(blocked=blocked) + code, *arguments],
        cwd=_REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_blocker_blocks() -> None:
    assert "numpy is blocked" in run_without(("numpy",), "import numpy").stderr


def test_the_package_imports_with_the_standard_library_alone() -> None:
    done = run_without((*HEAVY, "click", "typing_extensions"), "import spt_deploy; print(spt_deploy.__version__)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["cv2", "onnxruntime", "openvino", "torch"])
def test_configuration_and_facts_import_without(package: str) -> None:
    modules = "spt_deploy.config, spt_deploy.errors, spt_deploy.facts, spt_deploy.preprocess, spt_deploy.atomic"
    done = run_without((package,), f"import {modules}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = run_without(HEAVY, "from spt_deploy.cli import main; main(prog_name='spt-deploy')", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("Usage: spt-deploy", "spt-deploy, version"))

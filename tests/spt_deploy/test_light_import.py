"""``import spt_deploy`` and every ``--help`` work where nothing heavy or optional is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from spt_deploy.cli import COMMANDS
from tests.exported import make_exported
from tests.spt_deploy.streaming.support import write_video

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
import importlib.util
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

def find_spec(name, package=None, find=importlib.util.find_spec):
    return None if name.partition(".")[0] in {blocked!r} else find(name, package)

sys.meta_path.insert(0, Blocker())
importlib.util.find_spec = find_spec
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


def test_data_sets_are_read_without_torch() -> None:
    done = run_without(("torch",), "import spt_deploy.datasets.formats, spt_deploy.datasets.rewrite")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = run_without(HEAVY, "from spt_deploy.cli import main; main(prog_name='spt-deploy')", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("Usage: spt-deploy", "spt-deploy, version"))


@pytest.mark.parametrize(
    "arguments",
    [("info",), ("bench", "--repeats", "1", "--batch", "1"), ("validate",)],
    ids=lambda arguments: arguments[0],
)
def test_what_is_there_for_exported_files_runs_without_torch(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    made = make_exported(tmp_path, (64, 64))
    code = "from spt_deploy.cli import main; main(prog_name='spt-deploy')"
    done = run_without(("torch", "safetensors", "onnxscript"), code, *arguments, str(made.onnx))
    assert done.returncode == 0, done.stderr
    assert made.onnx.name in done.stdout


@pytest.mark.parametrize("name", ["split", "pad"])
def test_data_sets_are_made_without_torch(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two") if name == "split" else ("train/one", "train/two", "val/one", "val/two"):
        for number in range(2):
            path = tmp_path / "source" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), np.full((8, 8, 3), number, np.uint8))
    code = "from spt_deploy.cli import main; main(prog_name='spt-deploy')"
    done = run_without(("torch",), code, "data", name, str(tmp_path / "source"), str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "made/train").rglob("*.png")]) >= 2


def test_infer_runs_an_onnx_file_with_the_packages_that_the_readme_installs_on_a_box(tmp_path: Path) -> None:
    readme = (_REPOSITORY / "README.md").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^ {4}pip install -c constraints.txt (av .*)$", readme, flags=re.MULTILINE)
    there = set(packages.replace("-headless", "").split())
    (table,) = re.findall(
        r"^dependencies = \[\n(.*?)^]", (_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.S | re.M
    )
    missing = sorted({*re.findall(r'^ +"([\w-]+)', table, re.M), "onnxruntime"} - there)
    assert "torch" in missing
    made = make_exported(tmp_path / "made", (64, 64))
    write_video(tmp_path / "street.mp4", range(0, 200, 40))
    done = run_without(
        tuple(name.replace("-", "_") for name in missing),
        "from spt_deploy.cli import main; main(prog_name='spt-deploy')",
        *("infer", str(tmp_path / "street.mp4"), "--model", str(made.onnx), "--out", str(tmp_path / "out")),
        *("--runtime", "openvino"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/annotated.mp4").is_file()

"""Fixtures that several tests of infer need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spt_deploy.cli import main
from spt_deploy.workflows import infer as workflow
from tests.spt_deploy.streaming.support import ColourRunner


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command with a runner that computes something simple, into ``out`` unless told otherwise."""

    def run(*arguments: str | Path, runner: type[ColourRunner] = ColourRunner) -> Result:
        monkeypatch.setattr(workflow, "_runner", lambda *given: (runner(), ""))
        out = () if "--out" in arguments else ("--out", "out")
        return CliRunner().invoke(main, ["infer", *map(str, arguments), *out])

    return run

"""docs/training.md speaks of every option and every file, and says the defaults that the command has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spt_deploy.cli.train import command
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.run_folder import RunFolder

TEXT = (Path(__file__).parents[3] / "docs/training.md").read_text(encoding="utf-8")
OPTIONS = {option.opts[0]: option for option in command.params if option.opts[0].startswith("--")}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_has_a_row(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", TEXT, re.MULTILINE)


def test_no_row_speaks_of_an_option_that_is_not_there() -> None:
    assert set(re.findall(r"^\| `(--[a-z-]+)` \|", TEXT, re.MULTILINE)) == set(OPTIONS)


@pytest.mark.parametrize("name", sorted(n for n, o in OPTIONS.items() if isinstance(o.default, int | float)))
def test_defaults_are_those_of_the_command_and_of_python(name: str) -> None:
    default = OPTIONS[name].default
    if not isinstance(default, bool):
        row = re.search(rf"^\| `{name}` \| ([^|]+) \|", TEXT, re.MULTILINE)
        assert row is not None
        assert float(row[1]) == default
    fields = TrainConfig(Path("data"), Path("run")).to_dict()
    assert fields.get(name[2:].replace("-", "_"), default) == default


def test_every_file_of_a_run_has_a_row() -> None:
    folder = RunFolder(Path("run"))
    for path in (folder.report, folder.best, folder.last, folder.curves, folder.metrics, folder.config):
        assert f"| `{path.name}` |" in TEXT
    assert f"| `{folder.samples.name}/` |" in TEXT

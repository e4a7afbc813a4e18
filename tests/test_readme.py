"""What README says can be done: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from spt_deploy.cli import COMMANDS, main
from tests.exported import make_exported
from tests.spt_deploy.streaming.support import write_video

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_the_python_of_the_readme_runs_where_the_demo_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_exported(tmp_path / "made", (64, 64))
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "data/demo").mkdir(parents=True)
    made.onnx.rename(tmp_path / "runs/demo/best.onnx")
    write_video(tmp_path / "data/demo/demo.mp4", range(0, 200, 40))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        # The large example is as right at a small size.
        exec(compile(block.replace("800, 1280", "64, 96"), "README.md", "exec"), {})
    assert (tmp_path / "runs/python/predictions.jsonl").is_file()


def test_every_command_of_the_readme_exists_and_every_command_is_in_it() -> None:
    named = set(re.findall(r"^ {4}spt-deploy ([\w-]+)", README, flags=re.MULTILINE))
    assert named <= set(COMMANDS)
    assert set(re.findall(r"spt-deploy ([a-z-]+) ", README)) >= set(COMMANDS) - {"data"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_of_the_repository_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_help_names_every_command_on_one_screen() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert all(name in text for name in COMMANDS)
    assert len(text.splitlines()) < 40

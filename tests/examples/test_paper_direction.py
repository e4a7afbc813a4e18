"""Example 04: the data are what its README says, the comparison trains every arm and tells the truth about it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples/04_paper_direction"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits")
    load_script("make_digits").write(out)
    return out


def boxes(folder: Path) -> dict[str, list[int]]:
    rows = [line.split("\t") for line in (folder / "boxes.txt").read_text(encoding="utf-8").splitlines()]
    return {name: [int(v) for v in box] for name, *box in rows}


@pytest.mark.parametrize("name", ["padded", "textured"])
def test_all_digits_are_there_a_fifth_of_them_for_validation(data: Path, name: str) -> None:
    splits = {split: sorted((data / name / split).glob("*/*.png")) for split in ("train", "val")}
    assert {split: len(paths) for split, paths in splits.items()} == {"train": 1437, "val": 360}
    assert not {p.name for p in splits["train"]} & {p.name for p in splits["val"]}
    assert {p.parent.name for p in splits["val"]} == set("0123456789")


def test_a_padded_digit_is_black_but_for_its_upper_left_quarter(data: Path) -> None:
    image = cv2.imread(str(data / "padded/val/3/0045.png"))
    assert image.shape == (128, 128, 3)
    assert image[:64, :64].min() > 0
    assert image[64:].max() == image[:, 64:].max() == 0
    assert boxes(data / "padded/val/3")["0045.png"] == [0, 0, 64, 64]


def test_a_textured_digits_box_holds_its_ink_and_nothing_else_does(data: Path) -> None:
    for name, (x0, y0, x1, y1) in list(boxes(data / "textured/train/7").items())[:20]:
        bright = cv2.imread(str(data / "textured/train/7" / name)).min(axis=2) > 200
        rows, columns = np.nonzero(bright)
        assert rows.size
        assert x0 <= columns.min() <= columns.max() < x1
        assert y0 <= rows.min() <= rows.max() < y1


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("make_digits", ["DATA"], "padded is there already; choose another folder"),
        (
            "compare",
            ["nowhere", "runs"],
            "there is no folder nowhere/padded, nowhere/textured; make it with make_digits",
        ),
        ("thresholds", ["DATA", "nowhere"], "nowhere has no run with select loss (padded-2-0/best.pt); run compare.py"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *(str(data) if a == "DATA" else a for a in arguments)])
    assert load_script(script).main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_the_comparison_trains_every_arm_and_prints_what_the_runs_recorded(data: Path, tmp_path: Path) -> None:
    small = tmp_path / "data"
    for split, count in (("train", 2), ("val", 1)):
        for digit in range(10):
            source, target = data / "padded" / split / str(digit), small / "padded" / split / str(digit)
            target.mkdir(parents=True)
            kept = sorted(source.glob("*.png"))[:count]
            for path in kept:
                (target / path.name).write_bytes(path.read_bytes())
            lines = "".join("\t".join([p.name, *map(str, boxes(source)[p.name])]) + "\n" for p in kept)
            (target / "boxes.txt").write_text(lines, encoding="utf-8")
    command = [sys.executable, str(FOLDER / "compare.py"), str(small), str(tmp_path / "runs")]
    command += ["--only", "padded", "--epochs", "1", "--seeds", "1", "--jobs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "runs/results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["arm"] for row in rows] == ["Swin", "SPT, no select loss", "SPT, select loss"]
    for index, row in enumerate(rows):
        lines = (tmp_path / f"runs/padded-{index}-0/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert row["top1"] == 100 * json.loads(lines[-1])["val"]["top1"]
        assert f"| padded | {row['arm']} | {row['top1']:.1f} %" in result.stdout
    assert rows[0]["select_ratio"] == {}
    assert rows[2]["object_ratio"] == {"stride 16": 25.0, "stride 32": 25.0}


def test_a_run_that_was_killed_before_its_report_is_not_finished(tmp_path: Path) -> None:
    records = load_script("compare")._records
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n', encoding="utf-8")
    assert records(tmp_path) == []
    (tmp_path / "report.md").touch()
    assert records(tmp_path) == [{"epoch": 1}]
    os.utime(tmp_path / "report.md", (0, 0))  # of an epoch before
    assert records(tmp_path) == []

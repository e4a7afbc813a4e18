"""Which file a command means when none is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spt_deploy.errors import InputError, UsageError
from spt_deploy.workflows import artefacts
from spt_deploy.workflows.artefacts import check_name, find_artefact, find_runnable
from spt_deploy.workflows.build_engine import build_engine
from spt_deploy.workflows.export import export


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str, age: int) -> Path:
    """An empty file that was written ``age`` seconds before a fixed time."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1_700_000_000 - age,) * 2)
    return path


def test_a_file_that_is_named_is_taken_without_a_word() -> None:
    make("new.onnx", age=0)
    assert find_artefact(make("old.pt", age=9)) == (Path("old.pt"), "")


def test_a_file_of_another_kind_is_refused_and_the_command_that_makes_the_kind_is_named() -> None:
    for suffix in (".pt", ".pth", ".safetensors"):
        with pytest.raises(InputError, match=r"is a checkpoint by its name, and an ONNX file is wanted; .*export"):
            build_engine(make(f"best{suffix}", age=0))
    with pytest.raises(InputError, match=r"is an ONNX file by its name, and a checkpoint is wanted; .*train"):
        export(make("best.onnx", age=0))


def test_the_newest_of_a_kind_is_taken_here_and_under_runs_at_any_depth() -> None:
    make("a.onnx", age=3)
    make("runs/x/y/b.onnx", age=1)
    make("runs/c.onnx", age=2)
    make("elsewhere/d.onnx", age=0)
    assert find_artefact(None).path == Path("runs/x/y/b.onnx")


def test_a_better_kind_beats_a_newer_file() -> None:
    make("best.pt", age=0)
    make("model.onnx", age=5)
    assert find_artefact(None).path == Path("model.onnx")
    make("runs/model.engine", age=9)
    assert find_artefact(None).path == Path("runs/model.engine")


def test_only_the_kinds_asked_for_are_looked_at() -> None:
    make("model.onnx", age=0)
    make("start.safetensors", age=5)
    assert find_artefact(None, ["checkpoint"]).path == Path("start.safetensors")


def test_the_sentence_says_which_file_why_and_what_was_missing() -> None:
    make("runs/x/model.onnx", age=0)
    why = find_artefact(None).why
    assert why == "taking runs/x/model.onnx: the newest ONNX file here or under runs/; no engine was found"
    assert find_artefact(None, ["onnx"]).why == "taking runs/x/model.onnx: the newest ONNX file here or under runs/"


def test_the_best_checkpoint_of_a_run_stands_for_the_run() -> None:
    make("runs/a/best.pt", age=1)
    make("runs/a/last.pt", age=0)
    assert find_artefact(None).path == Path("runs/a/best.pt")


def test_a_run_is_as_new_as_its_newest_checkpoint() -> None:
    make("runs/newer/best.pt", age=9)  # its first epoch was its best
    make("runs/newer/last.pt", age=0)
    make("runs/older/best.pt", age=5)
    make("runs/older/last.pt", age=4)
    assert find_artefact(None).path == Path("runs/newer/best.pt")


def test_a_run_without_a_best_checkpoint_gives_its_last() -> None:
    make("runs/a/last.pt", age=0)
    assert find_artefact(None).path == Path("runs/a/last.pt")


def test_hidden_files_and_folders_are_no_artefacts() -> None:
    make(".model.123-ab.onnx", age=0)
    Path("folder.onnx").mkdir()
    with pytest.raises(InputError):
        find_artefact(None, ["onnx"])


def test_files_of_one_age_are_taken_in_the_same_order_every_time() -> None:
    for name in ("c.onnx", "a.onnx", "b.onnx"):
        make(name, age=0)
    assert find_artefact(None).path == Path("c.onnx")


def test_a_folder_that_is_named_is_looked_into() -> None:
    make("runs/new/best.onnx", age=0)
    make("runs/old/best.onnx", age=5)
    assert find_artefact(Path("runs/old")).path == Path("runs/old/best.onnx")


def test_in_a_folder_too_an_engine_is_left_out_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("runs/new/best.engine", age=0)
    onnx = make("runs/new/best.onnx", age=5)
    monkeypatch.setattr(artefacts, "has_gpu", lambda: False)
    assert find_runnable(Path("runs/new")).path == find_runnable(None).path == onnx
    assert find_runnable(engine).path == engine
    monkeypatch.setattr(artefacts, "has_gpu", lambda: True)
    assert find_runnable(Path("runs/new")).path == engine


def test_nothing_found_says_what_was_looked_for_and_what_makes_one() -> None:
    with pytest.raises(InputError) as caught:
        find_artefact(None)
    for part in ("*.engine", "*.onnx", "*.pt", "*.safetensors", "runs/", "spt-deploy train"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="spt-deploy export"):
        find_artefact(None, ["onnx"])


def test_a_file_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"no file missing\.onnx"):
        find_artefact(Path("missing.onnx"))


def test_an_output_that_takes_another_kind_s_place_is_refused_and_what_was_there_stays() -> None:
    checkpoint, exported = make("best.pt", 1), make("best.onnx", 0)
    with pytest.raises(UsageError, match=r"output is best.pt; expected a name that ends in .onnx, .* an ONNX file"):
        export(checkpoint, checkpoint)
    with pytest.raises(UsageError, match=r"output is best.onnx; expected a name that ends in .engine, .* an engine"):
        build_engine(exported, exported)
    with pytest.raises(UsageError, match=r"ends in .pt or .safetensors, .* a checkpoint"):
        check_name(exported, "checkpoint")
    assert checkpoint.stat().st_size == exported.stat().st_size == 0

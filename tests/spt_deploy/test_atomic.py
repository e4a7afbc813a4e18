"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from spt_deploy.atomic import atomic_path, remove_leftovers, write_json, write_text
from spt_deploy.errors import OutputError


def write_half(target: Path, error: BaseException) -> None:
    """Begin to write ``target`` and fail."""
    with atomic_path(target) as temporary:
        temporary.write_text("half of the new")
        raise error


def test_the_file_appears_when_the_block_succeeds_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "model.onnx"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"weights")
        assert not target.exists()
    assert target.read_bytes() == b"weights"
    assert list(target.parent.iterdir()) == [target]


def test_the_temporary_name_is_hidden_and_keeps_folder_and_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "annotated.mp4") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mp4"
        assert temporary.name.startswith(".")
        temporary.touch()


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), RuntimeError("of the writer")])
def test_a_block_that_fails_leaves_the_old_file_and_its_own_error(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "best.pt"
    target.write_text("old")
    with pytest.raises(type(error)):
        write_half(target, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert target.read_text() == "1"  # the one that ended last


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_that_names_the_target(tmp_path: Path, code: int) -> None:
    target = tmp_path / "model.onnx"
    with pytest.raises(OutputError, match=r"disk full while writing .*model\.onnx"):
        write_half(target, OSError(code, os.strerror(code)))  # a write of an open file raises it without a name
    assert list(tmp_path.iterdir()) == []


class _Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(("free", "expected"), [(0, OutputError), (1 << 40, RuntimeError)])
def test_a_native_writers_failure_is_a_full_disk_only_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: type[Exception]
) -> None:
    monkeypatch.setattr("spt_deploy.atomic.shutil.disk_usage", lambda path: _Usage(free))
    with pytest.raises(expected), atomic_path(tmp_path / "last.pt"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out" / "x.txt"):
        (tmp_path / "elsewhere" / "input.txt").read_text()


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file"):
        write_text(tmp_path, "text")


def test_a_file_in_the_way_of_the_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "runs" / "x.txt", "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="choose a place that you may write to"):
            write_text(tmp_path / "x.txt", "text")
    finally:
        tmp_path.chmod(0o700)


def test_json_is_valid_json_even_of_what_json_has_no_word_for(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    value = {"max": float("nan"), "list": [1.5, float("inf"), (float("-inf"), 2)], "name": "Größe", "none": None}
    write_json(path, value)
    expected = {"max": None, "list": [1.5, None, [None, 2]], "name": "Größe", "none": None}
    assert json.loads(path.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize("name", ["last.pt", f"{'a' * 60} (1).pt", "metrics"])
def test_what_a_killed_process_left_of_a_file_goes_and_nothing_else(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    others = [tmp_path / other for other in (f".{name}", ".last.txt", ".last.1-2.pt", "last.1-0123abcd.pt")]
    for path in (target, *others):
        path.write_text("whole")
    with atomic_path(target) as temporary, atomic_path(tmp_path / "best.pt") as of_another:
        temporary.write_text("half")
        of_another.write_text("whole")
        remove_leftovers(target)
        assert not temporary.exists()
        assert of_another.exists()
        temporary.write_text("written again")
    assert target.read_text() == "written again"
    assert all(path.exists() for path in others)
    remove_leftovers(tmp_path / "nowhere/last.pt")

"""A folder for the results: named after the source, and nobody else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spt_deploy.errors import OutputError
from spt_deploy.workflows.result_folder import fresh_folder

pytestmark = pytest.mark.usefixtures("inside")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/street.mp4", "street"),
        ("photos", "photos"),
        ("photos/**/*.png", "photos"),
        ("*.png", "images"),
        (".", "images"),
    ],
)
def test_the_folder_is_named_after_the_source(source: str, name: str) -> None:
    assert fresh_folder(source) == Path("runs/infer") / name


def test_those_who_ask_at_the_same_time_have_each_their_own(inside: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(fresh_folder, ["a/v.mp4"] * 40))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


def test_a_folder_that_cannot_be_made_is_said(inside: Path) -> None:
    (inside / "runs").touch()
    with pytest.raises(OutputError, match="runs/infer/v cannot be written: Not a directory"):
        fresh_folder("v.mp4")

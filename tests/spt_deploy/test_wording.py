"""One is counted as one."""

from __future__ import annotations

from spt_deploy.wording import counted


def test_one_is_not_many() -> None:
    assert [counted(n, "image") for n in range(3)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class", "classes") for n in range(3)] == ["0 classes", "1 class", "2 classes"]

"""Names for what is made of frames: one a source, whatever it is called, and safe in any file system."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.streaming.frames import Frame, Source
from spt_deploy.streaming.source_names import SourceNames, safe_name
from spt_deploy.streaming.sources import Images
from tests.spt_deploy.streaming.support import Recording, picture

IMAGE = picture(0)


def images(*names: str, root: str = "") -> Images:
    return Images("images", [Path(name) for name in names], Path(root))


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ([Recording("odd.mkv"), Recording("odd.avi"), Recording("Odd-2.mp4")], ["odd", "odd-2", "Odd-2-2"]),
        ([images("a/1.jpg", "b/1.jpg")], ["a/1", "b/1"]),
        ([images("a/1.jpg", root="a"), images("b/1.jpg", root="b")], ["a/1", "b/1"]),
        ([images("a/b/1.jpg", "a/b/2.jpg", root="a/b")], ["1", "2"]),
        ([images("1.jpg", "1.png", "2.png")], ["1.jpg", "1.png", "2"]),
        ([images("1.jpg"), images("1.jpg")], ["1", "1"]),  # one picture, named twice
        ([images("street.jpg"), Recording("street.mp4")], ["street.jpg", "street"]),
        ([images("a/../b/1.jpg", "../c:d/1.jpg")], ["a/b/1", "c_d/1"]),
    ],
)
def test_no_two_sources_share_a_name(sources: list[Source], names: list[str]) -> None:
    given_names = SourceNames(sources)
    found = []
    for source in sources:
        paths = source.paths if isinstance(source, Images) else [Path(source.name)]
        found += [str(given_names.of(source, Frame(str(path), 0, None, IMAGE))) for path in paths]
    assert found == names


@given(st.text(max_size=300))
def test_a_safe_name_is_one_part_of_a_path_that_any_file_system_takes(name: str) -> None:
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= 120
    assert not set(safe) & set('/\\:*?"<>|\0\n')
    assert not safe.startswith((".", " "))
    assert not safe.endswith((".", " "))


def test_a_plain_name_stays_as_it_is() -> None:
    for name in ("car", "traffic light", "Straßenbahn", "図", "a-b_c.2 (old)"):
        assert safe_name(name) == name

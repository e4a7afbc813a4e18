"""Caches lie in the user's cache folder, one for each version and kind of GPU, and are never worth an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from spt_deploy.engine.caches import cache_folder, kernel_cache_path, read_cache, timing_cache_path, write_cache
from spt_deploy.engine.library import Gpu
from spt_deploy.errors import OutputError
from spt_deploy.runtimes.compiled_cache import keep_compiled

GPU = Gpu("NVIDIA GeForce RTX 4090", "sm_89")


def test_caches_lie_where_the_user_keeps_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "spt-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/spt-deploy"


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    place = cache_folder() / "a.cache"
    assert read_cache(place) == b""
    with pytest.raises(OutputError):
        write_cache(place, b"measured")
    keep_compiled(place, b"compiled")


def test_version_and_gpu_have_each_their_own() -> None:
    other = Gpu("NVIDIA L4", "sm_89")
    paths = [timing_cache_path(version, gpu) for version in ("10.13.0.1", "11.4.0.106") for gpu in (GPU, other)]
    paths += [kernel_cache_path("1.7", GPU, digest * 64) for digest in "01"]
    assert len(set(paths)) == len(paths)
    assert paths[0].name == "tensorrt-10.13.0.1-nvidia-geforce-rtx-4090.cache"


def test_what_was_written_is_read_and_what_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.cache"
    assert read_cache(path) == b""
    write_cache(path, b"measured")
    assert read_cache(path) == b"measured"
    assert read_cache(tmp_path) == b""

"""What builds and runs leave for the next ones: timing caches and compiled kernels, in the user's cache folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from spt_deploy.atomic import atomic_path
from spt_deploy.engine.library import Gpu


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/spt-deploy``, or ``~/.cache/spt-deploy``; of a user without a home where nothing can be."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "spt-deploy"
    except RuntimeError:
        return Path(os.devnull) / "spt-deploy"  # not a shared folder: who else writes there could give us models


def timing_cache_path(version: str, gpu: Gpu) -> Path:
    """TensorRT's measurements of kernels: good for one version on one kind of GPU."""
    return cache_folder() / "timing" / f"tensorrt-{version}-{_slug(gpu.name)}.cache"


def kernel_cache_path(version: str, gpu: Gpu, plan_sha256: str) -> Path:
    """The kernels that TensorRT-RTX compiled when an engine was first run."""
    return cache_folder() / "kernels" / f"tensorrt-rtx-{version}-{_slug(gpu.name)}-{plan_sha256[:16]}.cache"


def read_cache(path: Path) -> bytes:
    """Its bytes; none where there is no cache, or none that may be read: a cache is never worth an error."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def write_cache(path: Path, data: bytes) -> None:
    """Write it whole.

    Raises:
        OutputError: when it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()

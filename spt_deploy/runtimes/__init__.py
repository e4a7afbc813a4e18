"""Runtimes: ``with open_runner(path) as runner: outputs = runner.infer(images)``."""

from __future__ import annotations

from spt_deploy.runtimes.base import Arrays, Runner
from spt_deploy.runtimes.registry import open_runner

__all__ = ["Arrays", "Runner", "open_runner"]

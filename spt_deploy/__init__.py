"""spt-deploy: from a trained Select and Pack Transformer to something that runs.

This module stays light: nothing heavier than the standard library is imported here, until ``Predictor`` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spt_deploy.version import __version__

if TYPE_CHECKING:
    from spt_deploy.predictor import Predictor

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Predictor":
        from spt_deploy.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'spt_deploy' has no attribute {name!r}")

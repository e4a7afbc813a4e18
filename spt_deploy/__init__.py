"""spt-deploy: from a trained Select and Pack Transformer to something that runs.

This module stays light: nothing heavier than the standard library is imported here.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]

"""Engines of TensorRT and TensorRT-RTX: how they are built, and what is written down beside them.

An engine file is the pure plan, as NVIDIA's own tools take it; ``FILE.engine.json`` beside it says what it is
(`description.py`). Importing this package imports neither library.
"""

from __future__ import annotations

"""A folder of its own for the results of a run that names none."""

from __future__ import annotations

import glob
from pathlib import Path

from spt_deploy.atomic import make_folder
from spt_deploy.workflows.artefacts import RUNS


def fresh_folder(source: str) -> Path:
    """``runs/infer/NAME`` after a source, or ``NAME-2`` and so on where that is taken; made, for this run alone.

    Raises:
        OutputError: when it cannot be made.
    """
    path = Path(f"camera-{source}" if source.isdecimal() else source)
    fixed = [part for part in path.parts if not glob.has_magic(part)] if not path.exists() else list(path.parts)
    name = Path(fixed[-1]).stem if fixed else ""
    base = RUNS / "infer" / (name.strip("./") or "images")
    folder, number = base, 2
    while not make_folder(folder):
        folder = base.with_name(f"{base.name}-{number}")
        number += 1
    return folder

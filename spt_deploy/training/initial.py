"""Weights to start from: a checkpoint of ours or a Swin's, its head made anew where the classes are others."""

from __future__ import annotations

from pathlib import Path

from spt_deploy.errors import ArtefactError
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.model.swin_weights import fit_swin_weights, read_swin_weights
from spt_deploy.wording import counted

_NAMES_SHOWN = 4
_CLASS_LAYERS = ("head.fc.", "head.class_conv.")  # an output for each class; what else a head has serves any


def load_initial(model: SptModel, path: Path) -> list[str]:
    """Put what fits of the weights in ``path`` into ``model``; the rest stays as it is.

    Args:
        model: changed in place.
        path: an SPT checkpoint, or Swin weights with official, timm or Hugging Face names.

    Returns:
        What a user should know, a sentence each: first what was taken, then what was not.

    Raises:
        ArtefactError: when the file holds no weights, or those of another variant.
    """
    named = read_swin_weights(path)
    fitting, report = fit_swin_weights(named, model.config)
    classes = class_names_of(path)
    if classes is not None and classes != model.config.class_names:
        # As many classes would fit by shape and be wrong all the same.
        fitting = {k: v for k, v in fitting.items() if not k.startswith(_CLASS_LAYERS)}
    model.load_state_dict(fitting, strict=False)
    total = len(model.state_dict())
    notes = [f"starting from {path}: {len(fitting)} of {total} weights taken ({report.scheme} names)"]
    fresh = [name for name in model.state_dict() if name not in fitting]
    if any(name.startswith("head.") for name in fresh):
        wanted, has = model.config.class_names, "none that fits"  # of another task, or no head at all
        if classes is not None and classes != wanted:
            has = f"{counted(len(classes), 'class', 'classes')} ({_listed(classes)})"
        notes.append(f"the head starts fresh for {counted(len(wanted), 'class', 'classes')}; the file has {has}")
    if any(".gate." in name for name in fresh):
        notes.append("the gates start fresh: the file has none")
    rest = [name for name in fresh if not name.startswith("head.") and ".gate." not in name]
    if rest:
        notes.append(f"{len(rest)} more weights start fresh: {_listed(rest)}")
    if report.unexpected:
        notes.append(f"{len(report.unexpected)} weights of the file are not used: {_listed(report.unexpected)}")
    return notes


def class_names_of(path: Path) -> tuple[str, ...] | None:
    """Classes of a checkpoint of ours; None for any other file."""
    try:
        return load_checkpoint(path).facts.model.class_names
    except ArtefactError:
        return None


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")

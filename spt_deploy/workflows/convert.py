"""Swin weights of other projects become a checkpoint to start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spt_deploy.config import BackboneConfig, ModelConfig, Task
from spt_deploy.errors import InputError, UsageError
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.model.swin_keys import NamedWeights
from spt_deploy.model.swin_weights import FitReport, class_count, fit_swin_weights, looks_like, read_swin_weights
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.initial import class_names_of
from spt_deploy.workflows.artefacts import check_name


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` made.

    Attributes:
        path: of the checkpoint.
        config: of the model in it.
        report: what became of each weight.
    """

    path: Path
    config: ModelConfig
    report: FitReport

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        return {
            "path": str(self.path),
            "model": self.config.backbone.name,
            "task": self.config.task,
            "classes": len(self.config.class_names),
            "fresh_head": self.report.has_fresh_head,
            "report": self.report.to_dict(),
        }


def convert(
    weights: Path,
    *,
    model: str | None = None,
    output: Path | None = None,
    task: Task = "classify",
    image_size: tuple[int, int] = (224, 224),
    class_names: Sequence[str] | None = None,
) -> Conversion:
    """Write Swin weights as a checkpoint of this toolkit.

    What the file lacks starts fresh, the same way each time: the gates of an SPT always, the head where the file has no
    classifier of as many classes.

    Args:
        weights: ``.pth``, ``.pt`` or ``.safetensors`` with official, timm or Hugging Face names.
        model: ``spt_t`` and the like; None takes the SPT of the size that the weights have.
        output: ``.pt`` or ``.safetensors``; None names it after weights and model, in the working directory.
        task: of the head.
        image_size: (height, width) in pixels that the checkpoint says it takes.
        class_names: in the order of the logits; None takes those of a checkpoint of ours, or of a ``config.json``
            beside the weights, as Hugging Face writes it, or else numbers the classifier's.

    Raises:
        ArtefactError: when the file is no Swin, or one of another size than ``model``.
        UsageError: when neither a classifier nor names tell the classes, ``output`` is no checkpoint's name, or it
            would replace ``weights``.
        OutputError: when the checkpoint cannot be written.
    """
    named = read_swin_weights(weights)
    name = model or _spt_of(named)
    preprocessing = Preprocessing.for_task(task, image_size)
    names = tuple(class_names) if class_names is not None else _class_names(weights, named)
    config = ModelConfig(BackboneConfig.from_name(name), task, names)
    fitting, report = fit_swin_weights(named, config)
    path = output or Path(f"{weights.stem}-{name}.pt")
    if path.exists() and path.samefile(weights):
        raise UsageError(f"the checkpoint {path} would replace the weights it is made from; name another with -o")
    check_name(path, "checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = SptModel(config)
    built.load_state_dict(fitting, strict=False)
    save_checkpoint(path, built, preprocessing)
    return Conversion(path, config, report)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line; empty lines do not count.

    Raises:
        InputError: when the file cannot be read as text or has no names.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as class names ({error}); give a text file, one name a line"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"{path} has no class names; write one a line")
    return names


def _spt_of(named: NamedWeights) -> str:
    """The SPT that weights of a known Swin start; of unknown ones any, whose check then says what they look like."""
    like = looks_like(named)
    return f"spt_{like.split('_')[1]}" if like else "spt_t"


def _class_names(weights: Path, named: NamedWeights) -> tuple[str, ...]:
    ours = class_names_of(weights)
    if ours is not None:
        return ours
    count = class_count(named)
    if count is None:
        raise UsageError(
            f"{weights} has no classifier to count classes by; name the classes of the new head with --class-names FILE"
        )
    return _hugging_face_names(weights.with_name("config.json"), count) or tuple(f"class {i}" for i in range(count))


def _hugging_face_names(path: Path, count: int) -> tuple[str, ...]:
    """``id2label`` of a Hugging Face configuration; empty where there is none for so many classes."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["id2label"]
        names = [str(labels[str(i)]) for i in range(count)]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    if len(labels) != count:
        return ()
    # ImageNet has two classes called "crane": a bird and a machine.
    return tuple(name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names))

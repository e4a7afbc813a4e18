"""Checkpoints: weights, what the model is, and what training needs to go on; nothing is ever unpickled.

``.pt`` files load with ``weights_only=True``; ``.safetensors`` files hold the weights and, in their header, the facts.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from spt_deploy.atomic import atomic_path
from spt_deploy.errors import ArtefactError
from spt_deploy.facts import METADATA_KEY, ModelFacts
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.version import __version__

FORMAT = "spt-deploy/1"
SUFFIXES = (".pt", ".pth", ".safetensors")
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # what Hugging Face writes


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        facts: what the model is.
        weights: the model's state dict, on the CPU.
        training: state of the trainer (plain values and tensors); empty where there is none.
    """

    facts: ModelFacts
    weights: dict[str, Tensor]
    training: dict[str, Any] = field(default_factory=dict)

    def build(self) -> SptModel:
        """The model with these weights, in evaluation mode.

        Raises:
            ArtefactError: when the weights do not fit the configuration.
        """
        with torch.random.fork_rng(devices=[]):  # what a new model draws is replaced, and nobody shall miss it
            model = SptModel(self.facts.model)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1:2]
            raise ArtefactError(
                f"the weights do not fit the model {self.facts.model.backbone.name} that the checkpoint says it is: "
                f"{' '.join(first).strip()}"
            ) from error
        return model.eval()


def save_checkpoint(
    path: Path, model: SptModel, preprocessing: Preprocessing, training: dict[str, Any] | None = None
) -> None:
    """Write ``path`` (``.pt`` or ``.safetensors``; only ``.pt`` keeps ``training``), whole or not at all.

    Raises:
        OutputError: when the file cannot be written.
    """
    facts = ModelFacts(model.config, preprocessing, __version__)
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(weights, temporary, metadata={METADATA_KEY: facts.to_json()})
        else:
            content = {"format": FORMAT, "facts": facts.to_dict(), "weights": weights, "training": training or {}}
            torch.save(content, temporary)


def load_weights_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read any ``.pt``, ``.pth`` or ``.safetensors`` file without running code from it.

    Returns:
        What the file holds (tensors by name, or whatever dict was saved), and its safetensors header (else empty).

    Raises:
        ArtefactError: when there is no such file, it is no weights file, or it would have to run code to load.
    """
    if path.is_dir():
        inside = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
        remedy = (
            f"give the file in it: {inside}" if inside else f"give the file of weights in it ({', '.join(SUFFIXES)})"
        )
        raise ArtefactError(f"{path} is a folder; {remedy}")
    if not path.is_file():
        raise ArtefactError(f"there is no file {path}; give a checkpoint that exists ({', '.join(SUFFIXES)})")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of an odd protocol, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a pickle machine does on bytes that are no pickle: IndexError, KeyError, ...
        if isinstance(error, pickle.UnpicklingError) and _is_pickle_or_zip(path):
            raise ArtefactError(
                f"{path} holds Python objects that loading would have to run as code; only plain weights are loaded, "
                "so save its state dict (or .safetensors) and try again"
            ) from error
        raise ArtefactError(
            f"{path} is no checkpoint or is cut short; expected a .pt, .pth or .safetensors file of weights"
        ) from error
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds a {type(content).__name__}; expected a dict of weights")
    return content, {}


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that this toolkit wrote.

    Raises:
        ArtefactError: when the file is none, or its weights are no finite numbers; weights of other tools go through
            ``spt-deploy convert`` first.
    """
    content, header = load_weights_file(path)
    if METADATA_KEY in header:
        check_finite(content, str(path))
        return Checkpoint(ModelFacts.from_json(header[METADATA_KEY], str(path)), content)
    if content.get("format") != FORMAT:
        raise ArtefactError(
            f"{path} was not written by spt-deploy; turn Swin weights into a checkpoint with: spt-deploy convert {path}"
        )
    facts = ModelFacts.from_dict(content.get("facts"), str(path))
    weights = content.get("weights")
    if not isinstance(weights, dict):
        raise ArtefactError(f"{path} holds no weights; write the checkpoint again with spt-deploy train or convert")
    check_finite(weights, str(path))
    return Checkpoint(facts, weights, content.get("training", {}))


def check_finite(weights: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None) -> None:
    """Whether weights are numbers.

    Args:
        weights: tensors by name; what is no tensor is passed over.
        where: names the file in errors.
        names: the file's own name of each, where it is another.

    Raises:
        ArtefactError: when one holds NaN or infinities.
    """
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
            raise ArtefactError(
                f"{where}: {(names or {}).get(name, name)} holds {int((~torch.isfinite(tensor)).sum())} values of "
                f"{tensor.numel()} that are no finite numbers; every answer would be wrong, so give weights of a run "
                "that went well"
            )


def _is_pickle_or_zip(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] == b"\x80"

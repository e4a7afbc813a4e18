"""What an artefact says of itself: the facts that travel in checkpoints, ONNX metadata and engine sidecars.

Inference reads the preprocessing from here and from nowhere else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from spt_deploy.config import ModelConfig
from spt_deploy.errors import ArtefactError, UsageError
from spt_deploy.image_input import ImageInput
from spt_deploy.preprocess import Preprocessing

METADATA_KEY = "spt_deploy"  # of an ONNX file's metadata and a safetensors header
THRESHOLD_INPUT = "threshold"  # of an exported graph, where it has one


@dataclass(frozen=True)
class ModelFacts:
    """Everything a runtime must know of a model besides its graph.

    Attributes:
        model: architecture, task and classes.
        preprocessing: from a decoded image to the input.
        tool_version: of the spt-deploy that wrote the artefact.
        checkpoint_sha256: of the checkpoint that an exported file was made from; empty in a checkpoint itself.
        precision: of the graph's heavy part: ``fp32``, or ``fp16``, ``bf16`` and ``int8`` where it was rewritten.
        runtime_threshold: whether the graph has an input ``threshold``, a scalar float32 in (0, 1), beside its images;
            the configuration's threshold is then the one to give where no other is wanted.
        uint8_input: whether the graph takes bytes and normalises them itself, see `image_input`; never in a checkpoint.
        inlined: whether the graph has standard operators alone: for readers without functions; no plugin finds its
            nodes, and its selection cannot be forced. An int8 file always is, and need not say so.

    Raises:
        UsageError: when the threshold of a model that has none is to be an input.
    """

    model: ModelConfig
    preprocessing: Preprocessing
    tool_version: str
    checkpoint_sha256: str = ""
    precision: str = "fp32"
    runtime_threshold: bool = False
    uint8_input: bool = False
    inlined: bool = False

    def __post_init__(self) -> None:
        if self.runtime_threshold and not self.model.backbone.selects_by_threshold:
            name = self.model.backbone.name
            why = (
                f"keeps the best {self.model.backbone.keep_ratio:.0%} of the tokens (selector topk)"
                if self.model.backbone.spa_blocks
                else "has no SPA blocks"
            )
            raise UsageError(
                f"{name} {why}, so that no threshold can be given at run time; export it without --runtime-threshold"
            )

    @property
    def has_spt_nodes(self) -> bool:
        """Whether an ONNX file of a model with SPA blocks has the nodes that a plugin or a probe looks for."""
        return not self.inlined and self.precision != "int8"

    @property
    def image_input(self) -> ImageInput:
        """The array that the model takes its images in."""
        return ImageInput(self.preprocessing, self.uint8_input)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON and for checkpoints."""
        return {
            "model": self.model.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "tool_version": self.tool_version,
            "checkpoint_sha256": self.checkpoint_sha256,
            "precision": self.precision,
            "runtime_threshold": self.runtime_threshold,
            "uint8_input": self.uint8_input,
            "inlined": self.inlined,
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> ModelFacts:
        """The inverse of ``to_dict``; ``where`` names the file in errors.

        Raises:
            ArtefactError: when the values describe no model.
        """
        try:
            return cls(
                model=ModelConfig.from_dict(values["model"]),
                preprocessing=Preprocessing.from_dict(values["preprocessing"]),
                tool_version=str(values["tool_version"]),
                checkpoint_sha256=str(values["checkpoint_sha256"]),
                precision=str(values.get("precision", "fp32")),  # older files do not say
                runtime_threshold=bool(values.get("runtime_threshold", False)),  # nor this
                uint8_input=bool(values.get("uint8_input", False)),  # nor this
                inlined=bool(values.get("inlined", False)),  # nor this
            )
        except (KeyError, TypeError, UsageError) as error:
            raise ArtefactError(f"{where} has a model description that cannot be read: {error}") from error

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str, where: str) -> ModelFacts:
        """The inverse of ``to_json``; ``where`` names the file in errors.

        Raises:
            ArtefactError: when the text is no JSON or describes no model.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ArtefactError(f"{where} has a model description that is no JSON: {error}") from error
        return cls.from_dict(values, where)

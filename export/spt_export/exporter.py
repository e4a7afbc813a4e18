"""A checkpoint becomes one ONNX file: the graph with ``spt`` nodes, their functions, and the model's facts.

Built on ``torch.onnx.export(dynamo=True)``. The batch is dynamic; height and width are those of the preprocessing.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from spt_deploy.config import mask_output
from spt_deploy.errors import UsageError
from spt_deploy.facts import METADATA_KEY, THRESHOLD_INPUT, ModelFacts
from spt_deploy.model.blocks import AttentionWeights
from spt_deploy.model.domain import DOMAIN
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_export.functions import ONNX_OPSET, function_protos, opset_imports

SelectionOutputs = Literal["summary", "all", "none"]
SELECTION_OUTPUTS: tuple[SelectionOutputs, ...] = get_args(SelectionOutputs)
PRODUCER = "spt-deploy"
_IR_VERSION = 9  # of ONNX 1.15, as the opset: what ONNX Runtime 1.17 still reads, and torch's own choice asks for 1.18
# torch's exporter specialises sizes 0 and 1, so the example batch is larger.
EXAMPLE_BATCH = 2


class Normalisation(nn.Module):
    """Bytes as numbers, by the same float32 arithmetic as `Preprocessing.normalise`: B x H x W x 3 to B x 3 x H x W.

    TensorRT does nothing with bytes but cast them, and rows of one channel are normalised faster than pixels of three:
    hence the order.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name, values in zip(("scale", "offset"), preprocessing.scale_and_offset, strict=True):
            self.register_buffer(name, torch.from_numpy(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``images`` uint8, RGB; float32 comes out."""
        return images.float().permute(0, 3, 1, 2) * self.scale - self.offset


class DeployedModel(nn.Module):
    """The model as a deployed graph sees it: images in, a tuple of named outputs out."""

    def __init__(self, model: SptModel, selection: SelectionOutputs, normalise: Normalisation | None = None) -> None:
        super().__init__()
        self.model = model
        self.selection = selection
        self.normalise = normalise

    def forward(self, images: Tensor, threshold: Tensor | None = None) -> dict[str, Tensor]:
        """``images`` B x 3 x H x W float32, or what is to be normalised; outputs of DESIGN section 3, in their order.

        ``threshold`` is a scalar float32 in (0, 1), of the score after the sigmoid; None leaves the model its own.
        """
        if self.normalise is not None:
            images = self.normalise(images)
        output = self.model(images, threshold=None if threshold is None else threshold.logit())
        if self.selection == "none":
            named: dict[str, Tensor] = dict(output.task)
            return named
        named = dict(output.named())
        if self.selection == "all":
            for name, kept in zip(self.model.config.backbone.spa_blocks, output.features.kept, strict=True):
                named[mask_output(name)] = kept
        return named


def to_onnx(model: SptModel, facts: ModelFacts, selection: SelectionOutputs = "summary") -> onnx.ModelProto:
    """The model as ONNX, with the ``spt`` functions and the facts in its metadata.

    Args:
        model: in evaluation mode, on the CPU, float32.
        facts: what the file will say of itself; its preprocessing gives the image size, ``runtime_threshold`` says
            whether the threshold is an input of the graph, and ``uint8_input`` whether the graph normalises its images.
        selection: ``summary`` adds ``select_ratio`` and ``selection`` to the outputs, ``all`` each SPA block's kept
            mask too (``kept_3.1`` and so on, B x h x w bool), ``none`` leaves all of them out.

    Raises:
        UsageError: when ``selection`` is unknown.
    """
    if selection not in SELECTION_OUTPUTS:
        raise UsageError(f"selection outputs are {selection!r}; known are {', '.join(SELECTION_OUTPUTS)}")
    normalise = Normalisation(facts.preprocessing) if facts.uint8_input else None
    deployed = DeployedModel(_with_scaled_queries(model), selection, normalise).eval()
    inputs = {"images": torch.from_numpy(np.zeros_like(facts.image_input.empty(EXAMPLE_BATCH)))}
    dynamic: dict[str, Any] = {"images": {0: torch.export.Dim("batch", min=1)}}
    if facts.runtime_threshold:
        inputs[THRESHOLD_INPUT] = torch.tensor(facts.model.backbone.threshold)
        dynamic[THRESHOLD_INPUT] = None
    with torch.no_grad():
        # Also makes the constant index tables, which tracing then finds as real tensors.
        names = list(deployed(*inputs.values()))
        with _quiet():
            program = torch.onnx.export(
                deployed,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=ONNX_OPSET,
                input_names=list(inputs),
                output_names=names,
                verbose=False,
            )
    assert program is not None
    proto = program.model_proto
    _name_batch(proto)
    _forget_slot_counts(proto)
    if any(node.domain == DOMAIN for node in proto.graph.node):
        proto.functions.extend(function_protos(model.config.backbone.packing))
    del proto.opset_import[:]
    proto.opset_import.extend(opset_imports())
    proto.ir_version = _IR_VERSION
    proto.producer_name, proto.producer_version = PRODUCER, facts.tool_version
    _forget_origin(proto)
    onnx.helper.set_model_props(proto, {METADATA_KEY: facts.to_json()})
    return proto


def _with_scaled_queries(model: SptModel) -> SptModel:
    """A copy whose attentions have nothing left to scale."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, AttentionWeights):
            module.fold_scale()
    return copied


def _name_batch(proto: onnx.ModelProto) -> None:
    """Call the first dimension of the images and of every output ``batch``."""
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name != THRESHOLD_INPUT:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _forget_slot_counts(proto: onnx.ModelProto) -> None:
    """Drop the shapes recorded inside the graph: the trace takes S for its bound B*N."""
    del proto.graph.value_info[:]


def _forget_origin(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes at every node (source lines with the exporting machine's paths)."""
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's own progress and its warnings about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

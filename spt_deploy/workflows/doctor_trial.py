"""The small model that ``doctor`` tries every runtime with, and what it has to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from spt_deploy.config import BackboneConfig, ModelConfig, Packing
from spt_deploy.facts import METADATA_KEY, ModelFacts
from spt_deploy.preprocess import Preprocessing
from spt_deploy.version import __version__

if TYPE_CHECKING:
    from spt_deploy.model.network import SptModel

SIZE = (64, 64)  # pixels: small, and stages 3 and 4 still have tokens to drop
_CLASSES = ("one", "two", "three")
_STRIDE, _WIDTH = 8, 16  # of the model that needs no PyTorch
_IR, _OPSET = 9, 20  # of its file: what every runtime that is supported reads

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trial:
    """A model, images, and the answer to them.

    Attributes:
        images: 2 x 3 x H x W float32.
        expected: arrays by the name of the output.
        judge: who gave that answer, as a sentence names it.
        checkpoint: None where PyTorch is missing.
        exported: the ONNX file; None where it could not be made.
        why_not: a sentence about that.
    """

    images: Images
    expected: dict[str, npt.NDArray[Any]]
    judge: str
    checkpoint: Path | None
    exported: Path | None
    why_not: str = ""


def trial_with_torch(folder: Path, status: Callable[[str], None]) -> Trial:
    """An SPT whose gates drop some tokens and keep others, held against PyTorch on the CPU."""
    from spt_deploy.model.checkpoint import save_checkpoint
    from spt_deploy.runtimes.torch_runner import TorchRunner

    checkpoint, images = folder / "model.pt", _images()
    save_checkpoint(checkpoint, _spt(), Preprocessing.for_task("classify", SIZE))
    with TorchRunner(checkpoint, "cpu") as runner:
        expected = runner.infer(images)
    status("exporting a small model")
    exported, why_not = export_small(checkpoint)
    return Trial(images, expected, "PyTorch on the CPU", checkpoint, exported, why_not)


def trial_without_torch(folder: Path) -> Trial:
    """Where PyTorch is missing, a convolution and a linear layer, held against NumPy."""
    draw, images = np.random.default_rng(1), _images()
    kernel = draw.standard_normal((_WIDTH, 3, _STRIDE, _STRIDE), dtype=np.float32) / _STRIDE
    matrix = draw.standard_normal((_WIDTH, len(_CLASSES)), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "kernel"], ["patches"], strides=[_STRIDE, _STRIDE]),
            helper.make_node("Relu", ["patches"], ["active"]),
            helper.make_node("ReduceMean", ["active", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "matrix"], ["logits"]),
        ],
        "doctor",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, *SIZE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", len(_CLASSES)])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    model = helper.make_model(graph, ir_version=_IR, opset_imports=[helper.make_opsetid("", _OPSET)])
    config = ModelConfig(BackboneConfig.from_name("swin_micro"), "classify", _CLASSES)
    facts = ModelFacts(config, Preprocessing.for_task("classify", SIZE), __version__)
    helper.set_model_props(model, {METADATA_KEY: facts.to_json()})
    path = folder / "model.onnx"
    onnx.save(model, path)
    height, width = (side // _STRIDE for side in SIZE)
    patches = images.reshape(len(images), 3, height, _STRIDE, width, _STRIDE)
    active = np.maximum(np.einsum("bchiwj,ocij->bohw", patches, kernel), 0.0)
    return Trial(images, {"logits": active.mean((2, 3)) @ matrix}, "NumPy", None, path)


def export_small(checkpoint: Path, packing: Packing = "per-image") -> tuple[Path | None, str]:
    """The model as an ONNX file, or why there is none."""
    path = checkpoint.with_suffix(f".{packing}.onnx")
    try:
        from spt_deploy.runtimes.torch_runner import deployed_checkpoint
        from spt_export.exporter import to_onnx

        loaded = deployed_checkpoint(checkpoint, packing, capacity=1.0)  # room for all: the answer is the same
        onnx.save(to_onnx(loaded.build(), loaded.facts), path)
    except Exception as error:  # whatever it is, it is what the user has to hear
        return None, f"the export failed: {first_line(error)}"
    return path, ""


def first_line(error: Exception) -> str:
    """Of what an error says, or its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _images() -> Images:
    return np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)


def _spt() -> SptModel:
    """A block a stage."""
    import torch

    from spt_deploy.model.network import SptModel

    torch.manual_seed(0)
    config = BackboneConfig.from_name("spt_micro", depths=(1, 1, 1, 1))
    model = SptModel(ModelConfig(config, "classify", _CLASSES)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.weight"):
                parameter.normal_(0.0, 1.0)
            if name.endswith("gate.bias"):
                parameter.fill_(-6.0)
    return model

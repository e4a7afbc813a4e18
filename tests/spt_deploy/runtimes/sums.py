"""The smallest model with a batch, a scalar input, and an answer that anyone can check."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from spt_deploy.runtimes.base import Arrays

_NUMBER = np.asarray(2.0, dtype=np.float32)


def sums_model() -> onnx.ModelProto:
    """Adds ``number`` to the mean of each channel of ``images`` (B x 3 x 8 x 8 float32): ``sum``, B x 3 x 1 x 1."""
    info, dims = helper.make_tensor_value_info, ["batch", 3, 8, 8]
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Add", ["mean", "number"], ["sum"]),
    ]
    inputs = [info("images", TensorProto.FLOAT, dims), info("number", TensorProto.FLOAT, [])]
    graph = helper.make_graph(nodes, "sums", inputs, [info("sum", TensorProto.FLOAT, ["batch", 3, 1, 1])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def feeds_of(images: npt.NDArray[np.float32]) -> Arrays:
    """What it takes."""
    return {"images": images, "number": _NUMBER}


def assert_right(answer: Arrays, images: npt.NDArray[np.float32]) -> None:
    """Whether it is the answer to these images, all of them and in their order."""
    np.testing.assert_allclose(answer["sum"], images.mean((2, 3), keepdims=True) + _NUMBER, atol=1e-5)


def random_images(batch: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """B x 3 x 8 x 8 float32."""
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8), dtype=np.float32)

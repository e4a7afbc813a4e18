"""Which layers leave float16's range on real images: they must stay in float32.

The float32 graph is run in ONNX Runtime with one number added for each layer, the largest magnitude of what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from onnx import ModelProto, TensorProto, helper

from spt_deploy.errors import InputError, RuntimeMissingError
from spt_deploy.facts import THRESHOLD_INPUT
from spt_deploy.image_input import Images
from spt_export.precision import LARGEST_FP16, to_mixed_precision

MARGIN = 2.0  # other images reach further than those that were tried


def largest_magnitudes(
    model: ModelProto,
    batches: Iterable[Images],
    progress: Callable[[int], None] = lambda images: None,
    threshold: float | None = None,
) -> dict[str, float]:
    """The largest magnitude that each layer gave.

    Args:
        model: float32, as exported.
        batches: of preprocessed images, each as the graph takes them.
        progress: hears how many images are done.
        threshold: in (0, 1), to give to a graph that has it as an input; the lowest that will be used sees most tokens.

    Returns:
        By name of every node that `precision.to_mixed_precision` would make narrow; infinity where it gave NaN.

    Raises:
        InputError: when there is no image.
        RuntimeMissingError: when ONNX Runtime is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise RuntimeMissingError(
            "calibration runs in ONNX Runtime, which is missing: pip install onnxruntime"
        ) from error
    copy = ModelProto()
    copy.CopyFrom(model)
    narrow = set(to_mixed_precision(model, "fp16").narrow)
    watched = {node.output[0]: node.name for node in copy.graph.node if node.name in narrow}
    names = []
    for index, value in enumerate(watched):
        magnitude, largest = f"magnitude_{index}", f"largest_{index}"
        # Nothing kept leaves some layers without a number; 0 beside them gives the maximum something to take.
        copy.graph.node.extend(
            [
                helper.make_node("Abs", [value], [magnitude]),
                helper.make_node("Reshape", [magnitude, "calibration_flat"], [f"{magnitude}_flat"]),
                helper.make_node("Concat", [f"{magnitude}_flat", "calibration_zero"], [f"{magnitude}_all"], axis=0),
                helper.make_node("ReduceMax", [f"{magnitude}_all"], [largest], keepdims=0),
            ]
        )
        copy.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
        names.append(largest)
    copy.graph.initializer.append(helper.make_tensor("calibration_flat", TensorProto.INT64, [1], [-1]))
    copy.graph.initializer.append(helper.make_tensor("calibration_zero", TensorProto.FLOAT, [1], [0.0]))
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    beside = {} if threshold is None else {THRESHOLD_INPUT: np.asarray(threshold, dtype=np.float32)}
    total = np.zeros(len(names))
    images = 0
    for batch in batches:
        found = np.array(session.run(names, {"images": batch, **beside}), dtype=np.float64)
        total = np.maximum(total, np.where(np.isnan(found), np.inf, found))
        images += len(batch)
        progress(images)
    if not images:
        raise InputError("there is no image to calibrate with; give a folder that holds some")
    return dict(zip(watched.values(), total.tolist(), strict=True))


def out_of_range(magnitudes: dict[str, float]) -> list[str]:
    """Names of the layers that come nearer to the end of float16's range (65504) than ``MARGIN`` allows."""
    return [name for name, largest in magnitudes.items() if not largest * MARGIN < LARGEST_FP16]

"""How large values become on real images: what leaves float16's range must stay float32, and int8 takes its scales.

The float32 graph is run in ONNX Runtime with one number added for each value, its largest magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from spt_deploy.errors import InputError, RuntimeMissingError
from spt_deploy.facts import THRESHOLD_INPUT
from spt_deploy.image_input import Images
from spt_deploy.telemetry import no_telemetry
from spt_export.precision import LARGEST_FP16, to_mixed_precision

ERRORS_ONLY = 3  # ONNX Runtime's log severity: it warns of each function's node that it does not fold
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
    narrow = set(to_mixed_precision(model, "fp16").narrow)
    watched = {node.output[0]: node.name for node in model.graph.node if node.name in narrow}
    largest, images = np.zeros(len(watched)), 0
    for count, found in watch_magnitudes(model, list(watched), batches, threshold):
        largest, images = np.maximum(largest, found), images + count
        progress(images)
    return dict(zip(watched.values(), largest.tolist(), strict=True))


def watch_magnitudes(
    model: ModelProto,
    values: Sequence[str],
    batches: Iterable[Images],
    threshold: float | None = None,
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Run a graph and see how large some of its values become.

    Args:
        model: float32.
        values: names of float32 values of its graph.
        batches: of preprocessed images, each as the graph takes them.
        threshold: see ``largest_magnitudes``.

    Yields:
        Of every batch its images and the largest magnitude of each value: 0 where it has no element, infinity where it
        has a NaN.

    Raises:
        InputError: when there is no image.
        RuntimeMissingError: when ONNX Runtime is not installed.
    """
    try:
        with no_telemetry():
            import onnxruntime as ort
    except ImportError as error:
        raise RuntimeMissingError(
            "calibration runs in ONNX Runtime, which is missing: pip install onnxruntime"
        ) from error
    copy = ModelProto()
    copy.CopyFrom(model)
    names = []
    for index, value in enumerate(values):
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
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    beside = {} if threshold is None else {THRESHOLD_INPUT: np.asarray(threshold, dtype=np.float32)}
    images = 0
    for batch in batches:
        found = np.array(session.run(names, {"images": batch, **beside}), dtype=np.float64)
        images += len(batch)
        yield len(batch), np.where(np.isnan(found), np.inf, found)
    if not images:
        raise InputError("there is no image to calibrate with; give a folder that holds some")


def out_of_range(magnitudes: dict[str, float]) -> list[str]:
    """Names of the layers that come nearer to the end of float16's range (65504) than ``MARGIN`` allows."""
    return [name for name, largest in magnitudes.items() if not largest * MARGIN < LARGEST_FP16]

"""Artefacts that cannot be opened for inspection: the selection of an engine, or of a file in standard operators alone,
can be seen, and not be forced.

So the reference runs once more with *their* selection forced on it, which a file exported with ``--selection all``, or
its engine, gives as outputs. Then the outputs must agree, and a token on which the two differ must lie within
the scores' tolerance of the threshold, in the reference.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spt_deploy.config import BackboneConfig, mask_output
from spt_deploy.image_input import Images
from spt_deploy.parity.compare import Comparison, compare_outputs
from spt_deploy.parity.probe import Probe
from spt_deploy.parity.selection import BlockSelection, compare_masks
from spt_deploy.parity.tolerances import Tolerance
from spt_deploy.runtimes.base import Arrays, Runner


def is_closed(runner: Runner) -> bool:
    """Whether an artefact is an engine, or an ONNX file whose nodes say nothing of the selection."""
    return runner.runtime.startswith("tensorrt") or not runner.facts.has_spt_nodes


def infer_in_parts(runner: Runner, images: Images) -> Arrays:
    """Run a batch of any size, in parts that the artefact takes; as ``Runner.infer`` otherwise."""
    step = min(runner.max_batch or len(images), len(images))
    parts = [runner.infer(images[start : start + step]) for start in range(0, len(images), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def kept_masks(outputs: Arrays, backbone: BackboneConfig) -> list[npt.NDArray[np.bool_]] | None:
    """What each SPA block kept, B x N bool; None where the outputs do not say."""
    names = [mask_output(block) for block in backbone.spa_blocks]
    if not all(name in outputs for name in names):
        return None
    return [outputs[name].reshape(len(outputs[name]), -1).astype(np.bool_) for name in names]


def compare_closed(
    probe: Probe,
    candidate: Arrays,
    images: Images,
    backbone: BackboneConfig,
    tolerance: Tolerance,
) -> tuple[Comparison, tuple[BlockSelection, ...]] | None:
    """The reference under the candidate's selection against the candidate; None where that does not tell it.

    Args:
        probe: of the reference.
        candidate: its outputs.
        images: that both have run, as the reference takes them.
        backbone: of both.
        tolerance: of the less precise of the two.
    """
    masks = kept_masks(candidate, backbone)
    if masks is None:
        return None
    under_theirs = probe.run(images, masks)
    blocks = tuple(compare_masks(under_theirs.scores, masks, backbone))
    return compare_outputs(under_theirs.outputs, _without_masks(candidate), tolerance), blocks


def _without_masks(outputs: Arrays) -> Arrays:
    return {name: value for name, value in outputs.items() if not name.startswith("kept_")}

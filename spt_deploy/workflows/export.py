"""``spt-deploy export``: a checkpoint becomes an ONNX file that is proven equal before it gets its name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx

from spt_deploy.atomic import atomic_path
from spt_deploy.config import PACKINGS, Packing
from spt_deploy.digest import sha256_of
from spt_deploy.errors import ResultError, RuntimeMissingError, UsageError
from spt_deploy.facts import METADATA_KEY, ModelFacts
from spt_deploy.parity.checks import PairReport, compare_runners
from spt_deploy.parity.inputs import Case, generated_cases
from spt_deploy.parity.tolerances import MAX_DROP
from spt_deploy.runtimes.onnx_file import inlined, load_onnx
from spt_deploy.runtimes.registry import is_installed
from spt_deploy.runtimes.torch_runner import TorchRunner, deployed_checkpoint
from spt_deploy.workflows.artefacts import check_name, find_artefact
from spt_deploy.workflows.capacity import CapacityNeed, needed_capacity
from spt_deploy.workflows.quantize import QuantizeData, QuantizeReport, check_max_drop, write_int8
from spt_export.exporter import SelectionOutputs, to_onnx


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        checkpoint: it was made from.
        why: how the checkpoint was found; empty when it was named.
        path: of the ONNX file.
        size_mb: of the file, in 10^6 bytes.
        inputs: shapes by name; ``batch`` is free.
        outputs: likewise.
        seconds: the export took, without the check.
        parity: ONNX Runtime against PyTorch; None when ONNX Runtime is not installed.
        capacity: of static packing: share of an image's tokens that there is room for; None of the others, and of a
            model that selects nothing.
        need: what the images of ``data`` need; None where none were given, or they were for int8.
        int8: what quantising came to; None of a float32 file.
    """

    checkpoint: Path
    why: str
    path: Path
    size_mb: float
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    seconds: float
    parity: PairReport | None
    capacity: float | None = None
    need: CapacityNeed | None = None
    int8: QuantizeReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(replace(self, parity=None, need=None, int8=None)) | {
            "checkpoint": str(self.checkpoint),
            "path": str(self.path),
            "parity": self.parity.to_dict() if self.parity else None,
            "need": self.need.to_dict() if self.need else None,
            "int8": self.int8.to_dict() if self.int8 else None,
        }


def export(
    checkpoint: Path | None = None,
    output: Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    packing: Packing = "per-image",
    threshold: float | None = None,
    capacity: float | Literal["auto"] | None = None,
    data: Path | None = None,
    selection: SelectionOutputs = "summary",
    runtime_threshold: bool = False,
    uint8_input: bool = False,
    inline: bool = False,
    int8: bool = False,
    labels: Path | None = None,
    max_drop: float | None = None,
    status: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Export a checkpoint and check the file: ``onnx.checker``, then ONNX Runtime against PyTorch.

    The comparison runs on batches of 1, 2 and 5, on random and flat images, and with the selection forced to nothing
    and to everything; where the threshold is an input, at another one too. The file gets its name only when it has
    passed.

    Args:
        checkpoint: None takes the newest one, see ``find_artefact``.
        output: None writes beside the checkpoint, with the suffix ``.onnx``; before that ``.static`` under static
            packing, and ``.inline`` or ``.int8``.
        image_size: (height, width) in pixels; None keeps the size it was trained at.
        packing: ``per-image`` makes the answer for an image independent of its batch; ``batch`` wastes no slot;
            ``static`` makes every shape known, as TensorRT-RTX needs it.
        threshold: of the score, in (0, 1), above which a token is kept; None keeps the one it was trained with. A
            higher one drops the tokens that the gates are in doubt of.
        capacity: of ``static`` packing: share of an image's tokens, in (0, 1], that there is room for; what overflows
            is dropped, the lowest scores first. None keeps the checkpoint's, 0.5 where nothing was said; ``auto``
            takes what ``data`` needs.
        data: folder of images, on which it is measured how much room the selection needs (`capacity.py`), or which the
            scales of int8 are taken from.
        selection: which outputs tell of the selection, see ``to_onnx``.
        runtime_threshold: the graph gets a second input ``threshold``, a scalar float32 in (0, 1) that all SPA blocks
            compare their scores with; ``threshold`` is then what runs where no other is given.
        uint8_input: the graph takes ``images`` as B x H x W x 3 uint8, RGB, and normalises them itself.
        inline: the ``spt`` nodes are written out in standard operators, for readers without functions, such as
            OpenVINO's own; the file is compared with the one that has functions, in ONNX Runtime.
        int8: layers compute in 8-bit integers, for CPUs, see `quantize.py`; ``data`` is needed. The file has no ``spt``
            nodes.
        labels: of int8: data set to measure the accuracy on; None takes ``data`` where that is one.
        max_drop: of int8, see ``write_int8``, where there are labels; None is 0.01.
        status: hears what is being done.

    Raises:
        ArtefactError: when the checkpoint cannot be used.
        InputError: when ``data`` cannot be used.
        ResultError: when the exported file does not say what the checkpoint says, or int8 loses too much.
        OutputError: when the file cannot be written.
        UsageError: when an argument is out of range, or the model has no threshold that could be an input.
        RuntimeMissingError: when int8 is wanted and ONNX Runtime, which the scales are measured in, is not installed.
    """
    if packing not in PACKINGS:
        raise UsageError(f"packing is {packing!r}; known are {', '.join(PACKINGS)}")
    if capacity is not None and packing != "static":
        raise UsageError(
            f"capacity is of static packing, and packing is {packing}; add --packing static, or leave it out"
        )
    if int8 and data is None:
        raise UsageError("int8 takes its scales from images, and none were given; name a folder of them with --data")
    if not int8 and (labels is not None or max_drop is not None):
        raise UsageError("labels and max-drop are about the accuracy of int8; add --int8, or leave them out")
    if max_drop is not None:
        check_max_drop(max_drop)
    if int8 and not is_installed("onnxruntime"):
        raise RuntimeMissingError("int8 takes its scales in ONNX Runtime, which is missing: pip install onnxruntime")
    if output is not None:
        check_name(output, "onnx")
    source, why = find_artefact(checkpoint, ("checkpoint",))
    if why:
        status(why)
    ends = [".static"] * (packing == "static") + ([".int8"] if int8 else [".inline"] * inline)
    path = output or source.with_suffix(f"{''.join(ends)}.onnx")
    if output is None and path.exists():
        status(f"{path} will be replaced; -o gives the new file a name of its own")
    if runtime_threshold or threshold is not None:  # a model that has none is refused before anything is measured
        asked = replace(
            deployed_checkpoint(source, packing, image_size, threshold).facts, runtime_threshold=runtime_threshold
        )
        if not asked.model.backbone.selects_by_threshold:
            raise UsageError(
                f"{source} selects no tokens by a threshold, so that {threshold:g} cannot be given; leave it out"
            )
    need = None
    if capacity == "auto" and data is None:
        raise UsageError("capacity is auto, and there is nothing to measure it on; give a folder of images with --data")
    if data is not None and (capacity == "auto" or not int8):
        need = needed_capacity(deployed_checkpoint(source, "per-image", image_size, threshold), data, status)
    if capacity == "auto":
        capacity = need.capacity if need else None
    loaded = deployed_checkpoint(source, packing, image_size, threshold, capacity)
    images = QuantizeData.read(data, labels, loaded.facts) if int8 and data is not None else None
    if images is not None and images.labelled is None and max_drop is not None:
        why = f" ({images.why_unlabelled})" if images.why_unlabelled else ""
        raise UsageError(
            f"max-drop is {max_drop:g} of a metric, and {data} has no labels to take one on{why}; name a data set with "
            "--labels, or leave max-drop out"
        )
    facts = replace(
        loaded.facts,
        checkpoint_sha256=sha256_of(source),
        runtime_threshold=runtime_threshold,
        uint8_input=uint8_input,
    )
    height, width = facts.preprocessing.size
    status(f"exporting {facts.model.backbone.name} ({facts.model.task}) at {height}x{width}")
    start = time.perf_counter()
    proto = to_onnx(loaded.build(), facts, "all" if int8 else selection)
    onnx.checker.check_model(proto, full_check=True)
    seconds = time.perf_counter() - start
    quantized = None
    if images is not None or inline:
        with tempfile.TemporaryDirectory(prefix="spt-deploy-") as folder:
            exported = Path(folder) / f"{source.stem}.onnx"
            onnx.save(proto, exported)
            parity = _check(source, exported, facts, status)
            if images is not None:
                allowed = MAX_DROP if max_drop is None else max_drop
                quantized = write_int8(exported, path, images, max_drop=allowed, selection=selection, status=status)
            else:
                _write_inlined(exported, path, facts, status)
        proto = load_onnx(path)
    else:
        with atomic_path(path) as temporary:
            onnx.save(proto, temporary)
            parity = _check(source, temporary, facts, status)
    return ExportReport(
        checkpoint=source,
        why=why,
        path=path,
        size_mb=path.stat().st_size / 1e6,
        inputs=_shapes(proto.graph.input),
        outputs=_shapes(proto.graph.output),
        seconds=seconds,
        parity=parity,
        capacity=facts.model.backbone.room if packing == "static" and facts.model.backbone.spa_blocks else None,
        need=need,
        int8=quantized,
    )


def _check(source: Path, exported: Path, facts: ModelFacts, status: Callable[[str], None]) -> PairReport | None:
    if not is_installed("onnxruntime"):
        status("the file is not compared with the checkpoint: onnxruntime is not installed (pip install onnxruntime)")
        return None
    from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

    status("comparing ONNX Runtime with PyTorch")
    size, backbone = facts.preprocessing.size, facts.model.backbone
    cases = generated_cases(size)
    checkpoint = TorchRunner(source, "cpu", backbone.packing, size, backbone.threshold, backbone.capacity)
    with checkpoint as ours, OnnxRuntimeRunner(exported, "cpu") as theirs:
        report = compare_runners(ours, theirs, cases)
    if facts.runtime_threshold:
        another = (1 + backbone.threshold) / 2  # halfway to 1
        selecting = [Case(f"{c.name} at {another:.4g}", c.images) for c in cases if c.force is None]
        checkpoint = TorchRunner(source, "cpu", backbone.packing, size, another, backbone.capacity)
        with checkpoint as ours, OnnxRuntimeRunner(exported, "cpu", threshold=another) as theirs:
            report = replace(report, cases=(*report.cases, *compare_runners(ours, theirs, selecting).cases))
    if not report.passed:
        bad = next(case for case in report.cases if not case.passed)
        name, worst = max(report.differences.items(), key=lambda item: item[1].max_absolute)
        raise ResultError(
            f"the exported file does not say what {source} says: on {bad.name!r} {bad.verdict}, and {name} is off by "
            f"{worst.max_absolute:.2g}; nothing was written, please report this with the checkpoint"
        )
    return report


def _write_inlined(exported: Path, path: Path, facts: ModelFacts, status: Callable[[str], None]) -> None:
    """Write a file once more, without functions."""
    proto = inlined(load_onnx(exported))
    onnx.helper.set_model_props(proto, {METADATA_KEY: replace(facts, inlined=True).to_json()})
    onnx.checker.check_model(proto, full_check=True)
    with atomic_path(path) as temporary:
        onnx.save(proto, temporary)
        if not is_installed("onnxruntime"):
            return
        from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

        status("comparing the file without functions with the one that has them")
        with OnnxRuntimeRunner(exported, "cpu") as ours, OnnxRuntimeRunner(temporary, "cpu") as theirs:
            report = compare_runners(ours, theirs, generated_cases(facts.preprocessing.size))
        if not report.passed:
            raise ResultError(
                "without its functions the file says something else than with them; nothing was written, please report "
                "this with the checkpoint"
            )


def _shapes(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

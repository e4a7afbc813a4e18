"""Our exported Swin-T beside Hugging Face's, exported by its own means, in ONNX Runtime and OpenVINO, taking turns.

    python tools/bench_hugging_face.py SWIN_T.onnx [--batch 1,8] [--rounds N] [--repeats N]

Both have random weights, and 1000 classes at 224x224.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from transformers import SwinConfig, SwinForImageClassification

from spt_deploy.bench import Turns
from spt_deploy.runtimes.onnxruntime_runner import open_session
from spt_deploy.runtimes.openvino_runner import compile_model, options_for, precisions_here

THEIRS = "Hugging Face"


class Logits(torch.nn.Module):
    """Their model with one output."""

    def __init__(self) -> None:
        super().__init__()
        self.swin = SwinForImageClassification(SwinConfig(image_size=224, num_labels=1000))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """B x 3 x 224 x 224 to B x 1000."""
        logits: torch.Tensor = self.swin(images).logits
        return logits


def export_theirs(path: Path) -> None:
    """Torch's exporter, batch dynamic, as their documentation has it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=1)
        torch.onnx.export(
            Logits().eval(),
            (torch.zeros(2, 3, 224, 224),),
            path,
            dynamo=True,
            dynamic_shapes={"images": {0: batch}},
            input_names=["images"],
            external_data=False,
            verbose=False,
        )


def opened(files: dict[str, bytes], batch: int) -> dict[str, Callable[[], object]]:
    """A run of each file in each runtime and precision, opened anew."""
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    runs: dict[str, Callable[[], object]] = {}
    for name, data in files.items():
        session = open_session(data, "cpu")
        runs[f"{name}, onnxruntime"] = partial(session.run, None, {"images": images})
        for precision in precisions_here():
            compiled = compile_model(onnx.load_from_string(data), name, options_for(precision), batch)
            runs[f"{name}, openvino {precision}"] = partial(compiled.create_infer_request().infer, {"images": images})
    return runs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--rounds", type=int, default=10, help="of each opening")
    parser.add_argument("--repeats", type=int, default=3, help="times that all are opened anew")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / "hugging_face.onnx"
        export_theirs(theirs)
        files = {name: path.read_bytes() for name, path in ((THEIRS, theirs), ("spt-deploy", given.ours))}
    for batch in map(int, given.batch.split(",")):
        turns, names = Turns(batch), []
        for _ in range(given.repeats):
            runs = opened(files, batch)
            names = list(runs)
            turns.take(runs, given.rounds)
            runs.clear()  # before the next are opened
        for timing in turns.timings(names, {name: f"{THEIRS}, {name.split(', ', 1)[1]}" for name in names}):
            ratio = f"{timing.peer_speedup:.3f} times {THEIRS}"
            print(f"batch {batch}  {timing.name:28} {timing.median_ms:8.1f} ms  {ratio}")


if __name__ == "__main__":
    main()

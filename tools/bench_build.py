"""What TensorRT's timing cache saves: an engine is built twice, the second time with the first one's measurements.

    python tools/bench_build.py MODEL.onnx

Where TensorRT or a GPU is missing there is nothing to measure, and it says so.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from spt_deploy.errors import RuntimeMissingError
from spt_deploy.workflows.build_engine import build_engine


def main() -> None:
    """Build twice and print both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # begin without measurements of earlier days
        seconds = []
        for turn in range(2):
            try:
                built = build_engine(given.model, Path(folder) / f"{turn}.engine", runtime="tensorrt", precision="fp16")
            except RuntimeMissingError as error:
                print(f"the timing cache is not measured: {error}")
                return
            assert built.timing_cache is bool(turn)
            seconds.append(built.build_s)
    print(f"first build {seconds[0]:.1f} s, second {seconds[1]:.1f} s: {seconds[0] / seconds[1]:.2f} times faster")


if __name__ == "__main__":
    main()

"""How much memory a process needs that does nothing but run one artefact: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spt_deploy.errors import RuntimeMissingError

_RUNS = 3


def peak_memory(
    path: Path, runtime: str, device: str, batch: int, precision: str = "", throughput: bool = False
) -> float:
    """Most memory that a process takes to open the artefact and run it on random images, in MiB.

    With ``throughput`` it runs several batches at the same time, see `open_runner`.

    Python and the runtime are in it, as they are in every process that uses them.

    Raises:
        RuntimeMissingError: when the process fails, or this system does not say how much memory one took.
    """
    command = [sys.executable, "-m", __name__, str(path), runtime, device, str(batch), precision, str(throughput)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeMissingError(f"the memory of {path.name} in {runtime} cannot be measured: {last}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """What the other process does: the arguments are those of ``peak_memory``; prints MiB."""
    import numpy as np

    from spt_deploy.runtimes import open_runner

    path, runtime, device, batch, precision, throughput = sys.argv[1:]
    opened = open_runner(Path(path), runtime, device, throughput=throughput == str(True), precision=precision or None)
    opened.expect(int(batch))
    with opened as runner, ThreadPoolExecutor(opened.lanes) as pool:
        size = runner.facts.preprocessing.size
        noise = np.random.default_rng(0).standard_normal((int(batch), 3, *size), dtype=np.float32)
        images = runner.facts.image_input.of(noise)
        for _ in range(_RUNS):
            list(pool.map(lambda _: runner.infer(images), range(runner.lanes)))
    print(json.dumps(_peak_of_this_process()))


def _peak_of_this_process() -> float:
    """Most memory that this process had at a time, in MiB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) / 1024
    except (OSError, StopIteration):  # no Linux
        import resource

        # On Linux this would be the parent's, where that is larger: it stays over fork and exec.
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    main()

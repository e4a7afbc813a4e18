"""Make ``import cv2`` work on machines without desktop libraries.

The wheel of opencv-python links against libGL, libxcb and glib, which servers and containers often lack.
opencv-python-headless holds the same module without windows, and this toolkit opens none. Run with the
interpreter of the environment to be mended:

    .venv/bin/python tools/ensure_cv2.py --constraints constraints.txt

Exit code 0 when ``import cv2`` works at the end, 1 when it does not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FULL, HEADLESS = "opencv-python", "opencv-python-headless"


def import_problem() -> str:
    """Why a fresh interpreter cannot import cv2, the last line of its traceback; empty when it can."""
    # A fresh one, because a failed import of an extension module cannot be tried again in this one.
    done = subprocess.run([sys.executable, "-c", "import cv2"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the interpreter ended with code {done.returncode}"


def pip(*arguments: str) -> None:
    """Run pip of this environment.

    Raises:
        subprocess.CalledProcessError: when pip fails; it has said why.
    """
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--constraints", type=Path, required=True, help="file that pins the headless wheel's version")
    constraints: Path = parser.parse_args().constraints

    problem = import_problem()
    if not problem:
        print("cv2 works")
        return 0
    if "cannot open shared object file" not in problem:
        print(f"error: cv2 cannot be imported and no other wheel would help: {problem}", file=sys.stderr)
        return 1
    print(f"cv2 needs a desktop library that this machine lacks ({problem}); taking {HEADLESS} in its place")
    try:
        # Both go first: the wheels own the same files, so the one that leaves last would take the other's along.
        pip("uninstall", "--yes", FULL, HEADLESS)
        pip("install", "--constraint", str(constraints), HEADLESS)
    except subprocess.CalledProcessError as error:
        print(f"error: pip could not install {HEADLESS} (exit code {error.returncode}); see above", file=sys.stderr)
        return 1
    problem = import_problem()
    if problem:
        print(f"error: cv2 cannot be imported from {HEADLESS} either: {problem}", file=sys.stderr)
        return 1
    print(f"cv2 works, from {HEADLESS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the runtimes would send to their makers, switched off.

ONNX Runtime from 1.28 on sends events to Microsoft, OpenVINO one to Google Analytics each time it is imported; who runs
a model on a camera has not been asked. OpenVINO's waits three seconds for a name server, and in a process forked from a
thread: where none answers, a run of a second takes ten.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OF_OPENVINO = "openvino_telemetry"  # a package of its own, which OpenVINO does without where it is missing
_OF_ONNX_RUNTIME = "ORT_DISABLE_TELEMETRY"  # read when it is loaded


@contextmanager
def no_telemetry() -> Iterator[None]:
    """For the import of a runtime: it sends nothing, as long as this process lives.

    Who wants ONNX Runtime's sets ``ORT_DISABLE_TELEMETRY=0``. What was imported before stays as it is.
    """
    os.environ.setdefault(_OF_ONNX_RUNTIME, "1")
    if _OF_OPENVINO in sys.modules:
        yield
        return
    sys.modules[_OF_OPENVINO] = None  # type: ignore[assignment]  # to an import, that is a package which is missing
    try:
        yield
    finally:
        del sys.modules[_OF_OPENVINO]

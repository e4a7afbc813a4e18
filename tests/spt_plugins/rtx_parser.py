"""A process that shows ``spt`` nodes to NVIDIA's ONNX parser and writes down what it says.

The parser is TensorRT-RTX's, the only one that can be had without a GPU; it reads nodes as TensorRT's does and finds
only then that it cannot hold the plugins of this kind. The plugins are ours, registered in the lean runtime's registry;
their names, versions and fields are copied into the parser's own.

Run as ``python -m tests.spt_plugins.rtx_parser with|without model.onnx...``; a line of JSON for each model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.spt_plugins.lean_tensorrt import install


def creators(rtx: Any) -> list[Any]:
    """A creator of TensorRT-RTX for each of ours."""
    from spt_plugins import tensorrt_plugins

    lean = install()
    tensorrt_plugins.register(89)

    class Creator(rtx.IPluginCreatorV3Quick):  # type: ignore[misc]
        def __init__(self, ours: Any) -> None:
            rtx.IPluginCreatorV3Quick.__init__(self)
            self.name, self.plugin_version = ours.name, ours.plugin_version
            self.plugin_namespace = ours.plugin_namespace
            fields = [rtx.PluginField(f.name, b"", getattr(rtx.PluginFieldType, f.type.name)) for f in ours.field_names]
            self.field_names = rtx.PluginFieldCollection(fields)

        def create_plugin(self, *arguments: Any) -> None:
            raise AssertionError("TensorRT-RTX makes no plugins of this kind")

    namespace = tensorrt_plugins.NAMESPACE
    return [Creator(each) for each in lean.get_plugin_registry().all_creators if each.plugin_namespace == namespace]


def main() -> None:
    """Register or not, then parse each file."""
    import tensorrt_rtx as rtx

    class Log(rtx.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            rtx.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append(text)

    kept = creators(rtx) if sys.argv[1] == "with" else []
    for creator in kept:
        assert rtx.get_plugin_registry().register_creator(creator, creator.plugin_namespace)
    for path in sys.argv[2:]:
        log = Log()
        builder = rtx.Builder(log)
        network = builder.create_network(0)
        parsed = rtx.OnnxParser(network, log).parse(Path(path).read_bytes())
        print(json.dumps({"parsed": parsed, "log": log.lines}), flush=True)


if __name__ == "__main__":
    main()

"""A process that stands in TensorRT's place while an engine is built, without a GPU and without the full TensorRT.

NVIDIA's lean runtime (`tensorrt-lean-cu13-libs`, `-bindings`) brings the real plugin registry and the real
quick-deploy plugin classes. It has no builder, so this module adds what only a builder has: expressions of sizes,
which real ones cannot be made without, and the order in which a builder asks a plugin its questions.

Run as ``python -m tests.spt_plugins.lean_tensorrt requests.json answers.json``. It must be a process of its own: it
takes the name ``tensorrt``, and Triton must not have been imported to interpret its kernels.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

# A size as the requests write it: a * batch + b.
Size = tuple[int, int]


class Expression:
    """A function of the batch, where TensorRT has an expression of the network's inputs."""

    def __init__(self, value: Callable[[int], int]) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return False

    def is_size_tensor(self) -> bool:
        return False


class ExpressionBuilder:
    """The operations that TensorRT's ``IExprBuilder`` names."""

    def __init__(self, operations: Any) -> None:
        self._operations: dict[Any, Callable[[int, int], int]] = {
            operations.SUM: lambda a, b: a + b,
            operations.SUB: lambda a, b: a - b,
            operations.PROD: lambda a, b: a * b,
            operations.CEIL_DIV: lambda a, b: -(-a // b),
            operations.FLOOR_DIV: lambda a, b: a // b,
            operations.MAX: max,
            operations.MIN: min,
        }

    def constant(self, value: int) -> Expression:
        return Expression(lambda batch: value)

    def operation(self, name: Any, a: Expression, b: Expression) -> Expression:
        apply = self._operations[name]
        return Expression(lambda batch: apply(a.value(batch), b.value(batch)))


class ExtraArguments(list[Any]):
    """``ISymExprs``: as many as the plugin says, each set by its index."""

    @property
    def nbSymExprs(self) -> int:  # noqa: N802 - TensorRT's name
        return len(self)

    @nbSymExprs.setter
    def nbSymExprs(self, count: int) -> None:  # noqa: N802
        self[:] = [None] * count


def install() -> ModuleType:
    """The lean runtime under the name ``tensorrt``, with the types that it lacks or that cannot be made from Python."""
    import tensorrt_lean_bindings as trt

    class TensorFormat(enum.IntEnum):
        LINEAR = 0

    class ITensor:
        pass

    class ISymExpr:
        """The real one takes only real expressions."""

    # Real descriptors cannot hold a format: its C++ type is not bound in the lean runtime.
    class PluginTensorDesc(trt.PluginTensorDesc):  # type: ignore[misc]
        format = TensorFormat.LINEAR

    class DynamicPluginTensorDesc(trt.DynamicPluginTensorDesc):  # type: ignore[misc]
        desc = min = opt = max = None

    for name, value in {
        "TensorFormat": TensorFormat,
        "ITensor": ITensor,
        "ISymExpr": ISymExpr,
        "IDimensionExpr": Expression,
        "DimsExprs": lambda length: [None] * length,
        "PluginTensorDesc": PluginTensorDesc,
        "DynamicPluginTensorDesc": DynamicPluginTensorDesc,
    }.items():
        setattr(trt, name, value)
    sys.modules["tensorrt"] = trt
    module: ModuleType = trt
    return module


def descriptor(trt: Any, dtype: Any, sizes: list[Size], batches: list[int]) -> Any:
    """A tensor as the builder describes it: its shape in the profile's smallest, usual and largest batch."""
    described, dynamic = trt.PluginTensorDesc(), trt.DynamicPluginTensorDesc()
    described.type = dtype
    described.dims = trt.Dims([-1 if slope else constant for slope, constant in sizes])
    dynamic.desc = described
    for name, batch in zip(("min", "opt", "max"), batches, strict=True):
        setattr(dynamic, name, trt.Dims([slope * batch + constant for slope, constant in sizes]))
    return dynamic


def create(trt: Any, operator: str, attributes: dict[str, Any]) -> Any:
    """Make a plugin as the ONNX parser does: of the node's attributes it hands on those that the creator names, in its
    order, numbers as int32 and float32 and strings as C strings."""
    namespace, version = attributes["plugin_namespace"], attributes["plugin_version"]
    creator = trt.get_plugin_registry().get_creator(operator, version, namespace)
    names = [field.name for field in creator.field_names]
    kinds = {str: trt.PluginFieldType.CHAR, int: trt.PluginFieldType.INT32, float: trt.PluginFieldType.FLOAT32}
    numbers = {int: np.int32, float: np.float32}
    # Fields point at their data and do not keep it.
    data = {
        name: value.encode() + b"\0"
        if isinstance(value := attributes[name], str)
        else np.array([value], numbers[type(value)])
        for name in names
    }
    fields = trt.PluginFieldCollection(
        [trt.PluginField(name, data[name], kinds[type(attributes[name])]) for name in names]
    )
    request = trt.QuickPluginCreationRequest.PREFER_AOT
    return creator.create_plugin(operator, namespace, fields, trt.TensorRTPhase.BUILD, request)


def ask(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Ask a plugin what a builder asks it, and write down the answers."""
    batches = request["batches"]
    plugin = create(trt, request["operator"], request["attributes"])
    builder = ExpressionBuilder(trt.DimensionOperation)
    types = [getattr(trt.DataType, kind) for kind, _ in request["inputs"]]
    sizes = [[Expression(lambda n, a=a, b=b: a * n + b) for a, b in dims] for _, dims in request["inputs"]]
    output_types = plugin.get_output_data_types(types, [len(dims) for dims in sizes])
    output_sizes = plugin.get_output_shapes(sizes, [], builder)

    def line(size: Expression) -> Size:  # every size of an output is linear in the batch
        return size.value(1) - size.value(0), size.value(0)

    inputs = [descriptor(trt, t, dims, batches) for t, (_, dims) in zip(types, request["inputs"], strict=True)]
    outputs = [
        descriptor(trt, t, [line(size) for size in dims], batches)
        for t, dims in zip(output_types, output_sizes, strict=True)
    ]
    combinations = plugin.get_supported_format_combinations(inputs + outputs, len(inputs))
    plugin.configure_plugin(inputs, outputs)
    tactics = plugin.get_valid_tactics()
    return {
        "aot": isinstance(plugin, trt.IPluginV3QuickAOTBuild),
        "outputs": [
            [kind.name, [[size.value(batch) for size in dims] for batch in batches]]
            for kind, dims in zip(output_types, output_sizes, strict=True)
        ],
        "combination": [described.type.name for described in combinations],
        "kernels": {
            str(tactic): kernel(plugin, tactic, sizes, inputs, outputs, batches, builder) for tactic in tactics or [0]
        },
    }


def kernel(
    plugin: Any,
    tactic: int,
    sizes: list[list[Expression]],
    inputs: list[Any],
    outputs: list[Any],
    batches: list[int],
    builder: ExpressionBuilder,
) -> dict[str, Any]:
    """What the plugin hands over for one tactic, its expressions evaluated for each batch."""
    plugin.set_tactic(tactic)
    launch, extra = SimpleNamespace(), ExtraArguments()
    plugin.get_launch_params(sizes, inputs + outputs, len(inputs), launch, extra, builder)
    name, ptx = plugin.get_kernel([each.desc for each in inputs], [each.desc for each in outputs])
    return {
        "name": name,
        "ptx": ptx.decode(),
        "launch": {key: [value.expr.value(n) for n in batches] for key, value in vars(launch).items()},
        "extra": [[value.expr.value(n) for n in batches] for value in extra],
        "extra_types": [value.dtype.name for value in extra],
    }


def main() -> None:
    """Answer the requests of the first file in the second; standard output is TensorRT's, for its log."""
    from spt_deploy.errors import SptError
    from spt_plugins import tensorrt_plugins

    trt = install()
    asked = json.loads(Path(sys.argv[1]).read_text())
    tensorrt_plugins.register(asked["arch"])
    tensorrt_plugins.register(asked["arch"])
    answers: list[dict[str, Any]] = []
    for request in asked["requests"]:
        try:
            answers.append(ask(trt, request))
        except SptError as error:
            answers.append({"error": type(error).__name__, "message": str(error)})
    registered = [
        [creator.plugin_namespace, creator.name, creator.plugin_version]
        for creator in trt.get_plugin_registry().all_creators
        if creator.plugin_namespace == tensorrt_plugins.NAMESPACE
    ]
    Path(sys.argv[2]).write_text(json.dumps({"registered": registered, "answers": answers}))


if __name__ == "__main__":
    main()

"""The ``spt`` domain: what the operators are called in files and registries."""

from __future__ import annotations

from typing import Any

DOMAIN = "spt"
OPSET_VERSION = 1

# TensorRT's parser looks for a plugin of this namespace and version before it looks at the file's functions.
PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": str(OPSET_VERSION)}

"""``make gpu-check``: the kernels on a real GPU: right, and how near to what the GPU can do.

Needs torch, triton, numpy, click, rich and pytest, nothing else; ``python -m spt_deploy.workflows.gpu``.
"""

from __future__ import annotations

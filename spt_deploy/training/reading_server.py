"""What the server of `reading` imports before it forks. To be imported there alone: it leaves its process group.

A signal to the run's group must not end the server: its end is that of the processes that it forked.
"""

from __future__ import annotations

import os

import cv2  # noqa: F401  (imported once here, not once in each process)

import spt_deploy.training.loader  # noqa: F401  (likewise, and PyTorch with it)

os.setpgid(0, 0)

"""What the server of `reading` imports first. To be imported there alone: it leaves its process group.

A signal to the run's group must not end the server: its end is that of the processes that it forked. Until it is out of
that group both signals are blocked, which `reading` does, and those that came meanwhile were the run's to answer.
"""

from __future__ import annotations

import os
import signal

os.setpgid(0, 0)
for _number in (signal.SIGINT, signal.SIGTERM):
    _handler = signal.signal(_number, signal.SIG_IGN)  # drops one that is pending
    signal.signal(_number, _handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))

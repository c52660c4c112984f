"""What a process of qtwist is at, looked at by a timer of processor time; for `python -m bench.stages`.

`begin` is called in the process itself. Each sample is a line in a file of the process: microseconds of processor time
that the main thread has used since the sample before, a tab, and the module of qtwist that is innermost on its stack
(``-`` for none: that is the reactor, when the process serves). Only the standard library, as lspawn has no more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from types import FrameType

#: Seconds of processor time between samples. Each wakes the reactor, so more of them would be seen.
INTERVAL = 0.005
#: Until the first one. The timer of a child that becomes another program goes on there, where its signal would kill
#: before Python has a handler for it.
FIRST = 0.1
_PACKAGE = f"{os.sep}qtwist{os.sep}"
#: What runs a reactor is in every stack.
_MAINS = {("processes/role.py", name) for name in ("<module>", "main")}


def module(frame: FrameType | None) -> str:
    """The module of qtwist that is innermost in a stack, as ``wire/smtp_server``."""
    while frame is not None:
        _, package, path = frame.f_code.co_filename.rpartition(_PACKAGE)
        if package and (path, frame.f_code.co_name) not in _MAINS:
            return path.removesuffix(".py")
        frame = frame.f_back
    return "-"


def begin(folder: str, name: str) -> None:
    """Sample this process and those that it forks into files ``NAME.PID.UID`` in a folder that all may write to."""
    before: float | None = None

    def sample(_: int, frame: FrameType | None) -> None:
        nonlocal before
        now, then = time.thread_time(), before
        before = now
        if then is None:
            return
        line = f"{(now - then) * 1e6:.0f}\t{module(frame)}\n"
        path = f"{folder}/{name if os.getpid() == first else name + '-child'}.{os.getpid()}.{os.getuid()}"
        # It stays closed between: lspawn's children close what they do not know.
        with contextlib.suppress(OSError), open(path, "a") as file:
            file.write(line)

    def start() -> None:
        nonlocal before
        before = None
        signal.setitimer(signal.ITIMER_PROF, FIRST, INTERVAL)

    first = os.getpid()
    signal.signal(signal.SIGPROF, sample)
    os.register_at_fork(after_in_child=start)
    start()

"""The daemon's processes under strace: to let system calls fail, and to count them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from unittest import SkipTest

from tests.e2e.harness import PATIENCE, program, wait_until


def traced(pids: Iterable[int]) -> bool:
    """Whether all threads of the processes are under strace."""
    for pid in pids:
        threads = f"/proc/{pid}/task"
        for thread in os.listdir(threads):
            with open(f"{threads}/{thread}/status") as file:
                if "TracerPid:\t0\n" in file.read():
                    return False
    return True


@contextlib.contextmanager
def strace(pids: Iterable[int], *options: str) -> Iterator[None]:
    """strace looks at the processes, and what they start, meanwhile; SkipTest where it may not."""
    pids = list(pids)
    tracer = subprocess.Popen(
        [program("strace", "strace"), "-f", "-q", *options, *(f"--attach={pid}" for pid in pids)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until("strace", lambda: tracer.poll() is not None or traced(pids))
        if tracer.poll() is not None:
            raise SkipTest("strace may not look at processes here")
        yield
    finally:
        tracer.terminate()
        tracer.wait(PATIENCE)


@contextlib.contextmanager
def counted(pids: Iterable[int]) -> Iterator[Counter[str]]:
    """How often each system call was made meanwhile; the counter is filled at the end."""
    calls: Counter[str] = Counter()
    with tempfile.NamedTemporaryFile("r", prefix="qtwist-strace-") as table:
        with strace(pids, "--summary-only", "--summary-columns=calls,name", f"--output={table.name}"):
            yield calls
        for line in table:
            words = line.split()
            if len(words) == 2 and words[0].isdigit() and words[1] != "total":
                calls[words[1]] += int(words[0])

"""One program delivery: /bin/sh -c, bounded in time and output (spec/qmail.md §13.5).

Blocks until the program has ended; it is meant for a thread or for a process of its own.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from qtwist.local.errors import AS_ROOT, PERMANENT, TEMPORARY, DeliveryError, reason

#: The octets of a program's output that are kept; a report shows about 3,000 of them (§11.2).
MAXIMUM_OUTPUT = 10_000

#: How long a program that was asked to end (TERM) may take until it is killed, in seconds.
GRACE = 5.0

_PERMANENT_CODES = frozenset({100, 64, 65, 70, 76, 77, 78, 112})
_STOP_CODE = 99
_READ_SIZE = 65536
_LONGEST_POLL = 3600.0  # seconds; poll counts milliseconds in 32 bits


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a program: its wait status as subprocess tells it (negative: killed by that signal), the first
    octets of what it said, and whether its time was up."""

    status: int
    output: bytes
    timed_out: bool


def outcome(run: Run, timeout: float) -> bool:
    """Whether the lines after this one are to be carried out (exit code 0) or not (99); DeliveryError for a failure."""
    if run.timed_out:
        raise DeliveryError(TEMPORARY, b"Program ran for more than %d seconds and was stopped. (#4.3.0)" % timeout)
    if run.status < 0:
        raise DeliveryError(TEMPORARY, b"Program was killed by signal %d. (#4.3.0)" % -run.status)
    if run.status in _PERMANENT_CODES:
        raise DeliveryError(PERMANENT)
    if run.status not in {0, _STOP_CODE}:
        raise DeliveryError(TEMPORARY)
    return run.status == 0


def run_program(
    command: bytes,
    *,
    fd: int,
    home: bytes,
    environment: Mapping[bytes, bytes],
    timeout: float,
    grace: float = GRACE,
) -> Run:
    """Run `command` in `home` with the message `fd`, from its first octet, as standard input.

    Standard output and standard error are one pipe, and the run is over when the shell is dead and nobody holds that
    pipe any more (§11.1): a program that leaves a child behind has to redirect the child's output. When `timeout`
    seconds are over, what is left of the process group is ended with TERM, then with KILL; it counts as timed out only
    when the shell itself was still running. DeliveryError when there is nothing to run it with, or as root.
    """
    if os.geteuid() == 0:
        raise DeliveryError(AS_ROOT, b"Programs are not run as root. (#4.3.0)")
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=home,
            env=environment,
            umask=0o077,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise DeliveryError(TEMPORARY, b"Unable to run /bin/sh: " + reason(error) + b". (#4.3.0)") from error
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    with process.stdout:
        output = bytearray()
        timed_out = False
        if not _drain(process, pipe, output, time.monotonic() + timeout):
            timed_out = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            os.killpg(process.pid, signal.SIGTERM)
            if not _drain(process, pipe, output, time.monotonic() + grace):
                os.killpg(process.pid, signal.SIGKILL)
                # A process that left the group may still hold the pipe; the shell itself is surely dead now.
                process.wait()
    return Run(process.returncode, bytes(output), timed_out)


def _drain(process: subprocess.Popen[bytes], pipe: int, output: bytearray, deadline: float) -> bool:
    """Read to the end of the pipe, then wait for the shell; False when the deadline came first.

    The shell is not reaped in that case: as long as it is a zombie, its process group id belongs to nobody else and
    may be signalled.
    """
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if not poller.poll(min(left, _LONGEST_POLL) * 1000):
            continue
        data = os.read(pipe, _READ_SIZE)
        if not data:
            break
        output += data[: MAXIMUM_OUTPUT - len(output)]
    else:
        return False
    try:
        process.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True

"""qmail-qstat: count the messages in the queue (spec/qmail.md §22)."""

from __future__ import annotations

import os
import stat
import sys

from qtwist.commands.base import TEMPORARY, answer_help, die, home
from qtwist.commands.streams import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    qmail-qstat - count the messages in the queue

SYNOPSIS
    qmail-qstat

DESCRIPTION
    Prints two lines: how many messages the queue holds, and how many of them
    are not yet preprocessed.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    printed
    111  the queue cannot be read; nothing is printed, rather than a wrong zero
"""

_PROG = "qmail-qstat"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    queue = os.path.join(home(), "queue")
    try:
        put(_PROG, report(queue))
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to read {error.filename}: {error.strerror}")
    return 0


def report(queue: str) -> bytes:
    """The two lines. OSError when a directory cannot be read."""
    total, waiting = (_count(os.path.join(queue, room)) for room in ("mess", "todo"))
    return b"messages in queue: %d\nmessages in queue but not yet preprocessed: %d\n" % (total, waiting)


def _count(directory: str) -> int:
    """The files in and below a directory."""
    files = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue  # gone while we count
            if stat.S_ISREG(mode):
                files += 1
            elif stat.S_ISDIR(mode):
                files += _count(entry.path)
    return files

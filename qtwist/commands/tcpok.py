"""qmail-tcpok: forget which hosts timed out (spec/qmail.md §22, §15.7)."""

from __future__ import annotations

import fcntl
import os
import sys

from qtwist.commands.base import TEMPORARY, answer_help, die, home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    qmail-tcpok - forget which hosts timed out

SYNOPSIS
    qmail-tcpok

DESCRIPTION
    Clears the table that qmail-tcpto shows, so that the next delivery to each
    host is tried at once. What is due when does not change: for that, send the
    daemon ALRM, or use qmailctl flush, which does both.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    done
    111  the table cannot be written
"""

_PROG = "qmail-tcpok"
_SIZE = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    path = os.path.join(home(), "queue", "lock", "tcpto")
    try:
        clear(path)
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to clear {path}: {error.strerror}")
    return 0


def clear(path: str) -> None:
    """Write an empty table under its lock. OSError if that fails."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.pwrite(fd, bytes(_SIZE), 0)
    finally:
        os.close(fd)

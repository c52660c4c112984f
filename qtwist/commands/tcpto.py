"""qmail-tcpto: show the hosts whose connections timed out lately (spec/qmail.md §22, §15.7)."""

from __future__ import annotations

import fcntl
import os
import sys
import time

from qtwist.commands.base import TEMPORARY, answer_help, home
from qtwist.commands.streams import emit, put
from qtwist.remote.tcpto import SIZE, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    qmail-tcpto - show the hosts whose connections timed out lately

SYNOPSIS
    qmail-tcpto

DESCRIPTION
    Prints a line for each IPv4 address in the table of timeouts: when it timed
    out last, and how often. An address that timed out twice is left alone for
    about an hour. qmail-tcpok clears the table. IPv6 addresses are remembered
    by the daemon alone, not in the table.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    printed
    111  the table cannot be read (a line on standard output says why)
"""

_PROG = "qmail-tcpto"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    path = os.path.join(home(), "queue", "lock", "tcpto")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A shared lock keeps writers out as well, and needs no right to write.
            fcntl.flock(fd, fcntl.LOCK_SH)
            table = os.pread(fd, SIZE, 0)
        finally:
            os.close(fd)
    except OSError as error:
        put(_PROG, f"fatal: unable to read {path}: {error.strerror}\n".encode("utf-8", "surrogateescape"))
        return TEMPORARY
    emit(_PROG, report(table, int(time.time())))
    return 0


def report(table: bytes, now: int) -> Iterator[bytes]:
    """The lines for the contents of the table's file."""
    for record in unpack(table):
        if record.count:
            address = b"%d.%d.%d.%d" % tuple(record.host)
            ago = max(now - record.when, 0)
            yield b"%b timed out %d seconds ago; # recent timeouts: %d\n" % (address, ago, record.count)

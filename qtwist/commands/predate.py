"""predate: run a program on a message with a Date in front (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys
from time import localtime, time

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, blocks, die, write_all
from qtwist.commands.running import start, wait
from qtwist.mail.dates import MONTHS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROG = "predate"

USAGE = """\
NAME
    predate - run a program on a message with a Date in front

SYNOPSIS
    predate PROGRAM [ARGUMENT ...]

DESCRIPTION
    Runs the program with a Date field, in local time, and then the message from
    standard input as its standard input.

EXIT CODES
    That of the program, and
    100  wrong use
    111  the program was killed, or could not be started
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, or raises SystemExit with it."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if not arguments:
        die(PROG, PERMANENT, "usage: predate program [argument ...]")
    try:
        source, sink = os.pipe()
    except OSError as error:
        die(PROG, TEMPORARY, f"fatal: unable to make a pipe: {error.strerror}")
    child = start(PROG, arguments, lambda: _read_from(source), otherwise=TEMPORARY)
    os.close(source)
    _feed(sink)
    return wait(PROG, child)


def date_field(seconds: float) -> bytes:
    """A Date field for this time (since the epoch) with the offset of the local zone."""
    t = localtime(seconds)
    minutes = round(t.tm_gmtoff / 60)
    sign = b"-" if minutes < 0 else b"+"
    return b"Date: %d %b %d %02d:%02d:%02d %b%02d%02d\n" % (
        t.tm_mday,
        MONTHS[t.tm_mon - 1],
        t.tm_year,
        t.tm_hour,
        t.tm_min,
        t.tm_sec,
        sign,
        *divmod(abs(minutes), 60),
    )


def _read_from(source: int) -> None:
    os.dup2(source, 0)


def _feed(sink: int) -> None:
    """Give the program its input, as far as it wants any."""
    try:
        write_all(sink, date_field(time()))
        for block in blocks(0):
            write_all(sink, block)
    except BrokenPipeError:
        pass
    except OSError as error:
        die(PROG, TEMPORARY, f"fatal: unable to read or write: {error.strerror}")
    finally:
        os.close(sink)


if __name__ == "__main__":
    sys.exit(main())

"""tai64n: put a time stamp in front of each line (spec/related.md §5.7)."""

from __future__ import annotations

import sys
import time

from qtwist.commands.base import answer_help
from qtwist.commands.streams import put, read_blocks
from qtwist.files.tai64n import stamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    tai64n - put a time stamp in front of each line

SYNOPSIS
    PROGRAM | tai64n

DESCRIPTION
    Copies standard input to standard output at once, with @, the time in TAI64N
    (24 hexadecimal digits) and a blank before each line. Lines that come
    together get the same stamp. tai64nlocal makes the stamps readable.

EXIT CODES
    0    standard input has ended
    111  reading or writing failed
"""

_PROG = "tai64n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    at_start = True
    for block in read_blocks(_PROG):
        prefix = stamp(time.time_ns()) + b" "
        ends = block.endswith(b"\n")
        lines = (block[:-1] if ends else block).replace(b"\n", b"\n" + prefix)
        put(_PROG, (prefix if at_start else b"") + lines + (b"\n" if ends else b""))
        at_start = ends
    return 0

"""tai64nlocal: make the time stamps in front of lines readable (spec/related.md §5.7)."""

from __future__ import annotations

import sys

from qtwist.commands.base import answer_help
from qtwist.commands.streams import put, read_blocks
from qtwist.files.tai64n import STAMP_SIZE, readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

USAGE = """\
NAME
    tai64nlocal - make time stamps readable

SYNOPSIS
    tai64nlocal < LOG

DESCRIPTION
    Copies standard input to standard output; a TAI64N stamp at the start of a
    line becomes local date and time, as in 2026-11-02 03:04:05.123456789. Other
    lines stay as they are.

ENVIRONMENT
    TZ   the time zone, if it is not the system's

EXIT CODES
    0    standard input has ended
    111  reading or writing failed
"""

_PROG = "tai64nlocal"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    for text in converted(read_blocks(_PROG)):
        put(_PROG, text)
    return 0


def converted(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """`blocks`, a text cut anywhere, with its stamps made readable: as soon as can be, whatever the lines' length."""
    inside = False  # what comes next continues a line whose start is done
    held = b""  # the start of a line, too short to tell whether it has a stamp
    for block in blocks:
        data = held + block
        held = b""
        if inside:
            end = data.find(b"\n") + 1
            if not end:
                yield data
                continue
            yield data[:end]
            data = data[end:]
        start = data.rfind(b"\n") + 1
        if data.startswith(b"@", start) and len(data) - start < STAMP_SIZE:
            data, held = data[:start], data[start:]
        inside = data != b"" and not data.endswith(b"\n")
        if data:
            yield readable(data)
    if held:
        yield readable(held)

"""ofmipname: make the name database of submission from text (spec/related.md §9.1)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, answer_help, die
from qtwist.commands.cdbmake import write
from qtwist.commands.streams import read_blocks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    ofmipname - make the database of names for submission

SYNOPSIS
    ofmipname FILE TEMPORARY < TEXT

DESCRIPTION
    Reads lines from standard input, each of the form

        ADDRESS:NAME:NEWADDRESS:

    Mail that is submitted with the sender ADDRESS gets the sender NEWADDRESS
    and the line From: "NAME" <NEWADDRESS>, whatever its own From is. Lines that
    start with #, or are not of that form, are left out. The database is made as
    TEMPORARY, which has to be on the same file system, synced, and then renamed
    to FILE. The daemon reads control/ofmipname.cdb.

EXIT CODES
    0    done
    100  wrong use
    111  a file cannot be read or written
"""

_PROG = "ofmipname"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if len(arguments) < 2:
        die(_PROG, PERMANENT, "usage: ofmipname file temporary")
    os.umask(0o033)
    text = b"".join(read_blocks(_PROG))
    write(_PROG, arguments[0], arguments[1], records(text))
    return 0


def records(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Addresses, each with its name, a NUL and the new address."""
    for line in text.split(b"\n"):
        fields = line.split(b":", 3)
        if len(fields) == 4 and not line.startswith(b"#"):
            address, name, new, _ = fields
            yield address, name + b"\0" + new


if __name__ == "__main__":
    sys.exit(main())

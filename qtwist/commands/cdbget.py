"""cdbget: look a key up in a constant database (spec/related.md §1.2)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die
from qtwist.commands.cdbdump import open_input
from qtwist.commands.streams import put
from qtwist.files.cdb import CDBError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    cdbget - look a key up in a constant database

SYNOPSIS
    cdbget KEY [SKIP] < FILE

DESCRIPTION
    Prints the data of the first record with that key in the database on
    standard input, and nothing else: no line end is added. With a number SKIP,
    so many records with that key are passed over first.

EXIT CODES
    0    printed
    100  there is no such record; or wrong use
    111  standard input cannot be read, or is no such database
"""

_PROG = "cdbget"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    skip = arguments[1] if len(arguments) > 1 else "0"
    if not arguments or not (skip.isascii() and skip.isdigit()):
        die(_PROG, PERMANENT, "usage: cdbget key [ skip ]")
    with open_input(_PROG) as database:
        try:
            found = database.getall(os.fsencode(arguments[0]))[int(skip[-18:]) :]
        except CDBError as error:
            die(_PROG, TEMPORARY, f"fatal: unable to read input: {error}")
    if not found:
        return PERMANENT
    put(_PROG, found[0])
    return 0

"""cdbdump: print a constant database as text (spec/related.md §1.2)."""

from __future__ import annotations

import sys

from qtwist.commands.base import TEMPORARY, answer_help, die
from qtwist.commands.streams import emit
from qtwist.files.cdb import CDB, CDBError
from qtwist.files.cdb_text import format_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    cdbdump - print a constant database as text

SYNOPSIS
    cdbdump < FILE

DESCRIPTION
    Prints all records of the database on standard input, in their order and in
    the form that cdbmake reads.

EXIT CODES
    0    done
    111  standard input cannot be read, or is no such database
"""

_PROG = "cdbdump"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    emit(_PROG, _lines(open_input(_PROG)))
    return 0


def open_input(prog: str) -> CDB:
    """The database that is open as standard input; dies with 111 if there is none."""
    try:
        return CDB("standard input", fd=0)
    except (OSError, CDBError) as error:
        die(prog, TEMPORARY, f"fatal: unable to read input: {getattr(error, 'strerror', None) or error}")


def _lines(database: CDB) -> Iterator[bytes]:
    try:
        for key, data in database:
            yield format_record(key, data)
    except CDBError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to read input: {error}")
    yield b"\n"

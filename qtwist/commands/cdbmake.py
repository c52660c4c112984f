"""cdbmake: make a constant database from its text form (spec/related.md §1.2)."""

from __future__ import annotations

import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die
from qtwist.commands.streams import read_blocks
from qtwist.files.cdb import CDBError, write_cdb
from qtwist.files.cdb_text import TextError, parse_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

USAGE = """\
NAME
    cdbmake - make a constant database from text

SYNOPSIS
    cdbmake FILE TEMPORARY < TEXT

DESCRIPTION
    Reads records from standard input, each in the form

        +KLEN,DLEN:KEY->DATA

    and a line end, where KLEN and DLEN are the lengths of key and data in
    octets. An empty line ends the input. The database is made as TEMPORARY,
    which has to be on the same file system, synced, and then renamed to FILE:
    readers see the old one or the new one. When anything is wrong, the old one
    stays.

EXIT CODES
    0    done
    100  wrong use
    111  the input is not of that form, or a file cannot be read or written
"""

_PROG = "cdbmake"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if len(arguments) < 2:
        die(_PROG, PERMANENT, "usage: cdbmake file temporary")
    try:
        write(_PROG, arguments[0], arguments[1], parse_records(read_blocks(_PROG)))
    except TextError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to read input: {error}")
    return 0


def write(prog: str, path: str, temporary: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Make the database; dies with 111 where a file cannot be written. What `records` raises comes through."""
    try:
        write_cdb(path, records, temporary)
    except OSError as error:
        what = f"unable to move {temporary} to {path}" if error.filename2 else f"unable to write {temporary}"
        die(prog, TEMPORARY, f"fatal: {what}: {error.strerror}")
    except CDBError as error:
        die(prog, TEMPORARY, f"fatal: unable to write {temporary}: {error}")

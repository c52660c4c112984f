"""qmail-newu: compile users/assign to users/cdb (spec/qmail.md §12.2)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qtwist.commands import compiling
from qtwist.files.assign import AssignError, compile_assign

USAGE = """\
NAME
    qmail-newu - compile users/assign to users/cdb

SYNOPSIS
    qmail-newu [--home DIR]

DESCRIPTION
    Makes users/cdb, which says who owns which local address, from the lines in
    users/assign:

        =LOCAL:USER:UID:GID:HOME:DASH:EXT:
        +LOC:USER:UID:GID:HOME:DASH:PRE:
        .

    = is about one local part, + about all that start so; the line with the dot
    ends the list. The new database takes the place of the old one at once, and
    the daemon uses it from the next delivery on.

OPTIONS
    --home DIR  the home of the mail system

ENVIRONMENT
    QTWISTHOME  the home, where there is no such option [/var/qmail]

EXIT CODES
    0    done
    100  wrong use
    111  the text is wrong, or a file cannot be read or written: nothing changed
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return compiling.run("qmail-newu", USAGE, argv, _compile)


def _compile(home: str) -> None:
    try:
        compiling.write(home, "users/cdb", "users/cdb.tmp", compile_assign(compiling.read(home, "users/assign")))
    except AssignError as error:
        raise compiling.Fatal(f"bad format in users/assign: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

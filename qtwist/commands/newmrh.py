"""qmail-newmrh: compile control/morercpthosts to control/morercpthosts.cdb (spec/qmail.md §16.8)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qtwist.commands import compiling
from qtwist.control import split_lines
from qtwist.mail.domains import ascii_key

USAGE = """\
NAME
    qmail-newmrh - compile control/morercpthosts to a database

SYNOPSIS
    qmail-newmrh [--home DIR]

DESCRIPTION
    Makes control/morercpthosts.cdb from control/morercpthosts: domains, one a
    line, that mail is taken for in addition to those in control/rcpthosts. The
    new database takes the place of the old one at once.

OPTIONS
    --home DIR  the home of the mail system

ENVIRONMENT
    QTWISTHOME  the home, where there is no such option [/var/qmail]

EXIT CODES
    0    done
    100  wrong use
    111  a file cannot be read or written: nothing is changed
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return compiling.run("qmail-newmrh", USAGE, argv, _compile)


def _compile(home: str) -> None:
    text = compiling.read(home, "control/morercpthosts")
    records = ((ascii_key(line), b"") for _, line in split_lines(text))
    compiling.write(home, "control/morercpthosts.cdb", "control/morercpthosts.tmp", records)


if __name__ == "__main__":
    sys.exit(main())

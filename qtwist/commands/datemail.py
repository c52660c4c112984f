"""datemail: sendmail with a Date in local time in front of the message (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys
from time import time

from qtwist.commands import sendmail
from qtwist.commands.base import answer_help, blocks
from qtwist.commands.predate import date_field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

USAGE = """\
NAME
    datemail - send mail with a Date in local time

SYNOPSIS
    datemail [OPTION ...] [RECIPIENT ...]

DESCRIPTION
    Puts a Date field, in local time, in front of the message on standard input
    and does then what sendmail does with the same options; qmail-inject would
    write a Date in universal time. See sendmail --help.

EXIT CODES
    As for sendmail.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, or raises SystemExit with it."""
    return run(sys.argv[1:] if argv is None else argv, os.environ, blocks(0))


def run(argv: Sequence[str], environ: Mapping[str, str], message: Iterable[bytes]) -> int:
    """Do what the command line says, with `message` as the input."""
    answer_help(argv, USAGE)
    return sendmail.run(argv, environ, _dated(message))


def _dated(message: Iterable[bytes]) -> Iterator[bytes]:
    yield date_field(time())
    yield from message


if __name__ == "__main__":
    sys.exit(main())

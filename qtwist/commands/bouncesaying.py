"""bouncesaying: send a message back with a text, perhaps only if a program says so (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, answer_help, die, write_all
from qtwist.commands.running import agrees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    bouncesaying - send a message back with a text

SYNOPSIS
    |bouncesaying TEXT [PROGRAM [ARGUMENT ...]]    (a line of a .qmail file)

DESCRIPTION
    Runs the program with the message as standard input. When it exits with 0,
    or when there is no program, the message bounces, and TEXT is in the notice
    to its sender. When the program exits with 111, or is killed, the delivery
    is tried again later. With any other code nothing happens, and the next
    line of the .qmail file is carried out.

ENVIRONMENT
    PATH        where the program is looked for

EXIT CODES
    0    the message does not bounce
    100  it bounces; or wrong use
    111  not now
"""

_PROG = "bouncesaying"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if not arguments:
        die(_PROG, PERMANENT, "usage: bouncesaying text [ program [ argument ... ] ]")
    if len(arguments) > 1 and not agrees(_PROG, arguments[1:]):
        return 0
    try:
        write_all(2, os.fsencode(arguments[0]) + b"\n")
    except OSError:
        return PERMANENT  # it bounces all the same, without the text
    return PERMANENT

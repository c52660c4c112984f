"""condredirect: send a message elsewhere if a program says so (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, die, say
from qtwist.commands.running import agrees, queue_input, variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    condredirect - send a message elsewhere if a program says so

SYNOPSIS
    |condredirect ADDRESS PROGRAM [ARGUMENT ...]   (a line of a .qmail file)

DESCRIPTION
    Runs the program with the message as standard input. When it exits with 0,
    the message is queued for ADDRESS, with its envelope sender and a
    Delivered-To line in front, and the rest of the .qmail file is skipped.
    When the program exits with 111, or is killed, the delivery is tried again
    later. With any other code nothing happens, and the next line of the .qmail
    file is carried out.

ENVIRONMENT
    SENDER      the envelope sender       (set by qmail-local)
    DTLINE      the Delivered-To line     (set by qmail-local)
    PATH        where the program is looked for
    QMAILQUEUE  a program that takes the message instead of the queue
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    not redirected
    99   redirected: success, and no further lines; the number is on standard
         error
    100  wrong use, or the queue refuses the message for good
    111  not now
"""

_PROG = "condredirect"
_SKIP_THE_REST = 99


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if len(arguments) < 2:
        die(_PROG, PERMANENT, "usage: condredirect address program [ argument ... ]")
    if not agrees(_PROG, arguments[1:]):
        return 0
    try:
        os.lseek(0, 0, os.SEEK_SET)
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to rewind the message: {error.strerror}")
    sender = variable(_PROG, "SENDER")
    prefix = variable(_PROG, "DTLINE")
    number = queue_input(_PROG, prefix, sender, [os.fsencode(arguments[0])])
    say(f"{_PROG}: ", f"qp {number}")
    return _SKIP_THE_REST

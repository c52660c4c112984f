"""forward: send a message on, from a line of a .qmail file (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, answer_help, die, say
from qtwist.commands.running import queue_input, variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    forward - send a message on to other addresses

SYNOPSIS
    |forward ADDRESS ...            (a line of a .qmail file)

DESCRIPTION
    Queues the message on standard input for the given addresses, with a
    Delivered-To line in front, so that loops are found. The envelope sender is
    the one that mail forwarded from this .qmail file has to carry.

    The addresses are used as they are: complete, without comments or brackets.

ENVIRONMENT
    NEWSENDER   the envelope sender       (set by qmail-local)
    DTLINE      the Delivered-To line     (set by qmail-local)
    QMAILQUEUE  a program that takes the message instead of the queue
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    queued; the number is on standard error
    100  wrong use, or the queue refuses the message for good
    111  not now
"""


def main(argv: Sequence[str] | None = None) -> int:
    addresses = sys.argv[1:] if argv is None else argv
    answer_help(addresses, USAGE)
    if not addresses:
        die("forward", PERMANENT, "usage: forward address ...")
    sender = variable("forward", "NEWSENDER")
    prefix = variable("forward", "DTLINE")
    number = queue_input("forward", prefix, sender, [os.fsencode(address) for address in addresses])
    say("forward: ", f"qp {number}")
    return 0

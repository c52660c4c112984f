"""qmail-qmqpc: hand a message to a QMQP server in the way of qmail-queue (spec/qmail.md §17.3, §6)."""

from __future__ import annotations

import sys

from qtwist.commands.base import answer_help, home
from qtwist.commands.queue import hand_in
from qtwist.queue.qmqp import submit_to_servers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
NAME
    qmail-qmqpc - hand a message to a QMQP server

SYNOPSIS
    qmail-qmqpc <MESSAGE 1<ENVELOPE

DESCRIPTION
    Takes message and envelope in the way of qmail-queue, and can stand in its
    place: as bin/qmail-queue (qtwist install-links --null-client), or named in
    $QMAILQUEUE. The message goes to a server that speaks QMQP; no queue is
    needed here, and no Received line is added.

    control/qmqpservers lists the servers, one a line: an IPv4 or IPv6 address,
    or address:port, [IPv6 address]:port where the port is not 628. They are
    asked in this order until one can be reached within 10 seconds. That one
    decides; it may take 60 seconds to answer.

    Nothing is printed. A message of more than a megabyte waits in a file
    without a name while it is read.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]
    TMPDIR      where large messages wait [/tmp]

EXIT CODES
    0    the server has it           56   no socket
    11   an address is too long      61   no such home
    31   the server refuses it       71   the server does not take it now
         for good                    72   no answer to the connection
    51   out of memory               73   no connection to any server
    52   too slow                    74   the server stopped in the middle;
    53   write error, disk full           it may have the message
    54   read error, or cut short    91   the envelope is wrong
    55   no server is named
    The codes 11 to 40 mean that the message will never be accepted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    return hand_in(lambda message, envelope: submit_to_servers(home(), message, envelope))

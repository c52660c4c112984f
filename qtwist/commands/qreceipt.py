"""qreceipt: tell a sender who asked for it that a message has arrived (spec/qmail.md §21)."""

from __future__ import annotations

import os
import sys
import time

from qtwist.commands.base import PERMANENT, TEMPORARY, answer_help, blocks, die, home
from qtwist.commands.running import variable
from qtwist.inject.addresses import rewrite_field
from qtwist.inject.splitting import HeaderTooLong, Splitter
from qtwist.inject.tokens import SyntaxTrouble, parse, unquote
from qtwist.mail.dates import rfc822_date
from qtwist.mail.quoting import quote2
from qtwist.queue.client import QueueRefused, submit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qtwist.inject.tokens import Tokens

USAGE = """\
NAME
    qreceipt - tell a sender who asked for it that a message has arrived

SYNOPSIS
    |qreceipt ADDRESS               (a line of a .qmail file)

DESCRIPTION
    Reads the message on standard input. When one of its
    Notice-Requested-Upon-Delivery-To fields lists exactly this ADDRESS, a
    notice of success goes to the envelope sender. Bounces get no notice, and
    no notice gets a bounce.

ENVIRONMENT
    SENDER      the envelope sender       (set by qmail-local)
    QMAILQUEUE  a program that takes the notice instead of the queue
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    done, with or without a notice
    100  wrong use, or a field that cannot be understood
    111  not now
"""

_PROG = "qreceipt"
_REQUEST = b"notice-requested-upon-delivery-to"
_SHOWN = 1000  # octets of a Message-ID


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if not arguments:
        die(_PROG, PERMANENT, "usage: qreceipt address")
    address = os.fsencode(arguments[0])
    sender = variable(_PROG, "SENDER")
    requested = False
    message_id = b""
    try:
        for field in Splitter(blocks(0)).fields():
            name = field.partition(b":")[0].rstrip(b" \t").lower()
            if name == _REQUEST:
                requested = requested or address in _addresses(field)
            elif name == b"message-id":
                message_id = field[:_SHOWN].rstrip(b"\n")
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to read the message: {error.strerror}")
    except HeaderTooLong:
        die(_PROG, PERMANENT, "fatal: the header is too long")
    except SyntaxTrouble:
        die(_PROG, PERMANENT, "fatal: a Notice-Requested-Upon-Delivery-To field cannot be understood")
    if not requested or sender in (b"", b"#@[]"):
        return 0
    try:
        submit(home(), [_notice(address, sender, message_id)], b"", [sender])
    except QueueRefused as error:
        die(_PROG, PERMANENT if error.letter == b"D" else TEMPORARY, b"fatal: " + error.text)
    return 0


def _addresses(field: bytes) -> list[bytes]:
    found = []

    def take(tokens: Tokens) -> Tokens:
        found.append(unquote(tokens))
        return tokens

    rewrite_field(parse(field), take)
    return found


def _notice(address: bytes, sender: bytes, message_id: bytes) -> bytes:
    to = quote2(sender).replace(b"\n", b"_")
    about = b"\n%b\n" % message_id if message_id else b""
    return (
        b"Date: %b\n"
        b"From: DELIVERY NOTICE SYSTEM <%b>\n"
        b"To: <%b>\n"
        b"Subject: success notice\n"
        b"\n"
        b"This is qreceipt, for the mail system. You wanted to know: your message\n"
        b"has arrived at\n"
        b"\n"
        b"%b\n"
        b"%b" % (rfc822_date(time.time()), to, to, address.replace(b"\n", b"_"), about)
    )

"""Notices of failure in qmail-send's bounce message format, QSBMF (spec/qmail.md §9.10, §9.11, §27)."""

from __future__ import annotations

import re
from typing import Protocol

from qtwist.mail.address import quote, quote2
from qtwist.mail.dates import rfc822_date
from qtwist.mail.verp import bounce_address

_BLANK_LINES = re.compile(rb"\n{2,}")

_SINGLE = (
    b"The message could not be delivered to the addresses below.\n"
    b"These failures are permanent: nothing further will be tried. Sorry.\n"
)
_DOUBLE = b"A notice of failure could not be delivered to the address below: the bounce has bounced.\n"


class NoticeSettings(Protocol):
    """Who signs the notices: control/bouncefrom and control/bouncehost."""

    @property
    def bouncefrom(self) -> bytes: ...

    @property
    def bouncehost(self) -> bytes: ...


def recipient_paragraph(recipient: bytes, report: bytes) -> bytes:
    """The paragraph about one failed recipient, as bounce/N collects them (§9.10).

    `recipient` is shown as the sender knew it (see ``Rewriter.original``), `report` comes without its letter. Only the
    last line of the paragraph is empty, also when the report ends in empty lines (where qmail's format breaks).
    """
    text = b"<" + recipient.replace(b"\n", b"_") + b">:\n" + report.rstrip(b"\n")
    text = _BLANK_LINES.sub(lambda run: b"\n".ljust(len(run[0]), b"/"), text)
    return text + (b"\n" if text.endswith(b"\n") else b"\n\n")


def notice_head(settings: NoticeSettings, sender: bytes, recipient: bytes, paragraphs: bytes, seconds: float) -> bytes:
    """All of a notice that comes before the copy of the message (§9.11).

    `sender` is the stored sender of the failed message; an empty one makes this a double bounce. (For ``#@[]`` no
    notice is sent.) `recipient` gets the notice, `paragraphs` are the contents of bounce/N.
    """
    sender = bounce_address(sender)
    single = bool(sender)
    copied = b"a copy of the message" if single else b"the original bounce"
    return b"".join(
        (
            b"Date: " + rfc822_date(seconds) + b"\n",
            b"From: " + quote(settings.bouncefrom) + b"@" + settings.bouncehost + b"\n",
            b"To: " + _one_line(quote2(recipient)) + b"\n",
            b"Subject: failure notice\n\n",
            b"Hi. This is the qmail-send program at " + settings.bouncehost + b".\n",
            _SINGLE if single else _DOUBLE,
            b"\n",
            paragraphs,
            b"--- Below this line is " + copied + b".\n\n",
            b"Return-Path: <" + _one_line(quote2(sender)) + b">\n",
        )
    )


def _one_line(address: bytes) -> bytes:
    # Local programs can queue an address with a LF in it; it must not make header lines of its own.
    return address.replace(b"\n", b"_")

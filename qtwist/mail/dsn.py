"""Reports on deliveries as multipart/report (RFC 3462, 3464; RFC 3461 §6), and the paragraphs that they are made of.

A paragraph stands in bounce/N, where failures are collected (spec/qmail.md §9.10). One of a message that came with DSN
parameters has a line more than qmail's, behind the address: ``=``, what became of the recipient, its channel and its
record's offset there. So a report says which of the sender's recipients it is about.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import attrs

from qtwist.mail.address import quote, quote2
from qtwist.mail.asked import DELAY, PASSED_ON, SUCCESS, Kept, OfMessage, of_message, of_recipient
from qtwist.mail.dates import rfc822_date
from qtwist.mail.envelope import Report
from qtwist.mail.qsbmf import NoticeSettings, recipient_paragraph
from qtwist.mail.verp import bounce_address

FAILED = b"failed"
DELAYED = b"delayed"
DELIVERED = b"delivered"
RELAYED = b"relayed"
EXPANDED = b"expanded"

_MARKED = re.compile(rb"=(failed|delayed|delivered|relayed|expanded) (local|remote) ([0-9]{1,12})\n")
_DID = re.compile(rb"^did ([0-9]+)\+([0-9]+)\+([0-9]+)$", re.MULTILINE)
_STATUS = re.compile(rb"#([245]\.[0-9]{1,3}\.[0-9]{1,3})\)|\b[245][0-9]{2}[ -]([245]\.[0-9]{1,3}\.[0-9]{1,3})\b")
_SAID = re.compile(rb"^Remote host said: ([2-5][0-9]{2}[ -].*)", re.MULTILINE)
_PEER = re.compile(rb"(?:Connected to )?([0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+) ")
_HIDDEN = re.compile(rb"[^ -~]+")

#: The most octets of a delivery's words in Diagnostic-Code: a line of a message has at most 998.
_DIAGNOSTIC = 600

#: What a status says where the report does not tell, and how it may begin (RFC 3464 §2.3.4).
_STATUSES = {FAILED: (b"5.0.0", b"45"), DELAYED: (b"4.0.0", b"4")}
_DONE = (b"2.0.0", b"2")

_INTRODUCTIONS = {
    FAILED: b"The message could not be delivered to the addresses below.\n"
    b"These failures are permanent: nothing further will be tried. Sorry.\n",
    DELAYED: b"The message could not yet be delivered to the addresses below.\n"
    b"It need not be sent again: further attempts will be made.\n",
    DELIVERED: b"The message was delivered to the addresses below.\n",
    RELAYED: b"The message was sent on for the addresses below, to where no further\nreport can be expected from.\n",
    EXPANDED: b"The message was delivered to the addresses below, and sent on from there\nto others.\n",
}
_ORDER = (FAILED, DELAYED, EXPANDED, RELAYED, DELIVERED)


@attrs.frozen
class About:
    """What a report says of one recipient: the address as the sender knew it, what became of it, and the delivery's
    own words. `channel` and `offset` name its record; an empty channel where that is not known."""

    address: bytes
    action: bytes
    text: bytes
    channel: str = ""
    offset: int = 0


def outcome(channel: str, report: Report, wanted: bytes, sender: bytes) -> bytes | None:
    """What the sender of a message is to be told at its end of a recipient who came with the parameters `wanted`: an
    action, or None for nothing (RFC 3461 §4.1, §5.2). Nobody is told of success where there is nobody."""
    asked = of_recipient(wanted)
    if report.letter == b"D":
        return FAILED if asked.failure else None
    if report.letter != b"K" or not asked.wants(SUCCESS) or bounce_address(sender) in (b"", b"#@[]"):
        return None
    if report.text.endswith(PASSED_ON):
        return None
    if channel == "remote":
        return RELAYED
    did = _DID.search(report.text)
    if did is None or did[2] == b"0":
        return DELIVERED
    alone = did[1] == did[3] == b"0" and did[2] == b"1"
    return RELAYED if alone else EXPANDED


def tells_delay(wanted: bytes, sender: bytes) -> bool:
    """Whether a delay is to be told."""
    return of_recipient(wanted).wants(DELAY) and bounce_address(sender) not in (b"", b"#@[]")


def marked_paragraph(address: bytes, action: bytes, channel: str, offset: int, text: bytes) -> bytes:
    """A paragraph of bounce/N with the line that says what it is about."""
    return recipient_paragraph(address, b"=%b %b %d\n%b" % (action, channel.encode(), offset, text))


def read_paragraphs(text: bytes, *, marked: bool) -> list[About]:
    """What bounce/N tells. Without `marked`, all is about failures: a line that looks like a mark is a delivery's."""
    found = []
    for paragraph in text.split(b"\n\n"):
        head, _, words = paragraph.partition(b">:\n")
        if not head.startswith(b"<"):
            continue
        address = head[1:]
        mark = _MARKED.match(words + b"\n") if marked else None
        if mark is None:
            found.append(About(address, FAILED, words))
        else:
            found.append(About(address, mark[1], words[mark.end() :], mark[2].decode(), int(mark[3])))
    return found


@attrs.frozen
class ReportFacts:
    """What a report is made of: the sender it goes to, what was asked for, when the message came and when this is
    (seconds since the epoch), and `token`, which no message has in it."""

    recipient: bytes
    sender: bytes
    kept: Kept | None
    arrived: float
    now: float
    token: bytes


def report_head(settings: NoticeSettings, facts: ReportFacts, about: Sequence[About], *, full: bool) -> bytes:
    """All of a report that comes before the copy of the message, or of its header unless `full`. RFC 3462, 3464."""
    actions = {one.action for one in about}
    asked = of_message(facts.kept.mail) if facts.kept is not None else OfMessage()
    wanted: Mapping[tuple[str, int], bytes] = facts.kept.recipients if facts.kept is not None else {}
    boundary = facts.token
    host = _printable(settings.bouncehost)
    message = [b"Reporting-MTA: dns; " + host + b"\n"]
    if asked.envid:
        message.append(b"Original-Envelope-Id: " + asked.envid + b"\n")
    message.append(b"Arrival-Date: " + rfc822_date(facts.arrived) + b"\n")
    status = b"".join((*message, *(b"\n" + _fields(one, wanted) for one in about)))
    copy = b"message/rfc822" if full else b"text/rfc822-headers"
    return b"".join(
        (
            b"Date: " + rfc822_date(facts.now) + b"\n",
            b"From: " + quote(settings.bouncefrom) + b"@" + settings.bouncehost + b"\n",
            b"To: " + _one_line(quote2(facts.recipient)) + b"\n",
            b"Subject: " + _subject(actions) + b"\n",
            b"Auto-Submitted: auto-replied\n",
            b"MIME-Version: 1.0\n",
            b'Content-Type: multipart/report; report-type=delivery-status;\n\tboundary="%b"\n' % boundary,
            b"Content-Transfer-Encoding: 8bit\n\n",
            b"This is a report in MIME's form (RFC 3464).\n",
            b"\n--%b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n" % boundary,
            _for_people(settings, about, double=not bounce_address(facts.sender)),
            b"\n--%b\nContent-Type: message/delivery-status\n\n" % boundary,
            status,
            b"\n--%b\nContent-Type: %b\nContent-Transfer-Encoding: 8bit\n\n" % (boundary, copy),
            b"Return-Path: <" + _one_line(quote2(bounce_address(facts.sender))) + b">\n",
        )
    )


def report_tail(token: bytes) -> bytes:
    """What comes behind the copy."""
    return b"\n--%b--\n" % token


def copies_all(kept: Kept | None, about: Sequence[About]) -> bool:
    """Whether the report has all of the message: only one of a failure, unless RET says otherwise (RFC 3461 §4.3)."""
    ret = of_message(kept.mail).ret if kept is not None else b""
    return ret != b"HDRS" and any(one.action == FAILED for one in about)


def _subject(actions: set[bytes]) -> bytes:
    if FAILED in actions:
        return b"failure notice"
    return b"delay notice" if DELAYED in actions else b"delivery notice"


def _for_people(settings: NoticeSettings, about: Sequence[About], *, double: bool) -> bytes:
    parts = [b"Hi. This is the qmail-send program at " + settings.bouncehost + b".\n"]
    if double:
        parts.append(b"A notice of failure could not be delivered: the bounce has bounced.\n")
    for action in _ORDER:
        those = [one for one in about if one.action == action]
        if those:
            parts.append(_INTRODUCTIONS[action])
            parts += [b"\n<%b>:\n%b\n" % (one.address, one.text.rstrip(b"\n")) for one in those]
            parts.append(b"\n")
    return b"".join(parts).decode("utf-8", "replace").encode()


def _fields(one: About, wanted: Mapping[tuple[str, int], bytes]) -> bytes:
    """The fields of one recipient (RFC 3464 §2.3)."""
    orcpt = of_recipient(wanted.get((one.channel, one.offset), b"")).orcpt
    lines = [b"Original-Recipient: " + orcpt.replace(b";", b"; ", 1)] if orcpt else []
    lines.append(b"Final-Recipient: rfc822; " + _printable(one.address))
    lines.append(b"Action: " + one.action)
    default, classes = _STATUSES.get(one.action, _DONE)
    found = [match[1] or match[2] for match in _STATUS.finditer(one.text)]
    fitting = [status for status in found if status[:1] in (classes[:1], classes[1:])]
    lines.append(b"Status: " + (fitting[-1] if fitting else default))
    peer = _PEER.match(one.text) if one.channel != "local" else None
    if peer is not None:
        lines.append(b"Remote-MTA: dns; [%b]" % peer[1])
    said = _SAID.search(one.text)
    if said is not None:
        lines.append(b"Diagnostic-Code: smtp; " + _printable(said[1])[:_DIAGNOSTIC])
    elif one.action in (FAILED, DELAYED) and one.text.strip():
        lines.append(b"Diagnostic-Code: X-qmail; " + _printable(one.text)[:_DIAGNOSTIC])
    return b"".join(line + b"\n" for line in lines)


def _printable(text: bytes) -> bytes:
    """One line of ASCII."""
    show: Callable[[re.Match[bytes]], bytes] = lambda match: b"?" if match[0].strip() else b" "  # noqa: E731
    return _HIDDEN.sub(show, text.strip())


def _one_line(address: bytes) -> bytes:
    """Some readers take a bare CR for the end of a line, too."""
    return address.replace(b"\n", b"_").replace(b"\r", b"_")

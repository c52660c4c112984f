"""The header fields that qmail-inject knows, and the values of those that it adds (spec/qmail.md §19.3, §19.4)."""

from __future__ import annotations

from time import gmtime

# What is done with a field. Fields that are only looked for (is there a Date?) have NOTED.
NOTED = 0
REWRITTEN = 1
SENDER = 2  # Return-Path: the envelope sender
RECIPIENTS = 3  # of the message as it was written first
PUBLIC_RECIPIENTS = 4  # To and Cc, which count for Mail-Followup-To
RESENT_RECIPIENTS = 5

_ACTIONS = {
    b"sender": REWRITTEN,
    b"from": REWRITTEN,
    b"reply-to": REWRITTEN,
    b"to": PUBLIC_RECIPIENTS,
    b"cc": PUBLIC_RECIPIENTS,
    b"bcc": RECIPIENTS,
    b"apparently-to": RECIPIENTS,
    b"return-receipt-to": REWRITTEN,
    b"errors-to": REWRITTEN,
    b"return-path": SENDER,
    b"resent-sender": REWRITTEN,
    b"resent-from": REWRITTEN,
    b"resent-reply-to": REWRITTEN,
    b"resent-to": RESENT_RECIPIENTS,
    b"resent-cc": RESENT_RECIPIENTS,
    b"resent-bcc": RESENT_RECIPIENTS,
    b"resent-date": NOTED,
    b"resent-message-id": NOTED,
    b"date": NOTED,
    b"message-id": NOTED,
    b"content-length": NOTED,
    b"mail-followup-to": NOTED,
}

#: Fields that no message is passed on with.
DROPPED = frozenset((b"bcc", b"resent-bcc", b"return-path", b"content-length"))

#: Fields whose presence makes a message one that is sent again (all of them begin so, but not all that begin so).
RESENT = frozenset(name for name in _ACTIONS if name.startswith(b"resent-"))

#: Fields in which an error is no reason to refuse the message (§19.3).
LENIENT = frozenset((RECIPIENTS, PUBLIC_RECIPIENTS, RESENT_RECIPIENTS))


def name_of(field: bytes) -> bytes:
    """The name of a field in lower case; blanks before the colon do not count."""
    return field[: field.index(b":")].rstrip(b" \t").lower()


def action(name: bytes) -> int:
    """What is done with the field of that name (in lower case)."""
    return _ACTIONS.get(name, NOTED)


def message_id(seconds: float, pid: int, idhost: bytes, number: int | None = None) -> bytes:
    """The value of a Message-ID: unique as long as the clock is not set back by the time that pids need to recur.

    A process that makes more than one numbers them (spec/related.md §9.2).
    """
    process = b"%d" % pid if number is None else b"%d.%d" % (number, pid)
    return b"<%04d%02d%02d%02d%02d%02d.%b.qmail@%b>" % (*gmtime(seconds)[:6], process, idhost)

"""Senders that carry the recipient (VERP), and those of mailing lists (spec/qmail.md §9.9, §13.6, §27)."""

from __future__ import annotations

_MARK = b"-@[]"


def expand(sender: bytes, recipient: bytes) -> bytes:
    """The sender to deliver with: ``pre@host-@[]`` becomes ``pre`` + ``box=domain`` of the recipient + ``@host``.

    A sender of another form is used as it is, and so is every sender if the recipient has no ``@`` (§9.9).
    """
    if not sender.endswith(_MARK):
        return sender
    prefix, at, host = sender[: -len(_MARK)].rpartition(b"@")
    box, recipient_at, domain = recipient.rpartition(b"@")
    if not at or not recipient_at:
        return sender
    return prefix + box + b"=" + domain + b"@" + host


def bounce_address(sender: bytes) -> bytes:
    """Where bounces of a message from the stored `sender` go: without the VERP mark (§9.9, §9.11)."""
    return sender.removesuffix(_MARK)


def owner_sender(local: bytes, domain: bytes, verp: bool) -> bytes:
    """The sender of what a list forwards: its owner, or with `verp` the pattern for one owner per recipient (§13.6)."""
    if verp:
        return local + b"-owner-@" + domain + _MARK
    return local + b"-owner@" + domain

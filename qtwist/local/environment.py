"""What a local delivery tells programs and mailboxes about the message: variables and added lines (spec §13.2-13.3).

All values come from the network and may hold anything but NUL. They are passed as variables, never put into a
command (spec/qmail.md §26.8).
"""

from __future__ import annotations

from collections.abc import Mapping

from qtwist.mail.dates import ctime_date
from qtwist.mail.quoting import quote2
from qtwist.mail.verp import owner_sender

_BLANKS_TO_DASHES = bytes.maketrans(b" \t\n", b"---")


def delivered_to(local: bytes, domain: bytes) -> bytes:
    """DTLINE, LF included."""
    return b"Delivered-To: " + (local + b"@" + domain).replace(b"\n", b"_") + b"\n"


def return_path(sender: bytes) -> bytes:
    """RPLINE, LF included."""
    return b"Return-Path: <" + quote2(sender).replace(b"\n", b"_") + b">\n"


def from_line(sender: bytes, now: float) -> bytes:
    """UFLINE, LF included: the line that starts a message in an mbox, `now` in seconds since the epoch."""
    return b"From " + (sender.translate(_BLANKS_TO_DASHES) or b"MAILER-DAEMON") + b" " + ctime_date(now) + b"\n"


def forwarding_sender(sender: bytes, local: bytes, domain: bytes, owner: bool, owner_default: bool) -> bytes:
    """NEWSENDER (§13.6); `owner` and `owner_default` say whether the -owner and -owner-default files exist."""
    if sender in {b"", b"#@[]"} or not owner:
        return sender
    return owner_sender(local, domain, verp=owner_default)


def variables(
    *,
    user: bytes,
    home: bytes,
    local: bytes,
    domain: bytes,
    ext: bytes,
    sender: bytes,
    new_sender: bytes,
    now: float,
    default: bytes | None,
) -> Mapping[bytes, bytes]:
    """The variables that a program of a .qmail file gets; DEFAULT only when `default` is not None (§13.3)."""
    ext2, ext3, ext4 = _after_dashes(ext)
    host2, host3, host4 = _before_dots(domain)
    result = {
        b"USER": user,
        b"HOME": home,
        b"LOCAL": local,
        b"HOST": domain,
        b"HOST2": host2,
        b"HOST3": host3,
        b"HOST4": host4,
        b"RECIPIENT": local + b"@" + domain,
        b"SENDER": sender,
        b"NEWSENDER": new_sender,
        b"EXT": ext,
        b"EXT2": ext2,
        b"EXT3": ext3,
        b"EXT4": ext4,
        b"DTLINE": delivered_to(local, domain),
        b"RPLINE": return_path(sender),
        b"UFLINE": from_line(sender, now),
    }
    if default is not None:
        result[b"DEFAULT"] = default
    return result


def _after_dashes(ext: bytes) -> tuple[bytes, bytes, bytes]:
    second = ext.partition(b"-")[2]
    third = second.partition(b"-")[2]
    return second, third, third.partition(b"-")[2]


def _before_dots(domain: bytes) -> tuple[bytes, bytes, bytes]:
    # Once no dot is left the whole remaining name stays: mx.a.b gives mx.a, mx, mx.
    second = domain.rpartition(b".")[0] if b"." in domain else domain
    third = second.rpartition(b".")[0] if b"." in second else second
    fourth = third.rpartition(b".")[0] if b"." in third else third
    return second, third, fourth

"""The Received lines that we add: the queue's (spec/qmail.md §6.2) and the servers' (§16.7)."""

from __future__ import annotations

from qtwist.mail.address import sanitise_received
from qtwist.mail.dates import rfc822_date


def queue_received(pid: int, how: bytes, seconds: float) -> bytes:
    """What the queue writes in front of a message, LF included.

    `pid` is the number that replies and logs show as ``qp``; `how` is ``Origin.how``, such as ``by uid 1000``.
    """
    return b"Received: (qmail %d invoked %s); %s\n" % (pid, how, rfc822_date(seconds))


def server_received(
    *,
    remote_host: bytes,
    remote_ip: bytes,
    local: bytes,
    protocol: bytes,
    seconds: float,
    helo: bytes | None = None,
    remote_info: bytes | None = None,
) -> bytes:
    """What a server writes in front of a message that came by `protocol` (``SMTP``, ``QMTP``, ``QMQP``); two lines.

    Unknown names are ``unknown``. `helo` is what the client called itself, None if it did not; it is left out when it
    equals `remote_host` in any letter case (§16.2). `remote_info` is what an IDENT server said, None if not asked.
    """
    safe = sanitise_received
    greeted = b"" if helo is None or helo.lower() == remote_host.lower() else b" (HELO " + safe(helo) + b")"
    info = b"" if remote_info is None else safe(remote_info) + b"@"
    return b"Received: from %s%s (%s%s)\n  by %s with %s; %s\n" % (
        safe(remote_host),
        greeted,
        info,
        safe(remote_ip),
        safe(local),
        protocol,
        rfc822_date(seconds),
    )

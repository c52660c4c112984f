"""What the sender of a message asks of TLS on its way (RFC 8689), read from its header. Pure.

That a message came with REQUIRETLS is kept where every queue and every program of qmail's leaves it alone: in our own
Received line, as the last word of a comment. Somebody who writes such a line himself asks for what he could have asked
for by SMTP.
"""

from __future__ import annotations

import re

MARK = b", REQUIRETLS"

_MARKED = re.compile(rb"^Received:(?:[^\n]|\n[ \t])*, REQUIRETLS\)", re.MULTILINE | re.IGNORECASE)
_WAIVED = re.compile(rb"^TLS-Required:[ \t]*no[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)


def demands_tls(head: bytes) -> bool:
    """Whether every host on the way must do TLS, know REQUIRETLS and pass it on (§4.2). `head` is the beginning of the
    message, LF line ends; of its header counts what is in there."""
    return MARK in head and _MARKED.search(_header(head)) is not None


def waives_tls(head: bytes) -> bool:
    """Whether the sender would rather have the message arrive than be safe (§5): ``TLS-Required: No``. That the message
    demands TLS counts more."""
    header = _header(head)
    return b"tls-required" in header.lower() and _WAIVED.search(header) is not None and not demands_tls(head)


def _header(head: bytes) -> bytes:
    header, _, _ = head.partition(b"\n\n")
    return header

"""Whether a message needs SMTPUTF8 on its way, and how its addresses stand there (RFC 6531, RFC 6532). Pure.

That it came with it is kept where every queue leaves it alone: in the protocol of our own Received line (RFC 6531
§4.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qtwist.mail.address import split
from qtwist.mail.domains import ascii_domain, is_utf8
from qtwist.mail.quoting import needs_quotes, quote2

_MARKED = re.compile(rb"^Received:(?:[^\n]|\n[ \t])*[ \t]with[ \t]+UTF8[A-Z]*SMTP", re.MULTILINE | re.IGNORECASE)
_AS_LETTERS = bytes(octet if octet < 128 else ord("a") for octet in range(256))


def needs_utf8(addresses: Iterable[bytes], head: bytes) -> bool:
    """Whether a message with these addresses in its envelope, and with the beginning `head` (LF line ends), can go only
    to servers that know SMTPUTF8.

    Domains need nothing, as they have a form in ASCII. A local part that is neither ASCII nor UTF-8 cannot be sent by
    SMTPUTF8 either: it goes as it ever did, and so does a header of whose letters nobody has said anything.
    """
    for address in addresses:
        local = split(address)[0]
        if not local.isascii() and is_utf8(local):
            return True
    if head.isascii():
        return False
    header, empty_line, _ = head.partition(b"\n\n")
    if not empty_line:  # it is longer than what is looked at, which may end amid a letter
        header = header.rpartition(b"\n")[0]
    return not header.isascii() and is_utf8(header) and _MARKED.search(header) is not None


def as_path(address: bytes, utf8: bool) -> bytes:
    """An address as it stands between angle brackets, its domain in ASCII; without a host it goes as it is
    (spec/qmail.md §15.2). With `utf8`, letters that are not ASCII are no reason for quotes (RFC 6531 §3.3); without,
    they are, as in qmail (§2.4)."""
    if address.isascii() or b"@" not in address:
        return quote2(address) if b"@" in address else address
    local, _, domain = address.rpartition(b"@")
    domain = domain if domain.isascii() else ascii_domain(domain)
    if utf8 and is_utf8(local) and not needs_quotes(local.translate(_AS_LETTERS)):
        return local + b"@" + domain
    return quote2(local + b"@" + domain)

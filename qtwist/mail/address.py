"""Mail addresses: quoting, splitting, parsing what MAIL and RCPT carry, showing (spec/qmail.md §2.4, §16.3)."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from qtwist.mail.domains import ascii_domain
from qtwist.mail.quoting import quote, quote2

__all__ = [
    "Address",
    "parse_path",
    "quote",
    "quote2",
    "replace_own_ip",
    "sanitise_log",
    "sanitise_received",
    "split",
    "unquote",
]

_IP_DOMAIN = re.compile(rb"\[(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\]")

_LOG = bytes(ord("/") if c == 10 else ord("_") if c < 33 or c > 126 or c == ord("%") else c for c in range(256))
_RECEIVED_SAFE = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.@%+/=:-[]"
_RECEIVED = bytes(c if c in _RECEIVED_SAFE else ord("?") for c in range(256))


@attrs.frozen
class Address:
    """An unquoted envelope address, as bytes. The last ``@`` decides what is the domain; without one it is empty."""

    raw: bytes

    @property
    def local(self) -> bytes:
        return split(self.raw)[0]

    @property
    def domain(self) -> bytes:
        """The domain as it was written."""
        return split(self.raw)[1]

    @property
    def domain_lower(self) -> bytes:
        """The domain in lower case and in ASCII: what lists of domains are compared with."""
        return ascii_domain(split(self.raw)[1])

    def __bytes__(self) -> bytes:
        return self.raw


def split(address: bytes) -> tuple[bytes, bytes]:
    """Local part and domain, parted at the last ``@``; without one the domain is empty."""
    at = address.rfind(b"@")
    return (address, b"") if at < 0 else (address[:at], address[at + 1 :])


def unquote(text: bytes) -> bytes:
    """`text` without quotes and backslashes: the inverse of :func:`quote` and :func:`quote2`."""
    return _take(text, 0, None)[0]


def parse_path(argument: bytes) -> tuple[bytes, bytes]:
    """The unquoted address in the argument of MAIL or RCPT, and what follows its terminator (§16.3).

    Never fails: qmail takes nearly everything. Brackets may be missing, a source route is skipped, without ``<`` and
    ``:`` the address is empty. A NUL ends the argument. The rest is the ESMTP parameters, blanks around them removed.
    The length of the address is not checked here.
    """
    argument = argument.partition(b"\0")[0]
    start = argument.find(b"<") + 1
    terminator = b">"
    if not start:
        terminator = b" "
        colon = argument.find(b":")
        if colon < 0:
            return b"", b""
        start = colon + 1
        while argument.startswith(b" ", start):
            start += 1
    if argument.startswith(b"@", start):
        colon = argument.find(b":", start)
        if colon < 0:
            return b"", b""
        start = colon + 1
    address, end = _take(argument, start, terminator)
    return address, argument[end:].strip(b" ")


_SPECIAL = {end: re.compile(rb'["\\' + (end or b"") + rb"]") for end in (None, b">", b" ")}
_IN_QUOTES = re.compile(rb'["\\]')


def _take(text: bytes, start: int, terminator: bytes | None) -> tuple[bytes, int]:
    """Copy from `start` to the terminator outside quotes, or the end; returns the copy and the place after it."""
    parts = []
    quoted = False
    while found := (_IN_QUOTES if quoted else _SPECIAL[terminator]).search(text, start):
        at = found.start()
        parts.append(text[start:at])
        start = at + 1
        if found[0] == b"\\":
            parts.append(text[start : start + 1])
            start += 1
        elif found[0] == b'"':
            quoted = not quoted
        else:
            return b"".join(parts), start
    parts.append(text[start:])
    return b"".join(parts), len(text)


def replace_own_ip(address: bytes, localiphost: bytes, is_own: Callable[[str], bool]) -> bytes:
    """`address` with its domain replaced by `localiphost` if that is ``[d.d.d.d]``, an IPv4 address of ours (§16.3).

    `is_own` is asked with the dotted address, leading zeros removed.
    """
    at = address.rfind(b"@") + 1
    literal = _IP_DOMAIN.fullmatch(address, at) if at else None
    if literal is None:
        return address
    numbers = [int(digits) for digits in literal.groups()]
    if max(numbers) > 255 or not is_own("{}.{}.{}.{}".format(*numbers)):
        return address
    return address[:at] + localiphost


def sanitise_log(text: bytes) -> bytes:
    """`text` as the log shows addresses and reports: LF becomes ``/``, other odd bytes ``_`` (§9.7)."""
    return text.translate(_LOG)


def sanitise_received(text: bytes) -> bytes:
    """`text` as a Received line shows what others have said: odd bytes become ``?`` (§16.7)."""
    return text.translate(_RECEIVED)

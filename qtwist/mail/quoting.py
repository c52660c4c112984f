"""Local parts in and out of quotes (spec/qmail.md §2.4). Apart from address.py for commands that must start fast."""

from __future__ import annotations

# What needs no quotes, as long as dots are neither at an end nor next to each other.
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-./=?^_`{|}~"
_ESCAPED = b'\r\n"\\'


def needs_quotes(local: bytes) -> bool:
    """Must this local part stand in quotes?"""
    return (
        not local or bool(local.translate(None, _PLAIN)) or local[0] == 46 or local[-1] == 46 or local.find(b"..") >= 0
    )


def escape(text: bytes, escaped: bytes) -> bytes:
    r"""`text` with a ``\`` before every octet that is in `escaped`."""
    if len(text.translate(None, escaped)) == len(text):
        return text
    return b"".join([b"\\%c" % octet if octet in escaped else b"%c" % octet for octet in text])


def quote(local: bytes) -> bytes:
    """A local part as RFC 822 wants it, in quotes only if it needs them (§2.4)."""
    return b'"' + escape(local, _ESCAPED) + b'"' if needs_quotes(local) else local


def quote2(address: bytes) -> bytes:
    """An address with its local part quoted where needed, the domain untouched; an empty one stays empty (§2.4)."""
    if not address:
        return b""
    at = address.rfind(b"@")
    return quote(address) if at < 0 else quote(address[:at]) + address[at:]

"""Domains in letters of all the world: their form in ASCII, which the DNS knows (RFC 5890, UTS #46). Pure."""

from __future__ import annotations

_DOTS = dict.fromkeys((0x3002, 0xFF0E, 0xFF61), ".")  # RFC 3490 §3.1

#: The most octets of a domain that is looked at: 253 characters of an A-label stand for less than this.
_LONGEST = 1024


def ascii_domain(domain: bytes) -> bytes:
    """`domain` in lower case, with A-labels (``xn--…``) for U-labels: what two spellings of one domain have in common.

    A leading dot and the like stay. What is no UTF-8, or could be no domain, comes back as it was, in lower case: so
    the result has no ASCII that is not in `domain`, but for letters, digits, hyphens and dots.
    """
    if domain.isascii() or len(domain) > _LONGEST:
        return domain.lower()
    from qtwist.mail.labels import ascii_label

    try:
        return b".".join(map(ascii_label, domain.decode("utf-8").translate(_DOTS).split(".")))
    except UnicodeError:  # idna's errors are of this kind, too
        return domain.lower()


def ascii_key(address: bytes) -> bytes:
    """The same for what stands in lists: a domain, the end of one, or an address, whose local part is put in lower
    case as far as it is ASCII."""
    if address.isascii():
        return address.lower()
    local, at, domain = address.rpartition(b"@")
    return local.lower() + at + ascii_domain(domain)


def ascii_address(address: bytes) -> bytes:
    """The same for an address, a login or ``@domain``: what has no ``@`` has no domain, and is put in lower case."""
    return ascii_key(address) if b"@" in address else address.lower()


def utf8_domain(domain: bytes) -> bytes:
    """`domain` in lower case, with U-labels for A-labels where they are right."""
    domain = ascii_domain(domain)
    if b"xn--" not in domain:
        return domain
    from qtwist.mail.labels import utf8_label

    return b".".join(map(utf8_label, domain.split(b".")))


def is_utf8(text: bytes) -> bool:
    """Whether `text` is UTF-8; all ASCII is."""
    if text.isascii():
        return True
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True

"""Domains in letters of all the world: their form in ASCII, which the DNS knows (RFC 5890, UTS #46). Pure."""

from __future__ import annotations


def ascii_domain(domain: bytes) -> bytes:
    """`domain` in lower case, with A-labels (``xn--…``) for U-labels: what two spellings of one domain have in common.

    A leading dot and the like stay. What is no UTF-8, or could be no domain, comes back as it was, in lower case.
    """
    if domain.isascii():
        return domain.lower()
    import idna  # as light as it is, hardly any mail needs it

    try:
        text = idna.uts46_remap(domain.decode("utf-8"), std3_rules=False, transitional=False)
        return b".".join(label.encode("ascii") if label.isascii() else idna.alabel(label) for label in text.split("."))
    except (UnicodeError, idna.IDNAError):
        return domain.lower()


def ascii_key(address: bytes) -> bytes:
    """The same for what stands in lists: a domain, the end of one, or an address, whose local part is put in lower
    case as far as it is ASCII."""
    if address.isascii():
        return address.lower()
    local, at, domain = address.rpartition(b"@")
    return local.lower() + at + ascii_domain(domain)


def is_utf8(text: bytes) -> bool:
    """Whether `text` is UTF-8; all ASCII is."""
    if text.isascii():
        return True
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True

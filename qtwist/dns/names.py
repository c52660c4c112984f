"""Domain names as questions: which can be asked at all, and under which name an address is looked up in reverse.

Names are bytes of labels joined by dots (RFC 1035 §3.1); no character in a label is special, and search domains are
never added (spec/related.md §12.5).
"""

from __future__ import annotations

import ipaddress

from qtwist.mail.domains import ascii_domain

MAX_LABEL = 63
MAX_NAME = 253  # without a trailing dot; 255 octets on the wire (RFC 1035 §2.3.4)


def canonical(name: bytes) -> bytes | None:
    """`name` in lower case, in ASCII and without a trailing dot, or None when it cannot stand in the DNS.

    None is for empty names, empty labels, labels over 63 and names over 253 octets.
    """
    name = ascii_domain(name.removesuffix(b"."))
    if not name or len(name) > MAX_NAME:
        return None
    if not all(1 <= len(label) <= MAX_LABEL for label in name.split(b".")):
        return None
    return name


def reverse(address: str) -> bytes:
    """The name that holds the PTR records of an IPv4 or IPv6 address (RFC 1035 §3.5, RFC 3596 §2.5).

    An IPv4-mapped IPv6 address counts as IPv4; a zone index (``%eth0``) is left out. ValueError for anything else.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.reverse_pointer.encode("ascii")

"""The header by which a proxy tells whom it speaks for: HAProxy's PROXY protocol, versions 1 and 2, without I/O.

Source: https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt, cited as PP.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

import attrs

MAX_V1 = 107  # octets with the CRLF (PP 2.1)
MAX_V2 = 16 + 4096  # octets; what is allowed is 16 + 65535, what is sent is some hundreds

_V1 = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # octets of version 2 before the addresses

_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_STREAMS = {0x11: (4, IPv4Address), 0x21: (16, IPv6Address)}  # PP 2.2: AF_INET, AF_INET6; each with SOCK_STREAM
_UNNAMED = (0x00, 0x31)  # AF_UNSPEC; AF_UNIX, which says nothing of use


class ProxyError(ValueError):
    """The header is none, in words for the log."""


@attrs.frozen
class Proxied:
    """Who has connected to the proxy, and to which of its addresses."""

    source: str
    source_port: int
    destination: str
    destination_port: int


def parse(data: bytes) -> tuple[Proxied | None, int] | None:
    """What `data`, all that has come so far, begins with: for whom the proxy speaks, and how long the header is.

    Instead of a Proxied there is None where the proxy speaks for itself (LOCAL, for its health checks) or does not
    know (UNKNOWN). None for both: the rest of the header is still to come. ProxyError as soon as it cannot be one.
    """
    if data.startswith(_SIGNATURE):
        return _version_2(data)
    if data.startswith(_V1):
        return _version_1(data)
    if _SIGNATURE.startswith(data) or _V1.startswith(data):
        return None
    raise ProxyError("no PROXY header")


def _version_1(data: bytes) -> tuple[Proxied | None, int] | None:
    """PP 2.1: a line of words, each separated by one space."""
    end = data.find(b"\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise ProxyError(f"a header of version 1 is longer than {MAX_V1} octets")
        return None
    if data[end - 1 : end] != b"\r":
        raise ProxyError("a header of version 1 ends in CRLF")
    try:
        words = data[: end - 1].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProxyError("a header of version 1 is ASCII") from None
    if words[1] == "UNKNOWN":
        return None, end + 1
    kind = {"TCP4": IPv4Address, "TCP6": IPv6Address}.get(words[1])
    if kind is None or len(words) != 6:
        raise ProxyError("a header of version 1 is PROXY, TCP4 or TCP6, two addresses, two ports; or PROXY UNKNOWN")
    try:
        if b"%" in data[:end]:
            raise ValueError("a zone is known to one host only")
        source, destination = str(kind(words[2])), str(kind(words[3]))
    except ValueError:
        raise ProxyError(f"two addresses of {words[1]} are needed") from None
    ports = [int(word) for word in words[4:] if _PORT.fullmatch(word)]
    if len(ports) != 2 or max(ports) > 65535:
        raise ProxyError("two ports from 0 to 65535 are needed")
    return Proxied(source, ports[0], destination, ports[1]), end + 1


def _version_2(data: bytes) -> tuple[Proxied | None, int] | None:
    """PP 2.2: sixteen fixed octets, addresses, and more (TLV) that is looked at only so far that it is well-formed."""
    if len(data) < _FIXED:
        return None
    version, command = data[12] >> 4, data[12] & 15
    if version != 2 or command > 1:
        raise ProxyError(f"version {version} with command {command} is not known")
    end = _FIXED + int.from_bytes(data[14:16], "big")
    if end > MAX_V2:
        raise ProxyError(f"a header of {end} octets is too long")
    if len(data) < end:
        return None
    if command == 0:
        return None, end
    family, more = data[13], data[_FIXED:end]
    if family in _UNNAMED:
        return None, end
    if family not in _STREAMS:
        raise ProxyError(f"the family 0x{family:02x} is not one of TCP")
    size, kind = _STREAMS[family]
    named = 2 * size + 4
    if len(more) < named:
        raise ProxyError("the addresses are cut off")
    _check_tlv(more[named:])
    ports = more[2 * size : named]
    return (
        Proxied(
            str(kind(more[:size])),
            int.from_bytes(ports[:2], "big"),
            str(kind(more[size : 2 * size])),
            int.from_bytes(ports[2:], "big"),
        ),
        end,
    )


def _check_tlv(data: bytes) -> None:
    """PP 2.2: a type, a length of two octets, a value."""
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        if len(data) < at + 3 + length:
            raise ProxyError("what follows the addresses is cut off")
        at += 3 + length

"""XCLIENT, by which a trusted front end tells whom it speaks for (Postfix's XCLIENT_README, cited as XR)."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import attrs

from qtwist.wire.smtp_reply import Reply

#: What may be told; the keyword of EHLO lists it.
ATTRIBUTES = (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"DESTADDR", b"DESTPORT")

_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+")
_CODED = re.compile(rb"\+([0-9A-F]{2})")
_NAME = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9])?\.?")
_PORT = re.compile(rb"[0-9]{1,5}")
_PRINTABLE = re.compile(rb"[ -~]{1,255}")
_NOT_KNOWN = (b"[UNAVAILABLE]", b"[TEMPUNAVAIL]")


@attrs.frozen
class XClient:
    """A question: is the client another one? `attributes` has values by keywords in capitals, decoded and each of its
    kind: addresses as they are usually written, ports as numbers, PROTO in capitals; None for what is not known.

    Yes (:meth:`SMTPServer.accept`) makes the machine forget all, and Connect is asked for the new client; its answer is
    the reply to XCLIENT (XR: "Reply: 220").
    """

    attributes: dict[bytes, bytes | None]


def parse_xclient(argument: bytes) -> dict[bytes, bytes | None]:
    """The attributes of the command. ValueError for what is none, given twice, or not of its kind."""
    found: dict[bytes, bytes | None] = {}
    for word in argument.split():
        keyword, _, coded = word.partition(b"=")
        keyword = keyword.upper()
        if keyword not in ATTRIBUTES or keyword in found or not _XTEXT.fullmatch(coded):
            raise ValueError("an attribute that is not known, or twice, or not xtext")
        value = _CODED.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), coded)
        if value.upper() in _NOT_KNOWN:
            if keyword in (b"ADDR", b"PROTO"):
                raise ValueError("an attribute that has to be known")
            found[keyword] = None
        else:
            found[keyword] = _value(keyword, value)
    if not found:
        raise ValueError("no attribute")
    return found


def _value(keyword: bytes, value: bytes) -> bytes:
    if keyword in (b"ADDR", b"DESTADDR"):
        if value[:5].upper() == b"IPV6:":
            address = IPv6Address(value[5:].decode("ascii"))
            if address.scope_id is not None:
                raise ValueError("a zone")
            return str(address).encode("ascii")
        return str(IPv4Address(value.decode("ascii"))).encode("ascii")
    if keyword in (b"PORT", b"DESTPORT"):
        if not _PORT.fullmatch(value) or int(value) > 65535:
            raise ValueError("a port")
        return b"%d" % int(value)
    if keyword == b"PROTO":
        value = value.upper()
        if value not in (b"SMTP", b"ESMTP"):
            raise ValueError("a protocol")
        return value
    if not (_NAME if keyword == b"NAME" else _PRINTABLE).fullmatch(value):
        raise ValueError("a name")
    return value


class Fronted:
    """What the engine needs to take XCLIENT. It is told and taken where `offer_xclient` was set by the shell, which
    knows whether the client is trusted."""

    offer_xclient = False

    _has_sender: bool
    _error: Callable[[int, bytes], None]
    _send: Callable[[Reply], None]

    def _ask(self, question: Any) -> Any:
        raise NotImplementedError

    def _xclient(self, argument: bytes) -> XClient | None:
        if not self.offer_xclient:
            self._error(502, b"unimplemented (#5.5.1)")
        elif self._has_sender:
            self._error(503, b"not in the middle of a transaction (#5.5.1)")
        else:
            try:
                asked: XClient = self._ask(XClient(parse_xclient(argument)))
            except ValueError:
                self._error(501, b"an attribute of XCLIENT is wrong (#5.5.4)")
            else:
                return asked
        return None

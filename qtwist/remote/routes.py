"""control/smtproutes and qmtproutes: which relay takes the mail for a host, if any (spec/qmail.md §2.3, §15.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from qtwist.mail.constmap import suffixes

SMTP_PORT = 25
QMTP_PORT = 209
SMTPS_PORT = 465
"""Where TLS begins before the first word, as qmail's TLS patches have it (spec/related.md §14.3)."""

_PORT = re.compile(rb"[0-9]{1,5}")


class RouteError(ValueError):
    """A relay that cannot be understood."""


@attrs.frozen
class Relay:
    """Where mail goes instead of to the host's mail exchangers.

    `host` is a name or an address, without brackets; empty means that the DNS decides as usual, on `port`.
    """

    host: bytes
    port: int = SMTP_PORT


def parse_relay(value: bytes, port: int = SMTP_PORT) -> Relay:
    """What stands behind the first colon of a line: ``relay``, ``relay:port``, ``[address]:port``, ``:port``, nothing.

    `port` is that of a relay without one. A semicolon may stand before the port, as s/qmail writes it.

    RouteError for a port that is none, and for a bracket that is not closed.
    """
    value = value.replace(b";", b":", 1)
    if value.startswith(b"["):
        host, bracket, rest = value[1:].partition(b"]")
        if not bracket or (rest and not rest.startswith(b":")):
            raise RouteError("a bracket is not closed")
        # RFC 5321 writes IPv6 addresses as [IPv6:...]; between brackets the prefix says nothing new.
        if host[:5].lower() == b"ipv6:":
            host = host[5:]
        given = rest[1:]
    else:
        host, _, given = value.partition(b":")
    if not given:
        return Relay(host, port)
    if not _PORT.fullmatch(given) or not 0 < int(given) < 65536:
        raise RouteError("not a port number")
    return Relay(host, int(given))


def find_relay(routes: Mapping[bytes, bytes], host: bytes, port: int = SMTP_PORT) -> Relay:
    """The relay for `host`: its own line, else that of the longest suffix, else the one for everything, else none.

    The first line found counts, even if its relay is empty: that is how a host is taken out of a wider route.
    """
    for key in suffixes(host, catch_all=True):
        value = routes.get(key)
        if value is not None:
            return parse_relay(value, port)
    return Relay(b"", port)


@attrs.frozen
class Route:
    """Where mail goes: the relay for SMTP, and the port where its hosts are asked to speak QMTP first, if any."""

    relay: Relay
    qmtp_port: int | None = None


def find_route(smtp: Mapping[bytes, bytes], qmtp: Mapping[bytes, bytes], host: bytes) -> Route:
    """The route for `host` by control/smtproutes and control/qmtproutes, which counts first (spec/related.md §13.1).

    RouteError, with the name of the file in front of its text.
    """
    relay = _named("smtproutes", smtp, host, SMTP_PORT)
    other = _named("qmtproutes", qmtp, host, QMTP_PORT)
    if not other.host:
        return Route(relay)
    # The same relay may stand in smtproutes with a port for SMTP.
    return Route(relay if relay.host == other.host else Relay(other.host), other.port)


def _named(file: str, routes: Mapping[bytes, bytes], host: bytes, port: int) -> Relay:
    try:
        return find_relay(routes, host, port)
    except RouteError as error:
        raise RouteError(file, *error.args) from error

"""control/smtproutes, qmtproutes, authsenders: which relay takes the mail for a host or of a sender, if any, and how we
log in there (spec/qmail.md §2.3, §15.2, spec/related.md §14.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from qtwist.mail.constmap import suffixes
from qtwist.mail.domains import ascii_domain

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
    if not host.isascii():
        host = ascii_domain(host)
    if not given:
        return Relay(host, port)
    if not _PORT.fullmatch(given) or not 0 < int(given) < 65536:
        raise RouteError("not a port number")
    return Relay(host, int(given))


@attrs.frozen
class Credentials:
    """Name and password for a relay."""

    username: bytes
    password: bytes = attrs.field(repr=False)


@attrs.frozen
class Route:
    """Where mail goes: the relay for SMTP, the port where its hosts are asked to speak QMTP first, if any, and how we
    log in there, if we do. `file` is the control file that says so."""

    relay: Relay
    qmtp_port: int | None = None
    credentials: Credentials | None = None
    file: str = "smtproutes"


def split_credentials(value: bytes) -> tuple[bytes, Credentials | None]:
    """The relay, and what stands behind it as ``|user|password``. RouteError for a half of it."""
    relay, bar, rest = value.partition(b"|")
    if not bar:
        return relay, None
    user, bar, password = rest.partition(b"|")
    if not (relay and user and password):
        raise RouteError("a relay, a user and a password are needed")
    return relay, Credentials(user, password)


def find_route(
    smtp: Mapping[bytes, bytes],
    qmtp: Mapping[bytes, bytes],
    host: bytes,
    senders: Mapping[bytes, bytes] | None = None,
    sender: bytes = b"",
) -> Route:
    """The route for `host` by control/smtproutes and control/qmtproutes, which counts first (spec/related.md §13.1).
    Before both of them count `senders`, what control/authsenders says of `sender`.

    RouteError, with the name of the file in front of its text.
    """
    try:
        value = None if senders is None else _of_sender(senders, sender)
        if value is not None:
            relay_text, credentials = split_credentials(value)
            return Route(parse_relay(relay_text), credentials=credentials, file="authsenders")
    except RouteError as error:
        raise RouteError("authsenders", *error.args) from error
    relay, credentials = _named("smtproutes", smtp, host, SMTP_PORT)
    other, _ = _named("qmtproutes", qmtp, host, QMTP_PORT)
    if not other.host:
        return Route(relay, None, credentials)
    # The same relay may stand in smtproutes with a port for SMTP.
    same = relay.host == other.host
    return Route(relay if same else Relay(other.host), other.port, credentials if same else None, "qmtproutes")


def _of_sender(senders: Mapping[bytes, bytes], sender: bytes) -> bytes | None:
    """The line for an address, for its domain (``!@`` for the empty one, as s/qmail has it), or for all."""
    lowered = sender.lower()
    at = lowered.rfind(b"@")
    keys = (lowered or b"!@", lowered[at:] if at >= 0 else b"", b"")
    return next((senders[key] for key in keys if key in senders), None)


def _named(file: str, routes: Mapping[bytes, bytes], host: bytes, port: int) -> tuple[Relay, Credentials | None]:
    """The relay for `host`: its own line, else that of the longest suffix, else the one for everything, else none.

    The first line found counts, even if its relay is empty: that is how a host is taken out of a wider route.
    """
    try:
        for key in suffixes(host, catch_all=True):
            value = routes.get(key)
            if value is not None:
                relay, credentials = split_credentials(value)
                return parse_relay(relay, port), credentials
        return Relay(b"", port), None
    except RouteError as error:
        raise RouteError(file, *error.args) from error

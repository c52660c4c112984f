"""TLS on the way out: what is asked of a host, and whether its certificate is good (spec/related.md §14.3).

The files are those of qmail's TLS patches: ``tlshosts/HOST.pem`` says that HOST must show a certificate for its name,
from an authority in the file; ``notlshosts/HOST`` that TLS is never tried with it; ``tlshosts/exhaustivelist`` that it
is tried with no host but those of tlshosts/. ``clientcert.pem`` is our own certificate, ``tlsclientciphers`` the
ciphers.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

import attrs
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from qtwist.control import ControlError
from qtwist.control_reading import unreadable
from qtwist.mail.domains import ascii_domain, utf8_domain
from qtwist.tls import dane
from qtwist.tls.certificates import file_stamp
from qtwist.tls.contexts import CLIENT_CIPHERS, CheckedConnection, client_context
from qtwist.tls.dane import TLSA

if TYPE_CHECKING:
    from qtwist.control import Control

_log = Logger(namespace="qtwist.tls")

_SAFE = re.compile(r"[a-z0-9_:-]{1,63}(\.[a-z0-9_-]{1,63}){0,30}")


@attrs.frozen
class Demand:
    """What is asked of TLS with one host.

    `name` is what its certificate should be for, a host name or an address. With `verified`, nothing is sent unless the
    certificate is good, by the system's authorities or by those in the file `authorities`, or with `tlsa` by those
    records and nothing else; `because` says who wants that. DANE-TA records may also vouch for the name `next_hop`.
    `required` asks for TLS with whatever certificate.
    """

    name: str
    wanted: bool = True
    verified: bool = False
    authorities: str | None = None
    because: str = attrs.field(default="", eq=False)
    required: bool = False
    tlsa: tuple[TLSA, ...] = ()
    next_hop: str = ""

    @property
    def mandatory(self) -> bool:
        """Whether nothing may be sent in the clear."""
        return self.verified or self.required


NO_TLS = Demand("", wanted=False)


@attrs.frozen
class Secured:
    """An encrypted connection to a host. `problem` is why its certificate is not good for its name, None if it is;
    `by_dane` says that TLSA records were what counted."""

    version: str
    cipher: str
    problem: str | None
    by_dane: bool = False


class ClientTLS:
    """What the control files say of TLS with other hosts, as they are now."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._contexts: dict[str | None, tuple[object, SSL.Context]] = {}

    def demand(self, host: str) -> Demand:
        """What is asked of `host`, a name or an address."""
        name = ascii_domain(host.encode("utf-8", "replace")).decode("utf-8").rstrip(".")
        if not _SAFE.fullmatch(name):
            return Demand(name)
        directory = self._control.directory
        spellings = dict.fromkeys((name, os.fsdecode(utf8_domain(name.encode("ascii")))))
        if any(os.path.exists(f"{directory}/notlshosts/{one}") for one in spellings):
            return NO_TLS
        for one in spellings:
            path = f"{directory}/tlshosts/{one}.pem"
            if not os.path.lexists(path):
                continue
            because = f"control/tlshosts/{one}.pem"
            try:
                authorities = path if os.stat(path).st_size else None
            except OSError as error:
                raise unreadable(path, error) from error
            return Demand(name, verified=True, authorities=authorities, because=because)
        if os.path.exists(f"{directory}/tlshosts/exhaustivelist"):
            return NO_TLS
        return Demand(name)

    def creator(self, demand: Demand) -> ClientCreator:
        """What startTLS needs. ControlError when a file is wrong, and there was no other before."""
        return ClientCreator(self._context(demand.authorities), demand.name)

    def _context(self, authorities: str | None) -> SSL.Context:
        control = self._control
        identity, ciphers = control.path("clientcert.pem"), control.path("tlsclientciphers")
        known = self._contexts.get(authorities)
        try:
            stamp = tuple(file_stamp(path) for path in (identity, ciphers, authorities) if path is not None)
        except OSError as error:
            raise unreadable(error.filename, error) from error
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            context = client_context(
                authorities,
                control.line("tlsclientciphers") or CLIENT_CIPHERS,
                ciphers,
                identity if stamp[0] is not None else None,
            )
        except ControlError as error:
            if known is None:
                raise
            _log.error("{error}; what it said before counts", error=error)
            context = known[1]
        self._contexts[authorities] = stamp, context
        return context


@implementer(IOpenSSLClientConnectionCreator)
class ClientCreator:
    """Makes the OpenSSL side of one connection to the host called `name`."""

    def __init__(self, context: SSL.Context, name: str) -> None:
        self._context = context
        self._name = name

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        connection = CheckedConnection(self._context)
        if self._name and not _is_ip(self._name):
            connection.set_tlsext_host_name(self._name.encode("ascii", "replace"))
        return connection


def secured(connection: SSL.Connection, demand: Demand) -> Secured:
    """What is known of a connection once its handshake is over (RFC 6125 §6, RFC 7672 §3)."""
    assert isinstance(connection, CheckedConnection)
    if demand.tlsa:
        problem = _dane_problem(connection, demand)
    else:
        problem = connection.problem or _name_problem(connection, demand.name)
    return Secured(
        version=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "unknown",
        problem=problem,
        by_dane=bool(demand.tlsa),
    )


def _dane_problem(connection: SSL.Connection, demand: Demand) -> str | None:
    def name_problem() -> str | None:
        # RFC 7672 §3.2.2: the host that the records are of, or the domain that the mail is for.
        why = _name_problem(connection, demand.name)
        if why is not None and demand.next_hop and _name_problem(connection, demand.next_hop) is None:
            return None
        return why

    try:
        chain = connection.get_peer_cert_chain(as_cryptography=True) or []
        return dane.problem(chain, demand.tlsa, name_problem)
    except ValueError:
        return "the certificate cannot be read"


def _name_problem(connection: SSL.Connection, name: str) -> str | None:
    try:
        if _is_ip(name):
            verify_ip_address(connection, name)
        else:
            verify_hostname(connection, name)
    except (VerificationError, CertificateError, ValueError):  # another name, none at all, or this one is none
        return f"the certificate is not for {name}"
    return None


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True

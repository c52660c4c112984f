"""What is known of one connection: the value that every hook of a policy gets first."""

from __future__ import annotations

import os
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

import attrs

from qtwist.mail.address import Address, sanitise_received
from qtwist.mail.asked import Asked
from qtwist.mail.envelope import Envelope
from qtwist.mail.received import server_received
from qtwist.mail.require_tls import MARK
from qtwist.tls.info import TLSInfo


def plain_ip(host: str) -> str:
    """`host` with an IPv4 address that is mapped into IPv6 (``::ffff:192.0.2.1``) as the IPv4 address that it is."""
    if ":" in host:
        try:
            address = ip_address(host)
        except ValueError:
            return host
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            return str(address.ipv4_mapped)
    return host


@lru_cache(maxsize=500)
def is_local(ip: str) -> bool:
    """Whether a peer is on this host: a loopback address, or none, as of a Unix socket."""
    try:
        return not ip or ip_address(ip.partition("%")[0]).is_loopback
    except ValueError:
        return False


@attrs.define
class Session:
    """One connection, and the transaction that runs on it.

    `environment` holds what qmail's programs find in theirs (spec/qmail.md §4): TCPREMOTEIP, TCPREMOTEHOST,
    TCPREMOTEINFO, TCPLOCALIP, TCPLOCALHOST say who talks to whom, RELAYCLIENT lets the client relay, DATABYTES
    overrides control/databytes. Policies set them in their `connect` hook. The addresses are empty strings where the
    transport has none. `tls` is None as long as the connection is not encrypted.
    """

    id: str  # one per connection, in every log event
    remote_ip: str = ""
    remote_port: int = 0
    local_ip: str = ""
    local_port: int = 0
    environment: dict[bytes, bytes] = attrs.field(factory=dict)
    notes: dict[object, object] = attrs.field(factory=dict)  # for policies; a policy may use itself as key
    helo: bytes | None = None
    extended: bool = False  # the client said EHLO
    tls: TLSInfo | None = None
    user: bytes | None = None  # who has logged in by AUTH, by the name that the credential store knows
    mechanism: str = ""  # of that AUTH
    account: Any = None  # the IAccount of who has logged in
    sender: Address | None = None
    authors: list[bytes] = attrs.field(factory=list)  # of From; for the `message` hook, in submission
    relay_certificate: bytes = b""  # the address in the client's certificate that gave it RELAYCLIENT
    require_tls: bool = False  # MAIL came with REQUIRETLS (RFC 8689)
    utf8: bool = False  # MAIL came with SMTPUTF8 (RFC 6531)
    asked_mail: bytes = b""  # what MAIL came with of RFC 3461, as qtwist.mail.asked keeps it
    asked: dict[bytes, bytes] = attrs.field(factory=dict)  # the same of RCPT, by recipient
    declared_size: int = 0  # octets, from SIZE= of MAIL; 0 when not given
    recipients: list[Address] = attrs.field(factory=list)
    heard: int = 0  # octets that the client has sent

    @classmethod
    def of(cls, transport: Any) -> Session:
        """The session of a new connection, its environment as tcpserver would set it (spec/qmail.md §4)."""
        peer, host = transport.getPeer(), transport.getHost()
        session = cls(
            id=os.urandom(8).hex(),
            remote_ip=plain_ip(getattr(peer, "host", "")),
            remote_port=getattr(peer, "port", 0),
            local_ip=plain_ip(getattr(host, "host", "")),
            local_port=getattr(host, "port", 0),
        )
        if session.remote_ip:
            session.environment[b"TCPREMOTEIP"] = session.remote_ip.encode("ascii")
        if session.local_ip:
            session.environment[b"TCPLOCALIP"] = session.local_ip.encode("ascii")
        return session

    @property
    def may_relay(self) -> bool:
        return b"RELAYCLIENT" in self.environment

    def received(self, protocol: bytes, seconds: float) -> bytes:
        """The Received line for a message that comes now (§16.7); `seconds` since the epoch. SMTP over TLS, and from
        somebody who has logged in, is ESMTPS, ESMTPA or ESMTPSA (RFC 3848), with SMTPUTF8 UTF8SMTP and so on (RFC
        6531 §4.3); a comment says how it was encrypted and whose certificate let the client relay."""
        if protocol == b"SMTP" and (self.utf8 or self.tls is not None or self.user is not None):
            protocol = b"UTF8SMTP" if self.utf8 else b"ESMTP"
            protocol += b"S" * (self.tls is not None) + b"A" * (self.user is not None)
        if self.tls is not None:
            protocol += self._encrypted(self.tls)
        known = self.environment
        return server_received(
            remote_host=known.get(b"TCPREMOTEHOST", b"unknown"),
            remote_ip=known.get(b"TCPREMOTEIP", b"unknown"),
            local=known.get(b"TCPLOCALHOST") or known.get(b"TCPLOCALIP", b"unknown"),
            protocol=protocol,
            seconds=seconds,
            helo=self.helo,
            remote_info=known.get(b"TCPREMOTEINFO"),
        )

    def _encrypted(self, tls: TLSInfo) -> bytes:
        certificate = sanitise_received(self.relay_certificate)
        mark = MARK if self.require_tls else b""
        shown = b" (cert %s)" % certificate if certificate else b""
        return b" (%s encrypted%s)%s" % (tls.cipher.encode(), mark, shown)

    def encrypted(self, tls: TLSInfo) -> None:
        """From here on the connection is encrypted: what the client said of itself before is void (RFC 3207 §4.2)."""
        self.tls = tls
        self.helo = None
        self.extended = False
        self.forget_transaction()

    def with_asked(self, envelope: Envelope) -> Envelope:
        """The envelope of this transaction, with what was asked for in it. Who was named twice has the last word."""
        if not (self.asked_mail or self.asked):
            return envelope
        asked = Asked(self.asked_mail, tuple(self.asked.get(one, b"") for one in envelope.recipients))
        return Envelope(envelope.sender, envelope.recipients, asked)

    def forget_transaction(self) -> None:
        self.sender = None
        self.declared_size = 0
        self.require_tls = self.utf8 = False
        self.asked_mail = b""
        self.asked = {}
        self.recipients = []


@attrs.frozen
class ReceivedMessage:
    """What the `message` hook gets: the octets (LF line ends) counted, without the Received line that we add; the
    header, or its first 64 KiB; and the number of hops that it tells of (spec/qmail.md §16.6)."""

    size: int
    header: bytes
    hops: int

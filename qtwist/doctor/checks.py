"""The checks of `qtwist doctor`: each looks at one thing of a home and its host, and says what it found.

Nothing is changed. What is asked of the DNS and the network goes through the Case, so that tests can answer.
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from datetime import datetime, timezone
from ipaddress import ip_address
from typing import cast

import attrs

from qtwist.control import Control, ControlError
from qtwist.interfaces import DNSTemporaryError, IResolver
from qtwist.mail.address import Address
from qtwist.mail.constmap import ConstantMap
from qtwist.policy.base import consult
from qtwist.policy.session import Session
from qtwist.smtpd.factory import SMTPFactory
from qtwist.tls.contexts import Identity, read_identity

OK, WARN, BAD = "ok", "warn", "BAD"

SOON = 14 * 86400
"""Seconds before its end in which a certificate is worth a warning."""

STRANGER = "198.51.100.77"
"""The address of a client that nobody knows (RFC 5737)."""

_TIME_ERROR = 5  # adjtimex: the clock is not synchronised


@attrs.frozen
class Finding:
    """`level` is OK, WARN or BAD; `text` is one line."""

    level: str
    text: str


@attrs.frozen
class Case:
    """What is looked at. `own` are this host's addresses; `reaches` says whether an address takes connections on port
    25; `outside` is a domain that surely takes mail; `now` is in seconds since the epoch."""

    home: str
    control: Control
    resolver: IResolver
    own: Collection[str]
    reaches: Callable[[str], Awaitable[bool]]
    outside: bytes
    now: float

    @property
    def public(self) -> list[str]:
        """Those of the host's addresses that the world can use."""
        return sorted(address for address in self.own if ip_address(address.partition("%")[0]).is_global)

    @property
    def name(self) -> bytes:
        """What this host is called."""
        return self.control.line("me") or b""

    @property
    def domains(self) -> list[bytes]:
        """The domains that mail is taken for, without patterns."""
        control = self.control
        listed = control.list("rcpthosts")
        if listed is None:
            listed = [*(control.list("locals") or ()), *(control.map("virtualdomains") or ConstantMap())]
        return list(dict.fromkeys(name.lower() for name in listed if name and name[:1] != b"." and b"@" not in name))

    async def addresses(self, name: bytes) -> set[str]:
        """The addresses of a name; empty when there are none. DNSTemporaryError."""
        return {str(record) for record in (await self.resolver.addresses(name)).records}


async def control_files(case: Case) -> AsyncIterator[Finding]:
    """What the daemon would say at its start."""
    errors = case.control.check()
    for error in errors:
        yield Finding(BAD, str(error))
    if not errors:
        yield Finding(OK, "control files: nothing wrong")
    for file in ("badmailfrom", "badrcptto", "badmailto"):
        for line in (case.control.list(file) or ()) if not errors else ():
            if b"." in line and not re.search(rb"[@*?\[]|^!*\.", line):
                shown = line.decode("ascii", "backslashreplace")
                yield Finding(WARN, f"control/{file}: {shown} is no domain there: @{shown} would be")


async def names(case: Case) -> AsyncIterator[Finding]:
    """The host's name leads to the host, and its addresses lead back to a name (RFC 5321 §2.3.5, RFC 1912 §2.1)."""
    for file in ("me", "helohost"):
        name = case.control.line(file) or b""
        shown = name.decode("ascii", "backslashreplace")
        if b"." not in name:
            yield Finding(BAD, f"control/{file}: {shown!r} is no full host name, such as mx.example.org")
            continue
        found = await case.addresses(name)
        if not found:
            yield Finding(BAD, f"control/{file}: {shown} has no address in the DNS")
        elif found & set(case.own):
            yield Finding(OK, f"control/{file}: {shown} leads to this host")
        else:
            listed = ", ".join(sorted(found))
            yield Finding(
                WARN, f"control/{file}: {shown} leads to {listed}, none of this host's (right behind NAT only)"
            )
    if not case.public:
        yield Finding(WARN, "this host has no public address of its own: look at the PTR record where it has")
    for address in case.public:
        back = cast("tuple[bytes, ...]", (await case.resolver.ptr(address)).records)
        if not back:
            yield Finding(BAD, f"{address} has no PTR record: many hosts refuse mail from there")
            continue
        name = back[0].removesuffix(b".")
        shown = name.decode("ascii", "backslashreplace")
        if address in await case.addresses(name):
            yield Finding(OK, f"{address}: its PTR record {shown} leads back to it")
        else:
            yield Finding(BAD, f"{address}: its PTR record {shown} does not lead back to it")


async def exchangers(case: Case) -> AsyncIterator[Finding]:
    """Mail for our domains comes here."""
    ours = set(case.own) | await case.addresses(case.name)
    for domain in case.domains:
        shown = domain.decode("ascii", "backslashreplace")
        records = cast("tuple[tuple[int, bytes], ...]", (await case.resolver.mx(domain)).records)
        best = [name for preference, name in records if preference == min(record[0] for record in records)]
        for name in best or [domain]:
            host = name.decode("ascii", "backslashreplace")
            if ours & await case.addresses(name):
                yield Finding(OK, f"{shown}: mail goes to {host}, which is this host")
            elif best:
                yield Finding(WARN, f"{shown}: its best mail exchanger is {host}, not this host")
            else:
                yield Finding(BAD, f"{shown}: no MX record, and its address is not this host's")


async def port_25(case: Case) -> AsyncIterator[Finding]:
    """Many providers let no mail out."""
    shown = case.outside.decode()
    records = cast("tuple[tuple[int, bytes], ...]", (await case.resolver.mx(case.outside)).records)
    for _, name in sorted(records)[:2]:
        for address in sorted(await case.addresses(name), key=lambda text: ":" in text)[:1]:
            if await case.reaches(address):
                yield Finding(OK, f"port 25 of {address} ({shown}) can be reached")
                return
    yield Finding(BAD, f"port 25 of {shown} cannot be reached: does the provider of this host let mail out?")


async def certificates(case: Case) -> AsyncIterator[Finding]:
    """Files, names and dates."""
    control = case.control
    first = control.path("servercert.pem")
    if not os.path.lexists(first):
        yield Finding(WARN, "control/servercert.pem: no certificate, so there is no TLS (doc/tls.md)")
    paths = [first] if os.path.lexists(first) else []
    paths += sorted(glob.glob(os.path.join(glob.escape(control.directory), "servercerts", "*", "servercert.pem")))
    for path in paths:
        name = case.name.decode() if path == first else os.path.basename(os.path.dirname(path))
        try:
            identity = read_identity(path)
        except ControlError as error:
            yield Finding(BAD, str(error))
            continue
        for finding in certificate(identity, path, name, case.now):
            yield finding
        if os.stat(path).st_mode & 0o004:
            yield Finding(BAD, f"{path}: everybody may read the private key; mode 640 with the server's group would do")


def certificate(identity: Identity, path: str, name: str, now: float) -> Iterator[Finding]:
    """What there is to say of one certificate that should be for the host `name`."""
    until = identity.certificate.not_valid_after_utc
    left = until.timestamp() - now
    if left <= 0:
        yield Finding(BAD, f"{path}: the certificate expired on {until:%Y-%m-%d}")
    elif left < SOON:
        yield Finding(WARN, f"{path}: the certificate expires on {until:%Y-%m-%d}; does its renewal work?")
    else:
        yield Finding(OK, f"{path}: the certificate is valid until {until:%Y-%m-%d}")
    found = identity.names
    wild = "*." + name.partition(".")[2]
    if name.lower() not in found and wild.lower() not in found:
        listed = ", ".join(sorted(found)) or "no name at all"
        yield Finding(WARN, f"{path}: the certificate is for {listed}, not for {name}")


async def relaying(case: Case) -> AsyncIterator[Finding]:
    """The rules of SMTP, asked for a client that nobody knows: does it get mail through to elsewhere?"""
    factory = SMTPFactory(case.control, None)  # type: ignore[arg-type]  # no message comes
    domain = (case.domains or [case.name])[0]
    open_for = []
    for recipient in (
        b"joe@elsewhere.example",
        b"joe%elsewhere.example@" + domain,
        b"elsewhere.example!joe@" + domain + b".elsewhere.example",
        b'"joe@elsewhere.example"@elsewhere.example',
        b"joe@[192.0.2.99]",
    ):
        session = Session(id="doctor", remote_ip=STRANGER, local_ip="192.0.2.1", helo=b"stranger.example")
        session.environment[b"TCPREMOTEIP"] = STRANGER.encode()
        refused = False
        for hook, arguments in (
            ("connect", ()),
            ("helo", (b"stranger.example",)),
            ("mail", (Address(b"joe@stranger.example"),)),
            ("rcpt", (Address(recipient),)),
        ):
            opinion = consult(factory.hooks[hook], session, *arguments)
            answer = opinion if opinion is None or hasattr(opinion, "positive") else await opinion
            refused = refused or (answer is not None and not answer.positive)
        # What is taken for a domain of ours is delivered here: user%host only where percenthack says so.
        leads_out = not recipient.endswith(b"@" + domain) or domain in (
            case.control.map("percenthack") or ConstantMap()
        )
        if not refused and leads_out:
            open_for.append(recipient.decode("ascii", "backslashreplace"))
    if open_for:
        yield Finding(BAD, f"open relay: a stranger may send to {', '.join(open_for)}")
    else:
        yield Finding(OK, "relaying: a stranger is refused")


async def clock(case: Case) -> AsyncIterator[Finding]:
    """Dates in mail, and the life of certificates and logins, hang on it."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return
    if state == _TIME_ERROR:
        yield Finding(WARN, "clock: the kernel says that it is not synchronised (NTP)")
    elif state >= 0:
        yield Finding(
            OK, f"clock: synchronised, {datetime.fromtimestamp(case.now, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        )


async def permissions(case: Case) -> AsyncIterator[Finding]:
    """What decides about mail must not be changed by everybody, nor secrets read."""
    wrong = 0
    for name, mask, why in (
        ("", 0o002, "may be written by everybody"),
        ("control", 0o002, "may be written by everybody"),
        ("users", 0o002, "may be written by everybody"),
        ("alias", 0o002, "may be written by everybody"),
        ("queue", 0o002, "may be written by everybody"),
        ("users/credentials", 0o044, "has passwords, and may be read by others than its owner"),
        ("control/clientcert.pem", 0o004, "has a private key, and may be read by everybody"),
    ):
        path = os.path.join(case.home, name).rstrip("/")
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            continue
        if mode & mask:
            wrong += 1
            yield Finding(BAD, f"{path} {why} (mode {mode & 0o7777:o})")
    if not wrong:
        yield Finding(OK, "permissions: nothing wrong")


CHECKS = (control_files, names, exchangers, port_25, certificates, relaying, clock, permissions)


async def examine(case: Case) -> AsyncIterator[Finding]:
    """The findings of all checks. One that the DNS or a file keeps from its work says so; the others go on."""
    for check in CHECKS:
        try:
            async for finding in check(case):
                yield finding
        except DNSTemporaryError as error:
            yield Finding(BAD, f"{check.__name__}: the DNS gives no answer ({error})")
        except (ControlError, OSError) as error:
            yield Finding(BAD, f"{check.__name__}: {error}")


def records(case: Case, tlsa: str | None) -> Iterator[str]:
    """The DNS records to publish, in the form of a zone file; `tlsa` is what a TLSA record is to say."""
    name = case.name.decode("ascii", "backslashreplace")
    for address in case.public or ["(this host's public address)"]:
        yield f"{name}. {'AAAA' if ':' in address else 'A'} {address}"
    for address in case.public:
        yield f"{ip_address(address).reverse_pointer}. PTR {name}.    ; at the provider of the address"
    for domain in case.domains:
        shown = domain.decode("ascii", "backslashreplace")
        yield f"{shown}. MX 10 {name}."
        yield f'{shown}. TXT "v=spf1 mx -all"'
        yield f'_dmarc.{shown}. TXT "v=DMARC1; p=none; rua=mailto:postmaster@{shown}"'
        yield f'_smtp._tls.{shown}. TXT "v=TLSRPTv1; rua=mailto:postmaster@{shown}"'
    if tlsa is not None:
        yield f"_25._tcp.{name}. TLSA {tlsa}    ; in a signed zone only; it changes with the key"

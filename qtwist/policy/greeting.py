"""What a client does before and when it says its name: early talkers, HELO names (spec/related.md §14.3, §14.4)."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from twisted.internet.task import deferLater

from qtwist.interfaces import DNSTemporaryError, IResolver
from qtwist.mail.address import Address
from qtwist.policy.base import Answer, Opinion, Policy, refuse
from qtwist.policy.connection import leading_number
from qtwist.policy.patterns import PatternFiles
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched

if TYPE_CHECKING:
    from qtwist.control import Control

#: Seconds that a greeting may be kept back at most: a client may give up after 300 (RFC 5321 §4.5.3.2.1).
LONGEST = 120

_LABEL = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")
_VALID, _EXISTS = 1, 2
_LEVELS = {b"": 0, b"0": 0, b"!": 1, b".": 1, b"1": 1, b"A": 2, b"M": 2, b"2": 2}


class GreetDelay(Policy):
    """Keeps the greeting back for control/greetdelay seconds, and sends away whoever talks meanwhile: 554.

    GREETDELAY (or SMTPD_GREETDELAY) in a rule overrides the file. Clients that may relay do not wait.
    """

    name = "greetdelay"
    idle_without = ("greetdelay", "GREETDELAY", "SMTPD_GREETDELAY")

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        self._surroundings = surroundings
        self._seconds = Watched(control, ("greetdelay",), lambda: control.integer("greetdelay"))

    def connect(self, session: Session) -> Answer:
        known = session.environment
        given = known.get(b"GREETDELAY", known.get(b"SMTPD_GREETDELAY"))
        seconds = self._seconds.get() if given is None else leading_number(given)
        if not seconds or session.may_relay:
            return None
        return deferLater(self._surroundings.clock, min(seconds, LONGEST), _early, session, seconds)


def _early(session: Session, seconds: int) -> Opinion:
    if not session.heard:
        return None
    return refuse(
        554, b"a client waits for the greeting before it speaks (#5.5.1)", f"spoke within {seconds} s (greetdelay)"
    )


class BadHelo(Policy):
    """Refuses clients by the name that they give: those that control/badhelo lists (with patterns and exceptions, as in
    badmailfrom), and those that fail control/helocheck.

    helocheck 1 wants a name with a dot or an address in brackets, 2 one that exists in the DNS as well. The answer
    comes at MAIL, since a client that was refused at EHLO goes on with HELO, or without. BADHELO in a rule names
    another list; HELOCHECK is ``.`` for 1, ``A`` or ``M`` for 2. Clients that may relay may call themselves anything.
    """

    name = "badhelo"
    idle_without = ("badhelo", "helocheck", "BADHELO", "HELOCHECK")

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        self._surroundings = surroundings
        self._lists = PatternFiles(control, "badhelo")
        self._level = Watched(control, ("helocheck",), lambda: control.integer("helocheck"))

    def mail(self, session: Session, sender: Address) -> Answer:
        if session.may_relay:
            return None
        name = session.helo or b""
        found = self._lists.find(name, session.environment.get(b"BADHELO"))
        if found is not None:
            return refuse(553, b"hosts of that name are not welcome here (#5.7.1)", found)
        given = session.environment.get(b"HELOCHECK")
        level = self._level.get() if given is None else _LEVELS.get(given.upper(), _VALID)
        if not level:
            return None
        if not name:
            return refuse(503, b"HELO or EHLO first (#5.5.1)", "helocheck")
        if _is_literal(name):
            return None
        if not _is_name(name):
            return refuse(550, b"HELO needs the full name of a host (#5.5.2)", "helocheck")
        return self._exists(name) if level >= _EXISTS else None

    async def _exists(self, name: bytes) -> Opinion:
        try:
            if await takes_mail(self._surroundings.resolver, name):
                return None
        except DNSTemporaryError as error:
            return refuse(451, b"your HELO name cannot be looked up now (#4.4.3)", str(error))
        return refuse(550, b"there is no host of the name in HELO (#5.7.1)", "helocheck")


class MailFromCheck(Policy):
    """Refuses senders whose domain takes no mail, with control/mfcheck or MFDNSCHECK in a rule: no MX record, and no
    address either, or a null MX (RFC 7505). When the DNS does not answer: 451."""

    name = "mfcheck"
    idle_without = ("mfcheck", "MFDNSCHECK")

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        self._surroundings = surroundings
        self._on = Watched(control, ("mfcheck",), lambda: bool(control.integer("mfcheck")))

    def mail(self, session: Session, sender: Address) -> Answer:
        given = session.environment.get(b"MFDNSCHECK")
        if session.may_relay or not sender.raw or given == b"0" or not (given is not None or self._on.get()):
            return None
        domain = sender.domain_lower
        if not domain or domain.startswith(b"["):
            return refuse(553, b"the sender needs a domain (#5.1.7)", "mfcheck")
        return self._look_up(domain)

    async def _look_up(self, domain: bytes) -> Opinion:
        try:
            if await takes_mail(self._surroundings.resolver, domain):
                return None
        except DNSTemporaryError as error:
            return refuse(451, b"the sender's domain cannot be looked up now (#4.4.3)", str(error))
        return refuse(550, b"the sender's domain takes no mail (#5.1.8)", "mfcheck")


async def takes_mail(resolver: IResolver, domain: bytes) -> bool:
    """Whether mail to `domain` has somewhere to go: an MX but the null one, else an address. DNSTemporaryError."""
    exchanges = (await resolver.mx(domain)).records
    if exchanges:
        return exchanges != ((0, b""),)
    return bool((await resolver.addresses(domain)).records)


def _is_name(name: bytes) -> bool:
    labels = name.rstrip(b".").split(b".")
    return len(labels) > 1 and len(name) < 256 and all(len(one) < 64 and _LABEL.fullmatch(one) for one in labels)


def _is_literal(name: bytes) -> bool:
    if not (name.startswith(b"[") and name.endswith(b"]")):
        return False
    inner = name[1:-1]
    try:
        ip_address((inner[5:] if inner[:5].lower() == b"ipv6:" else inner).decode("ascii"))
    except ValueError:
        return False
    return True


def tarpit(control: Control) -> tuple[int, int]:
    """control/tarpitcount and control/tarpitdelay."""
    return control.integer("tarpitcount"), control.integer("tarpitdelay")


class Tarpit(Policy):
    """Answers each recipient after the first control/tarpitcount ones of a connection control/tarpitdelay seconds late.

    TARPITCOUNT and TARPITDELAY in a rule override the files; 0 recipients is no tarpit. Clients that may relay are not
    slowed down.
    """

    name = "tarpit"
    idle_without = ("tarpitcount", "TARPITCOUNT")

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        self._surroundings = surroundings
        self._settings = Watched(control, ("tarpitcount", "tarpitdelay"), lambda: tarpit(control))

    def rcpt(self, session: Session, recipient: Address) -> Answer:
        known = session.environment
        count, seconds = self._settings.get()
        if b"TARPITCOUNT" in known:
            count = leading_number(known[b"TARPITCOUNT"])
        if b"TARPITDELAY" in known:
            seconds = leading_number(known[b"TARPITDELAY"])
        if not count or not seconds or session.may_relay:
            return None
        seen = session.notes[self] = int(session.notes.get(self, 0)) + 1  # type: ignore[call-overload]
        if seen <= count:
            return None
        return deferLater(self._surroundings.clock, min(seconds, LONGEST), lambda: None)

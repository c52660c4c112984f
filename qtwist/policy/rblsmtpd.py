"""Lists of addresses in the DNS, as rblsmtpd asks them (spec/related.md §4.7), by control/dnsbllist (§14.3).

A line is a zone: whoever has a TXT record there is refused with its text. With ``zone:message`` an A record counts, and
``%IP%`` in the message is the address. ``-`` before a zone makes the refusal permanent (553 in place of 451), ``+`` a
list of the good: whoever is in it is not looked for in later lines. ``=`` only notes the hit in RBLRESULT.

All lists are asked at once when the client connects, and it is refused at RCPT, so that the log has sender and
recipient. A list that does not answer within control/dnsbltimeout seconds is passed over.
"""

from __future__ import annotations

from collections.abc import Coroutine
from ipaddress import ip_address, ip_network
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.dns import names
from qtwist.interfaces import DNSTemporaryError, IResolver
from qtwist.mail.address import Address
from qtwist.policy.base import Answer, Opinion, Policy, refuse
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched

#: What lists answer by A records; what lies outside is a domain that was given up and answers anything.
_LISTED = ip_network("127.0.0.0/8")
#: What the large lists answer in place of "listed": too many questions, or a resolver that they do not serve.
_ERRORS = ip_network("127.255.255.0/24")

_LONGEST_TEXT = 200  # octets of a refusal, as rblsmtpd has it

_log = Logger(namespace="qtwist.policy")


@attrs.frozen
class Entry:
    """A line of control/dnsbllist. `kind` is ``""``, ``-``, ``+`` or ``=``; `message` None: the TXT record counts."""

    zone: bytes
    kind: str = ""
    message: bytes | None = None

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """ValueError, with what was expected, for a line that is none."""
        kind = chr(line[0]) if line[:1] in (b"-", b"+", b"=") else ""
        zone, colon, message = line[len(kind) :].partition(b":")
        canonical = names.canonical(zone)
        if not zone or canonical is None or b" " in zone:
            raise ValueError("a zone, as zone, -zone, +zone, =zone or zone:message")
        return cls(canonical, kind, message.strip() if colon else None)


@attrs.frozen
class _Settings:
    entries: tuple[Entry, ...]
    seconds: int


class _Broken(Exception):
    """The list answers, and its answer is of no use."""


class _Question:
    """What is asked of one list. `text` is what it says of the client, None when that is nothing; `trouble` says why
    there is no answer. `answered` fires when either is known."""

    def __init__(self, entry: Entry, lookup: Coroutine[Any, Any, bytes | None], clock: Any, seconds: int) -> None:
        self.entry = entry
        self.text: bytes | None = None
        self.trouble = ""
        self._seconds = max(seconds, 1)
        asked = Deferred.fromCoroutine(lookup).addTimeout(self._seconds, clock)
        self.answered: Deferred[None] = asked.addCallbacks(self._got, self._failed)

    def _got(self, text: bytes | None) -> None:
        self.text = text

    def _failed(self, failure: Failure) -> None:
        late = f"it says nothing for {self._seconds} s" if failure.check(TimeoutError) else ""
        self.trouble = late or failure.getErrorMessage() or type(failure.value).__name__
        if not failure.check(DNSTemporaryError, TimeoutError, CancelledError, _Broken, OSError):
            _log.failure("asking {zone}", failure, zone=self.entry.zone.decode())


@attrs.define
class _Asked:
    """The questions about one client, in the order of the lists; `decided` once they have led to something."""

    questions: list[_Question]
    closed: bool
    decided: tuple[Opinion] | None = None


class RBLSMTPd(Policy):
    """Refuses clients that lists in the DNS name.

    RBLSMTPD in a rule decides without any list: empty lets the client pass, a text refuses it with 451, one that begins
    with ``-`` with 553. DNSBLSKIP in a rule asks nobody; DNSBLFAILCLOSED makes a list that does not answer a 451.
    Clients that may relay are not looked for.
    """

    name = "rblsmtpd"
    idle_without = ("dnsbllist", "RBLSMTPD")

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        self._surroundings = surroundings
        self._settings = Watched(
            control,
            ("dnsbllist", "dnsbltimeout"),
            lambda: _Settings(
                tuple(Entry.parse(line) for line in control.list("dnsbllist") or ()), control.integer("dnsbltimeout")
            ),
        )

    def connect(self, session: Session) -> None:
        known = session.environment
        if session.may_relay or b"RBLSMTPD" in known or b"DNSBLSKIP" in known:
            return
        settings = self._settings.get()
        if settings.entries:
            try:
                reverse = query_name(session.remote_ip)
            except ValueError:
                return
            resolver, clock = self._surroundings.resolver, self._surroundings.clock
            questions = [
                _Question(entry, look_up(resolver, entry, reverse + entry.zone), clock, settings.seconds)
                for entry in settings.entries
            ]
            session.notes[self] = _Asked(questions, b"DNSBLFAILCLOSED" in known)

    def end(self, session: Session) -> None:
        asked = session.notes.pop(self, None)
        if isinstance(asked, _Asked):
            for question in asked.questions:
                question.answered.cancel()

    def rcpt(self, session: Session, recipient: Address) -> Answer:
        text = session.environment.get(b"RBLSMTPD")
        if text is not None:
            if not text or session.may_relay:
                return None
            code = 553 if text.startswith(b"-") else 451
            return refuse(code, _printable(text.removeprefix(b"-")), "RBLSMTPD of a rule")
        asked = session.notes.get(self)
        if not isinstance(asked, _Asked) or session.may_relay:
            return None
        return self._decide(session, asked) if asked.decided is None else asked.decided[0]

    async def _decide(self, session: Session, asked: _Asked) -> Opinion:
        opinion: Opinion = None
        trouble = False
        for question in asked.questions:
            entry = question.entry
            await question.answered
            if question.trouble:
                trouble = True
                _log.info(
                    "{id}: the list {zone} has no answer for {ip}: {error}",
                    id=session.id,
                    zone=entry.zone.decode(),
                    ip=session.remote_ip,
                    error=question.trouble,
                )
                if asked.closed and entry.kind in ("", "-"):
                    reason = f"{entry.zone.decode()} does not answer"
                    opinion = refuse(451, b"temporary trouble with a list of addresses (#4.4.3)", reason)
                    break
                if entry.kind == "+" and not asked.closed:
                    break  # it may be one of the good
                continue
            if question.text is None:
                continue
            if entry.kind == "+":
                break
            if entry.kind == "=":
                session.environment[b"RBLRESULT"] = entry.zone
                continue
            shown = _printable((entry.message or question.text).replace(b"%IP%", session.remote_ip.encode("ascii")))
            # After trouble nothing is final: the list of the good may have been the one without an answer.
            code = 553 if entry.kind == "-" and not trouble else 451
            opinion = refuse(code, shown, f"listed in {entry.zone.decode()}")
            break
        asked.decided = (opinion,)
        return opinion


def query_name(address: str) -> bytes:
    """What stands before a zone in a question about `address`: its octets, for IPv6 its nibbles, backwards, and a dot.

    ValueError when it is no IP address.
    """
    return names.reverse(address).removesuffix(b"in-addr.arpa").removesuffix(b"ip6.arpa")


async def look_up(resolver: IResolver, entry: Entry, name: bytes) -> bytes | None:
    """What a list says of `name`: its text (empty where none is asked for), None when it is not listed.

    DNSTemporaryError; _Broken when the list says that it does not serve us.
    """
    by_text = entry.message is None and entry.kind in ("", "-")
    addresses = resolver.a(name)
    texts = resolver.txt(name) if by_text else None
    try:
        found = [ip_address(str(record)) for record in (await addresses).records]
        if any(one.version == 4 and one in _ERRORS for one in found):
            raise _Broken(f"{found[0]}: it does not serve our resolver")
        listed = any(one.version == 4 and one in _LISTED for one in found)
        if texts is None:
            return b"" if listed else None
        if found and not listed:
            return None  # a domain that answers anything
        records = (await texts).records
        return bytes(records[0]) if records else None  # type: ignore[call-overload,no-any-return]
    except BaseException:
        for unread in (addresses, texts):
            if unread is not None:
                unread.addErrback(lambda _: None)
                unread.cancel()
        raise


def _printable(text: bytes) -> bytes:
    """At most 200 octets, with ? for what cannot be printed."""
    return bytes(byte if 32 <= byte < 127 else ord("?") for byte in text[:_LONGEST_TEXT])

"""ETRN and AutoTURN: hosts that are there now and then get their mail when they ask, or when they have been here
(RFC 1985; spec/related.md §8.5)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.control import ControlError
from qtwist.mail.domains import ascii_domain
from qtwist.policy.relay import network
from qtwist.queue.socket_path import SocketPath
from qtwist.wire.netstring import encode
from qtwist.wire.smtp_events import Etrn
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import SMTPServer

if TYPE_CHECKING:
    from qtwist.control import Control
    from qtwist.policy.session import Session
    from qtwist.smtpd.factory import SMTPFactory

log = Logger(namespace="qtwist.smtpd")

NOT_YOURS = Reply(459, b"the mail of that domain is not for you (#4.7.1)")
NOT_NOW = Reply(458, b"the queue cannot be asked now (#4.3.0)")

_ANSWER_LIMIT = 1000


@attrs.frozen
class Turns:
    """Whose mail each client may ask for: domains in small letters and ASCII, and networks."""

    listed: tuple[tuple[bytes, IPv4Network | IPv6Network], ...]

    @classmethod
    def read(cls, control: Control, name: str) -> Turns:
        """What control/etrnclients or control/autoturn says; no file is an empty one. ControlError when it is wrong."""
        control.ensure(name)
        pairs = (line.partition(b":") for line in control.list(name) or ())
        return cls(tuple((ascii_domain(domain), network(clients)) for domain, _, clients in pairs))

    def domains(self, client: str) -> frozenset[bytes]:
        """The domains of the client with this IP address."""
        if not self.listed:
            return frozenset()
        try:
            address = ip_address(client)
        except ValueError:
            return frozenset()
        return frozenset(domain for domain, clients in self.listed if address in clients)


class _Question(Protocol):
    """One question at the desk of the queue manager."""

    def __init__(self, request: dict[str, str], answer: Deferred[int]) -> None:
        self._request = request
        self._answer: Deferred[int] | None = answer
        self._text = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(encode(json.dumps(self._request).encode("ascii")))

    def dataReceived(self, data: bytes) -> None:
        self._text += data
        if len(self._text) > _ANSWER_LIMIT:
            transport: Any = self.transport
            transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        try:
            self.end(int(json.loads(self._text.partition(b":")[2][:-1])["count"]))
        except (ValueError, KeyError, TypeError):
            self.end(Failure(ConnectionClosed(f"the queue manager says {self._text!r}")))

    def end(self, outcome: int | Failure) -> None:
        """Give the outcome to whoever waits for it."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.callback(outcome)


class _Asking(ClientFactory):
    noisy = False

    def __init__(self, question: _Question) -> None:
        self._question = question

    def buildProtocol(self, addr: object) -> Protocol:
        return self._question

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._question.end(reason)


def ask(reactor: Any, home: str, domain: bytes) -> Deferred[int]:
    """Have the mail for `domain` tried; how many messages, -1 where they were not counted. Errbacks with what keeps us
    from the queue manager of `home`."""
    answer: Deferred[int] = Deferred(lambda _: connector.disconnect())
    try:
        question = _Question({"op": "flush", "domain": domain.decode("ascii")}, answer)
        path = SocketPath(os.path.join(home, "run"), "control")
    except (OSError, UnicodeError):
        return fail()

    def ended(outcome: int | Failure) -> int | Failure:
        path.close()
        return outcome

    answer.addBoth(ended)
    connector = reactor.connectUNIX(path.address, _Asking(question))
    return answer


class TurningConnection:
    """The part of a connection that sends for mail. `factory.send_for` asks the queue manager."""

    factory: SMTPFactory
    session: Session
    _engine: SMTPServer
    _refuse: Callable[[str, Reply], None]
    _wait: Callable[..., None]

    def _on_etrn(self, event: Etrn) -> None:
        session, domain = self.session, event.domain
        if domain not in self.factory.etrn.get().domains(session.remote_ip):
            self._refuse("ETRN", NOT_YOURS)
            return

        def done(count: int) -> None:
            log.info("{id}: ETRN for {domain}", id=session.id, domain=domain.decode("ascii"), count=count)
            if not self._engine.closed:
                self._engine.reply(_answer(domain, count))

        def failed(failure: Failure) -> None:
            log.error("{id}: ETRN impossible: {error}", id=session.id, error=str(failure.value))
            if not self._engine.closed:
                self._engine.reply(NOT_NOW)

        self._wait(self.factory.send_for(domain), done, failed, may_cancel=True)

    def _auto_turn(self) -> None:
        """The connection has ended: its client is there, so its mail may come (AutoTURN)."""
        try:
            domains = self.factory.autoturn.get().domains(self.session.remote_ip)
        except ControlError as error:
            log.error("{id}: no AutoTURN: {error}", id=self.session.id, error=error)
            return
        for domain in sorted(domains):
            about = {"id": self.session.id, "domain": domain.decode("ascii", "backslashreplace")}
            log.info("{id}: AutoTURN for {domain}", **about)
            self.factory.send_for(domain).addErrback(_tell, about)

    etrn_handlers: ClassVar[dict[type, Callable[[Any, Any], None]]] = {Etrn: _on_etrn}


def _tell(failure: Failure, about: dict[str, str]) -> None:
    log.error("{id}: AutoTURN for {domain} impossible: {error}", error=str(failure.value), **about)


def _answer(domain: bytes, count: int) -> Reply:
    """RFC 1985 §5.2."""
    if count < 0:
        return Reply(250, b"ok, the mail for %b is tried" % domain)
    if count == 0:
        return Reply(251, b"ok, no mail waits for %b" % domain)
    return Reply(253, b"ok, %d messages for %b are tried" % (count, domain))

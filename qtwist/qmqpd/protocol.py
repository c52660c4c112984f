"""One QMQP connection: one request over TCP (spec/qmail.md §17.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.control import ControlError
from qtwist.interfaces import Accepted, IIncomingMessage
from qtwist.lingering import Lingering
from qtwist.policy.session import Session
from qtwist.policy.trace import Tracer
from qtwist.queue.request import RequestProtocol, check_reserves
from qtwist.wire.qmqp import QMQPServer

if TYPE_CHECKING:
    from qtwist.qmqpd.factory import QMQPFactory

log = Logger(namespace="qtwist.qmqpd")

NOT_LISTED = b"DThis server takes no mail from you by QMQP. (#5.7.1)"
CANNOT_READ = b"ZThe configuration cannot be read. (#4.3.0)"
TOO_MANY = b"ZThere are too many connections, try again later. (#4.3.2)"
CLOSING = b"ZThe service is shutting down, try again later. (#4.3.2)"

#: How many of those that are not served may stay to read why.
REFUSED_AT_ONCE = 100

_REFUSED = 31
_BUSY = 71


@implementer(IHalfCloseableProtocol)
class QMQPProtocol(RequestProtocol):
    """One request from a client of control/qmqpclients; any recipient is taken from it. Others get a refusal."""

    factory: QMQPFactory
    session: Session
    log = log
    proxied: Any = None  # the addresses that a proxy has told (qtwist.proxying), where one did
    silence = float("inf")  # the lifetime is what counts

    def __init__(self) -> None:
        super().__init__(QMQPServer(may_chunk=False))
        self.variables: dict[bytes, bytes] = {}  # that a rule has set for the client
        self._counted_as_refused = False
        self._lingering: Lingering | None = None
        self._tracer: Tracer | None = None

    @property
    def client(self) -> str:
        return self.session.remote_ip

    def connectionMade(self) -> None:
        factory = self.factory
        self.session = Session.of(self.proxied or self.transport)
        self.session.environment.update(self.variables)
        others = factory.connection_made(self) - factory.refused
        self._tracer = factory.traces.begin(self.session.id, self.session.remote_ip)
        try:
            settings = factory.settings.get()
        except ControlError as error:
            self._turn_away(_BUSY, CANNOT_READ, str(error))
            return
        if not settings.clients.has(self.session.remote_ip):
            self._turn_away(_REFUSED, NOT_LISTED, "not listed in control/qmqpclients")
        elif factory.draining:
            self._turn_away(_BUSY, CLOSING, "shutting down")
        elif others >= max(1, settings.connections // factory.share):
            self._turn_away(_BUSY, TOO_MANY, f"there are {others} connections already (control/concurrencyincoming)")
        else:
            log.debug("{id}: connection from {ip}", id=self.session.id, ip=self.session.remote_ip)
            self.lifetime = settings.timeout
            self.start()

    def begin(self) -> IIncomingMessage:
        check_reserves(self.factory.reserves)
        return self.factory.queue.begin(self.factory.origin)

    def heading(self) -> bytes:
        return self.session.received(b"QMQP", self.factory.now())

    def dataReceived(self, data: bytes) -> None:
        if self._tracer is not None:
            self._tracer.received(data)
        super().dataReceived(data)

    def answer(self, code: int, text: bytes) -> None:
        if self._tracer is not None and not self._ended:
            self._tracer.sent(text + b"\n")
        super().answer(code, text)

    def readConnectionLost(self) -> None:
        """The client sends nothing more; if its request is complete, it is waiting for the answer."""
        if self._ended or not self._engine.ended:
            self._transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """We have ended our side, or the client takes nothing more; its end will be seen."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._lingering is not None:
            self._lingering.over()
        if self._tracer is not None:
            self._tracer.end()
        if self._counted_as_refused:
            self.factory.refused -= 1
        super().connectionLost(reason)

    def leave(self) -> None:
        if self._engine.ended:
            super().leave()
        else:
            self._lingering = Lingering(self.transport, self.factory.clock)

    def _turn_away(self, code: int, answer: bytes, why: str) -> None:
        """Give an answer instead of service."""
        factory = self.factory
        log.warn("{id}: {ip} is refused: {why}", id=self.session.id, ip=self.session.remote_ip, why=why)
        if factory.refused >= REFUSED_AT_ONCE:
            self.abort()
            return
        factory.refused += 1
        self._counted_as_refused = True
        self.answer(code, answer)

    def _accepted(self, accepted: Accepted) -> None:
        log.info(
            "{id}: accepted message {number} qp {qp} from {ip}, {recipients} recipients",
            id=self.session.id,
            number=accepted.number,
            qp=accepted.qp,
            ip=self.session.remote_ip,
            recipients=len(self._engine.recipients),
        )
        super()._accepted(accepted)

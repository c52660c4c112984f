"""One QMTP connection: the shell that carries packages between socket, engine, policies and queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.control import ControlError
from qtwist.interfaces import Accepted, AnswerLost, QueueError
from qtwist.lingering import Lingering
from qtwist.mail.address import Address
from qtwist.mail.envelope import Envelope
from qtwist.mail.queue_codes import queue_report
from qtwist.policy.base import Opinion
from qtwist.policy.connection import PolicyConnection, leading_number, show
from qtwist.policy.content import Discarded
from qtwist.policy.session import ReceivedMessage
from qtwist.tls.info import TLSInfo
from qtwist.tls.serving import TLSConnection
from qtwist.wire import qmtp_server as wire
from qtwist.wire.qmtp_server import Package, QMTPServer
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import MAX_HOPS

if TYPE_CHECKING:
    from qtwist.qmtpd.factory import QMTPFactory

NO_QUEUE = b"ZThe queue cannot take a message now. (#4.3.0)"
LOOPING = b"DThis message has passed through too many hosts; it is looping. (#5.4.6)"
NOBODY = b"DThe message has no recipient. (#5.5.4)"  # never seen: there is no recipient to be told

#: How long a client may take for its package that was refused when it came (seconds).
REFUSED_SECONDS = 60

log = Logger(namespace="qtwist.qmtpd")


@implementer(IHalfCloseableProtocol)
class QMTPProtocol(TLSConnection, PolicyConnection):
    """Feeds a :class:`QMTPServer` and does what it asks.

    The policies hear of one package after the other, while several messages may be on their way to the disk. A session
    lasts control/timeoutqmtpd seconds at most (§17.1); a client that then has no answer yet must send again. On ports
    with TLS from the start (``qmtps``) nothing is asked or read before the handshake is over.
    """

    factory: QMTPFactory
    log = log

    def __init__(self) -> None:
        super().__init__()
        self._engine: QMTPServer = QMTPServer()
        self._databytes = 0
        self._recipients = 0  # how many a message may have
        self._refusal: bytes | None = None  # what all get, whatever they send
        self._common: bytes | None = None  # what the recipients of this package get
        self._lingering: Lingering | None = None
        self._lost = False
        self._timer: IDelayedCall | None = None

    # What the transport calls

    def connectionMade(self) -> None:
        factory = self.factory
        transport: Any = self.transport
        set_no_delay = getattr(transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self.session = session = factory.make_session(self.proxied or transport)
        others = factory.connection_made(self)
        transport.registerProducer(self, True)
        try:
            settings = factory.settings.get()
        except ControlError as error:
            log.error("{id}: refused, {error} ip={ip}", id=session.id, error=error, ip=session.remote_ip)
            self.abort()
            return
        # There is nothing to say before the first package; no answer is a temporary failure (§27).
        if factory.draining:
            self.abort()
            return
        if others >= max(1, settings.connections // factory.share):
            self.tell_too_many(others)
            self.abort()
            return
        log.debug("{id}: connection from {ip}", id=session.id, ip=session.remote_ip)
        self._recipients = settings.recipients
        self._timer = factory.clock.callLater(settings.timeout, self._timeout)
        self._databytes = settings.databytes
        if not self.is_tls_from_the_start(session.id):
            self._admit()
        self._pump()

    def tls_begins(self, info: TLSInfo) -> None:
        self.session.encrypted(info)
        self._admit()
        self._pump()

    def _admit(self) -> None:
        """Ask whether the client may connect."""
        session = self.session

        def then(opinion: Opinion) -> None:
            databytes = session.environment.get(b"DATABYTES")
            self._engine.databytes = self._databytes if databytes is None else leading_number(databytes)
            if opinion is not None and not opinion.positive:
                # Its first package gets this answer, and there is no second one.
                self._refusal = self._refused("connection", opinion)
                if self._timer is not None and self._timer.active():
                    self._timer.reset(min(REFUSED_SECONDS, self._timer.getTime() - self.factory.clock.seconds()))

        self._ask("connect", then)

    def _pump(self) -> None:
        if not self.handshaking:
            super()._pump()

    def dataReceived(self, data: bytes) -> None:
        self.hear(data)
        if not self._leaving:
            self._engine.receive(data)
            self._pump()

    def readConnectionLost(self) -> None:
        """The client sends nothing more; it may be waiting for answers."""
        if self._leaving:
            transport: Any = self.transport
            transport.loseConnection()
        else:
            self._engine.end_of_input()
            self._pump()

    def writeConnectionLost(self) -> None:
        """We have ended our side, or the client takes nothing more; its end will be seen."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = self._leaving = True
        self._engine.drop("the connection is gone")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lingering is not None:
            self._lingering.over()
        self._stop_asking()
        self._abort()
        self.tls_lost(reason)
        log.debug("{id}: end of connection", id=self.session.id)
        self.factory.connection_lost(self)

    def drain(self) -> None:
        """Leave when the package that is coming in, if there is one, has been answered."""
        if self.handshaking:
            self.abort()
            return
        self._engine.end()
        self._pump()

    def leave(self) -> None:
        self._abort()
        if self._engine.broken:
            log.info("{id}: {problem}", id=self.session.id, problem=self._engine.broken)
        transport: Any = self.transport
        if self.session.tls is not None:
            self.leave_tls()
        elif self._engine.ended:
            self._lingering = Lingering(transport, self.factory.clock)
        else:
            transport.loseConnection()  # the client has ended it

    def _timeout(self) -> None:
        """The session has lasted too long. Messages that are on their way to the disk get their answers."""
        self._timer = None
        if self._choked or self._leaving or self.handshaking:
            self.abort()
            return
        self._engine.drop("the session has lasted too long")
        self._abort()
        self._stop_asking()
        self._pump()

    # Events

    def _on_begin(self, event: wire.Begin) -> None:
        session, factory = self.session, self.factory
        session.forget_transaction()
        self._common = self._refusal
        if self._common is not None:
            self._engine.end()
            return
        try:
            self._begin_message()
        except (QueueError, OSError, ControlError) as error:
            log.error("{id}: no message can be queued: {error}", id=session.id, error=error)
            self._common = NO_QUEUE
        else:
            self._write(session.received(b"QMTP" if session.tls is None else b"QMTPS", factory.now()))

    def _on_chunk(self, event: wire.Chunk) -> None:
        if self._incoming is not None:
            if self._header is not None:
                self._header.feed(event.data)
            self._write(event.data)

    def _on_sender(self, event: wire.Sender) -> None:
        sender = Address(event.address)
        if event.fault is not None:
            # The recipients are looked at all the same, for what is wrong with one of them is said first (§17.1).
            self._common = self._common or event.fault
            self.session.sender = sender
        elif self._refusal is None:

            def then(opinion: Opinion) -> None:
                if opinion is None or opinion.positive:
                    self.session.sender = sender
                else:
                    self._common = self._refused("sender", opinion)

            self._ask("mail", then, sender)

    def _on_recipient(self, event: wire.Recipient) -> None:
        package, session = event.package, self.session
        suffix = session.environment.get(b"RELAYCLIENT", b"")
        address = event.address + suffix
        if self._refusal is not None or session.sender is None:
            package.take(address)  # it gets the answer that all get
        elif len(address) > wire.MAX_ADDRESS:
            package.refuse(wire.TOO_LONG)
        elif len(package.recipients) >= self._recipients:
            package.refuse(wire.TOO_MANY)
        else:

            def then(opinion: Opinion) -> None:
                if opinion is not None and not opinion.positive:
                    package.refuse(self._refused("recipient", opinion))
                elif b"\0" in address:
                    package.refuse(wire.HAS_NUL)
                else:
                    package.take(address)
                    session.recipients.append(Address(address))

            self._ask("rcpt", then, Address(event.address))

    def _on_end(self, event: wire.End) -> None:
        package = event.package
        if package.too_big:
            self._finish(package, wire.TOO_BIG)
        elif self._common is not None:
            self._finish(package, self._common)
        elif not package.recipients:
            self._finish(package, NOBODY)
        elif package.hops >= MAX_HOPS:
            self._finish(package, LOOPING)
        else:
            self._ask("data", lambda opinion: self._ask_about_message(package, opinion))

    def _ask_about_message(self, package: Package, opinion: Opinion) -> None:
        if opinion is not None and not opinion.positive:
            self._finish(package, self._refused("recipients", opinion))
        elif self._header is None:
            self._end_message(package, None)
        else:
            message = ReceivedMessage(package.size, self._header.header(), package.hops)
            self._ask("message", lambda opinion: self._end_message(package, opinion), message)

    def _end_message(self, package: Package, opinion: Opinion) -> None:
        if opinion is not None and not opinion.positive:
            self._finish(package, self._refused("message", opinion))
            return
        assert self.session.sender is not None
        envelope = Envelope(self.session.sender.raw, tuple(package.recipients))
        self._ask_about_content(envelope, lambda opinion, envelope: self._filtered(package, opinion, envelope))

    def _filtered(self, package: Package, opinion: Opinion, envelope: Envelope) -> None:
        if isinstance(opinion, Discarded):
            self._finish(package, b"K" + opinion.text)
        elif opinion is not None and not opinion.positive:
            self._finish(package, self._refused("message", opinion))
        else:
            self._commit(package, envelope)

    def _finish(self, package: Package, answer: bytes) -> None:
        """Nothing of this package is queued."""
        self._abort()
        self.session.forget_transaction()
        self._engine.answer(package, answer)

    def _commit(self, package: Package, envelope: Envelope) -> None:
        session, incoming = self.session, self._incoming
        assert incoming is not None
        self._incoming = None  # from here on a lost connection does not matter to the message
        session.forget_transaction()

        def done(accepted: Accepted) -> bytes:
            log.info(
                "{id}: accepted message {number} qp {qp} from <{sender}>, {recipients} recipients, {size} octets",
                id=session.id,
                ip=session.remote_ip,
                number=accepted.number,
                qp=accepted.qp,
                sender=show(envelope.sender),
                recipients=len(envelope.recipients),
                size=package.size,
            )
            return b"Kok %d qp %d" % (self.factory.now(), accepted.qp)

        def failed(failure: Failure) -> bytes | None:
            error = failure.value
            if isinstance(error, AnswerLost):
                log.error("{id}: connection ended without an answer: {error}", id=session.id, error=error)
                return None
            if isinstance(error, QueueError):
                log.error("{id}: message not queued: {error}", id=session.id, error=error)
                result = queue_report(error.code, error.words)
                return result.letter + result.text
            log.failure("{id}: message not queued", failure, id=session.id)
            return NO_QUEUE

        def answer(text: bytes | None) -> None:
            if text is None:
                self._leave_unanswered()
                return
            self._engine.answer(package, text)
            if not self._lost:
                self._pump()

        incoming.commit(envelope).addCallbacks(done, failed).addCallback(answer).addErrback(self._give_up)

    def _leave_unanswered(self) -> None:
        """Answers come in order: where one is missing, no later one may be given."""
        self._engine.drop("the queue's answer was lost")
        self._stop_asking()
        self._abort()
        if not self._leaving:
            self._leaving = True
            transport: Any = self.transport
            transport.unregisterProducer()
            transport.loseConnection()

    def _refused(self, step: str, reply: Reply) -> bytes:
        """A policy's refusal as an answer; 421 also ends the connection, as it does in SMTP."""
        self.tell_refusal(step, reply)
        if reply.code == 421:
            self._engine.end()
        return (b"D" if reply.code >= 500 else b"Z") + reply.text.replace(b"\0", b"")

    handlers: ClassVar[dict[type, Any]] = {
        wire.Begin: _on_begin,
        wire.Chunk: _on_chunk,
        wire.Sender: _on_sender,
        wire.Recipient: _on_recipient,
        wire.End: _on_end,
    }

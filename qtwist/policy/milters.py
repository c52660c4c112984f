"""control/milters: filters that speak the milter protocol are told of everything as it comes, and asked."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.control_services import Service
from qtwist.mail.address import Address, parse_path, quote2
from qtwist.policy.asking import NoAnswer, ask, connected, services
from qtwist.policy.base import Opinion, Policy, refuse
from qtwist.policy.content import Content, discard
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched
from qtwist.wire import milter as wire
from qtwist.wire.milter import Milter, MilterError, Packet
from qtwist.wire.smtp_reply import Reply

TIMEOUT = 300
"""Seconds that a filter has for a message where control/milters does not say; for everything else it has at most
COMMAND_TIMEOUT."""

COMMAND_TIMEOUT = 30

MOST_RECIPIENTS = 10000

MOST_PACKETS = 20000
"""Packets of one filter about one message, beside its answers."""

MOST_FIELDS = 1000
"""Header fields that it may want changed in one message."""

_PACKET_OVERHEAD = 5

_UNREAD = 100
"""Packets that may lie here unread; while there are more, nothing is read from the filter."""

LONGEST_ADDRESS = 899  # spec/qmail.md §16.3

_REPLY = re.compile(rb"([45][0-9]{2})(?:[ -](?:[245]\.[0-9]{1,3}\.[0-9]{1,3} ?)?(.*))?", re.DOTALL)
_STATUS = re.compile(rb"[45][0-9]{2}[ -]([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
_UNPRINTABLE = re.compile(rb"[^ -~]")

_log = Logger(namespace="qtwist.policy")


class _Link(Protocol):
    """The connection to a filter: sends, and gives packets one by one."""

    transport: Any

    def __init__(self) -> None:
        self.milter = Milter()
        self._arrived: deque[Packet] = deque()
        self._paused = False
        self._waiting: Deferred[Packet] | None = None
        self._over: Exception | None = None

    def send(self, data: bytes) -> None:
        if self._over is None:
            self.transport.write(data)

    def packet(self) -> Deferred[Packet]:
        """The next one; NoAnswer when there will be none."""
        waiting: Deferred[Packet] = Deferred(lambda _: self.close())
        self._waiting = waiting
        self._give()
        return waiting

    def dataReceived(self, data: bytes) -> None:
        try:
            self._arrived += self.milter.receive(data)
            if len(self._arrived) > _UNREAD and not self._paused:
                self._paused = True
                self.transport.pauseProducing()
        except MilterError as error:
            self._over = NoAnswer(str(error))
            self.transport.abortConnection()
        self._give()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._over = self._over or NoAnswer("it closed the connection")
        self._give()

    def _give(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.called and (self._arrived or self._over is not None):
            self._waiting = None
            if self._arrived:
                packet = self._arrived.popleft()
                if self._paused and len(self._arrived) <= _UNREAD:
                    self._paused = False
                    self.transport.resumeProducing()
                waiting.callback(packet)
            elif self._over is not None:
                waiting.errback(self._over)

    def close(self) -> None:
        """Give it up; harmless when repeated."""
        if self.transport is not None:
            self.transport.abortConnection()

    def quit(self) -> None:
        """Say goodbye."""
        if self._over is None and self.transport is not None:
            self.transport.write(wire.packet(wire.QUIT))
            self.transport.loseConnection()


@attrs.define
class _Filter:
    """One filter in one session. `link` is None before it is connected, and when it is given up; then `verdict` counts
    for all that comes. `done` says that it wants to hear no more of this connection, `passed` of this message.
    `in_message` says that it has heard of this message's sender, and of no end. `packets` counts what it has said about
    the message beside its answers."""

    service: Service
    link: _Link | None = None
    verdict: Opinion = None
    done: bool = False
    passed: bool = False
    in_message: bool = False
    packets: int = 0

    def listens(self, letter: bytes) -> bool:
        """Whether it is to be told of this step, or of the message (END_OF_BODY)."""
        if self.link is None or self.done or self.passed:
            return False
        return letter in (wire.HELO, wire.MAIL) or self.in_message

    def count(self) -> None:
        """One more packet that is no answer. MilterError when they are too many."""
        self.packets += 1
        if self.packets > MOST_PACKETS:
            raise MilterError("it wants too much")


@attrs.define
class _Conversation:
    filters: list[_Filter]
    sender: Address | None = None  # whom they were told of; when another policy has let one pass, they were not
    discarded: Opinion = None  # what a filter said before the message has come

    def knows(self, session: Session) -> bool:
        """Whether the message that is coming is one that they were told of."""
        return self.sender is not None and self.sender is session.sender and self.discarded is None


class Milters(Policy):
    """Asks the filters of control/milters in their order, at every step. One that gives no answer is left alone for the
    rest of the connection, and what counts then is what its line says."""

    name = "milters"
    idle_without = ("milters",)

    def __init__(self, surroundings: Surroundings) -> None:
        self._clock = surroundings.clock
        self._services: Watched[tuple[Service, ...]] = services(surroundings, "milters", TIMEOUT)
        self._me = Watched(surroundings.control, ("me",), lambda: surroundings.control.line("me") or b"unknown")
        self._conversations: dict[str, _Conversation] = {}

    # The hooks

    async def connect(self, session: Session) -> Opinion:
        filters = [_Filter(service) for service in self._services.get()]
        self._conversations[session.id] = _Conversation(filters)
        host = session.environment.get(b"TCPREMOTEHOST") or b"[%b]" % (session.remote_ip.encode() or b"unknown")
        words = (
            wire.macros(wire.CONNECT, ((b"j", self._me.get()), (b"v", b"qtwist"), (b"{daemon_name}", b"qtwist"))),
            wire.connect(host, session.remote_ip, session.remote_port),
        )
        for one in filters:
            opinion = await self._begin(one, words)
            if opinion is not None:
                return opinion
        return None

    async def helo(self, session: Session, name: bytes) -> Opinion:
        known: list[tuple[bytes, bytes]] = []
        if session.tls is not None:
            known = [(b"{tls_version}", session.tls.version.encode()), (b"{cipher}", session.tls.cipher.encode())]
        return await self._tell(session, wire.HELO, known, wire.texts(wire.HELO, name))

    async def mail(self, session: Session, sender: Address) -> Opinion:
        conversation = self._conversations.get(session.id)
        if conversation is None:
            return None
        conversation.sender, conversation.discarded = sender, None
        for one in conversation.filters:
            if one.in_message and one.link is not None:
                one.link.send(wire.packet(wire.ABORT))
            one.passed, one.in_message, one.packets = False, False, 0
        known = [(b"i", session.id.encode()), (b"{mail_addr}", sender.raw)]
        if session.user is not None:
            known += [(b"{auth_authen}", session.user), (b"{auth_type}", session.mechanism.encode())]
        return await self._tell(session, wire.MAIL, known, wire.texts(wire.MAIL, _path(sender.raw)))

    async def rcpt(self, session: Session, recipient: Address) -> Opinion:
        known = [(b"{rcpt_addr}", recipient.raw)]
        return await self._tell(session, wire.RCPT, known, wire.texts(wire.RCPT, _path(recipient.raw)))

    async def data(self, session: Session) -> Opinion:
        return await self._tell(session, wire.DATA, (), wire.packet(wire.DATA))

    async def content(self, session: Session, content: Content) -> Opinion:
        conversation = self._conversations.get(session.id)
        if conversation is None:
            return None
        if not conversation.knows(session):
            return conversation.discarded
        for one in conversation.filters:
            opinion = one.verdict
            if opinion is None and one.link is not None and one.listens(wire.END_OF_BODY):
                one.in_message = False
                opinion = await self._asked(one, one.service, self._show(one, one.link, session, content))
            if opinion is not None:
                return opinion
        return None

    def end(self, session: Session) -> None:
        conversation = self._conversations.pop(session.id, None)
        for one in conversation.filters if conversation is not None else ():
            if one.link is not None:
                one.link.quit()

    # Inside

    async def _asked(self, one: _Filter, service: Service, question: Any) -> Opinion:
        """What `question` leads to; what counts without an answer, which is then remembered."""
        answered = False

        async def whole() -> Opinion:
            nonlocal answered
            try:
                opinion: Opinion = await question
            except MilterError as error:
                raise NoAnswer(str(error)) from error
            answered = True
            return opinion

        opinion = await ask(service, self._clock, whole())
        if not answered:
            one.verdict = opinion
            if one.link is not None:
                one.link.close()
                one.link = None
        return opinion

    async def _begin(self, one: _Filter, words: Iterable[bytes]) -> Opinion:
        async def greet() -> Opinion:
            link = _Link()
            await connected(one.service, self._clock, link)
            one.link = link
            link.send(link.milter.negotiate())
            link.milter.negotiated(await link.packet())
            return await self._step(one, link, wire.CONNECT, words)

        return await self._asked(one, _hurried(one.service), greet())

    async def _tell(
        self, session: Session, letter: bytes, known: Iterable[tuple[bytes, bytes]], words: bytes
    ) -> Opinion:
        """Say `words` to all that want to hear them, and what they make of it."""
        conversation = self._conversations.get(session.id)
        if conversation is None:
            return None
        if letter in (wire.RCPT, wire.DATA) and not conversation.knows(session):
            return None
        said = (wire.macros(letter, known), words)
        for one in conversation.filters:
            opinion = one.verdict
            if one.link is not None and one.listens(letter):
                one.in_message = one.in_message or letter == wire.MAIL
                opinion = await self._asked(one, _hurried(one.service), self._step(one, one.link, letter, said))
            if opinion is not None and opinion.positive:
                conversation.discarded = opinion  # the client goes on, and hears 250 in the end
                return None
            if opinion is not None:
                return opinion
        return None

    async def _step(self, one: _Filter, link: _Link, letter: bytes, words: Iterable[bytes]) -> Opinion:
        if not link.milter.wants(letter):
            return None
        link.send(b"".join(words))
        if not link.milter.answers(letter):
            return None
        return self._opinion(one, letter, await self._answer(one, link))

    async def _answer(self, one: _Filter, link: _Link) -> Packet:
        """The next packet that is an answer."""
        while True:
            packet = await link.packet()
            if packet.letter in wire.ANSWERS:
                return packet
            if packet.letter != wire.PROGRESS:
                raise MilterError(f"it answered {packet.letter!r}")
            one.count()

    def _opinion(self, one: _Filter, letter: bytes, packet: Packet) -> Opinion:
        """What an answer means at the step `letter`."""
        answer, name = packet.letter, one.service.name
        if answer == wire.ACCEPT:
            if letter in (wire.CONNECT, wire.HELO):
                one.done = True
            else:
                one.passed, one.in_message = True, False
            return None
        if answer == wire.DISCARD:
            one.passed, one.in_message = True, False
            return discard(name)
        if answer == wire.REJECT:
            return refuse(554 if letter == wire.CONNECT else 550, b"rejected (#5.7.1)", name)
        if answer == wire.TEMPFAIL:
            return refuse(451, b"try again later (#4.7.1)", name)
        if answer == wire.REPLY_CODE:
            return _reply(packet.texts(1)[0], name)
        if answer in (wire.SHUTDOWN, wire.CONN_FAIL):
            raise NoAnswer("it shuts down")
        if answer == wire.SKIP:
            raise MilterError("it wants to skip where it may not")
        return None

    async def _show(self, one: _Filter, link: _Link, session: Session, content: Content) -> Opinion:
        """Show the message, and do what the filter wants changed."""
        for letter, said in _message(link.milter, content):
            link.send(said)
            if link.milter.answers(letter):
                packet = await self._answer(one, link)
                if packet.letter == wire.SKIP and letter == wire.BODY and link.milter.may_skip:
                    break  # it has seen enough; the body comes last
                opinion = self._opinion(one, letter, packet)
                if opinion is not None or one.passed:
                    return opinion
        link.send(wire.macros(wire.END_OF_BODY, ((b"i", session.id.encode()),)) + wire.packet(wire.END_OF_BODY))
        changes: list[Packet] = []
        size = fields = 0
        while True:
            packet = await link.packet()
            if packet.letter in wire.ANSWERS:
                break
            one.count()
            if packet.letter in wire.CHANGES:
                changes.append(packet)
                fields += packet.letter in wire.HEADER_CHANGES
                if fields > MOST_FIELDS:
                    raise MilterError("it wants to change too many header fields")
                size += len(packet.rest) + _PACKET_OVERHEAD
                if size > max(4 * content.size, 64 << 20):
                    raise MilterError("it makes the message much larger")
            elif packet.letter != wire.PROGRESS:
                raise MilterError(f"it answered {packet.letter!r}")
        opinion = self._opinion(one, wire.END_OF_BODY, packet)
        if opinion is None:
            _change(content, changes, one.service.name, session.id)
        return opinion


def _hurried(service: Service) -> Service:
    return attrs.evolve(service, timeout=min(service.timeout, COMMAND_TIMEOUT))


def _path(address: bytes) -> bytes:
    return b"<%b>" % quote2(address) if address else b"<>"


def _message(milter: Milter, content: Content) -> Iterator[tuple[bytes, bytes]]:
    """The packets that show a message, as far as the filter wants them, each behind its letter."""
    if milter.wants(wire.HEADER):
        for name, value in content.fields.items():
            shown = value if milter.leading_space else value.removeprefix(b" ")
            yield wire.HEADER, wire.texts(wire.HEADER, name, shown)
    if milter.wants(wire.END_OF_HEADER):
        yield wire.END_OF_HEADER, wire.packet(wire.END_OF_HEADER)
    if milter.wants(wire.BODY):
        for block in content.body():
            piece = block.replace(b"\n", b"\r\n")
            for start in range(0, len(piece), wire.BODY_PIECE):
                yield wire.BODY, wire.packet(wire.BODY, piece[start : start + wire.BODY_PIECE])


def _reply(text: bytes, name: str) -> Reply:
    """A reply in the filter's own words. MilterError when it is none that refuses."""
    first, *rest = [line for line in text.replace(b"\r", b"").split(b"\n") if line] or [b""]
    match = _REPLY.fullmatch(first)
    if match is None:
        raise MilterError(f"it wants to reply {text[:50]!r}")
    code = int(match[1])
    status = _STATUS.match(first)
    lines = [match[2] or b"", *(line[4:].removeprefix((status[1] + b" ") if status else b"") for line in rest)]
    words = b"\n".join(_UNPRINTABLE.sub(b"?", line.replace(b"%%", b"%"))[:400] for line in lines) or b"refused"
    return refuse(code, words + (b" (#%b)" % status[1] if status is not None else b""), name)


def _change(content: Content, changes: Iterable[Packet], name: str, connection: str) -> None:
    """Do to the message of `connection` what a filter wants. MilterError when that cannot be done."""
    pieces = [change.rest for change in changes if change.letter == wire.REPLACE_BODY]
    try:
        for change in changes:
            if change.letter == wire.ADD_HEADER:
                content.fields.add(*change.texts(2))
            elif change.letter == wire.INSERT_HEADER:
                content.fields.insert(*change.numbered())
            elif change.letter == wire.CHANGE_HEADER:
                number, field, value = change.numbered()
                content.fields.change(field, number, value or None)
            elif change.letter == wire.CHANGE_SENDER:
                content.sender = _address(change.rest.partition(b"\0")[0])
            elif change.letter in (wire.ADD_RECIPIENT, wire.ADD_RECIPIENT_WITH):
                added = _address(change.rest.partition(b"\0")[0])
                if not added or len(content.recipients) >= MOST_RECIPIENTS:
                    raise MilterError("it wants a recipient that cannot be")
                if added not in content.recipients:
                    content.recipients.append(added)
            elif change.letter == wire.DELETE_RECIPIENT:
                gone = _address(change.rest.partition(b"\0")[0])
                content.recipients = [one for one in content.recipients if one != gone]
            elif change.letter == wire.QUARANTINE:
                _log.warn(
                    "{id}: {name} wants to quarantine a message ({why}), which there is not here; it passes",
                    id=connection,
                    name=name,
                    why=_UNPRINTABLE.sub(b"?", change.rest.partition(b"\0")[0])[:200].decode("ascii"),
                )
    except MilterError:
        raise
    except ValueError as error:
        raise MilterError(f"it wants a header field that cannot be ({error})") from error
    if pieces:
        # A line end may lie across two pieces.
        content.replace_body([b"".join(pieces).replace(b"\r\n", b"\n").replace(b"\r", b"").replace(b"\0", b"")])


def _address(text: bytes) -> bytes:
    """The address in angle brackets, or without; unquoted."""
    address, _ = parse_path(text if b"<" in text else b"<%b>" % text)
    if len(address) > LONGEST_ADDRESS or b"\n" in address or b"\r" in address:
        raise MilterError(f"it wants an address that cannot be: {text[:50]!r}")
    return address

"""A connection whose engine tells events and whose policies are asked: what SMTP and QMTP have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from qtwist.interfaces import IIncomingMessage, QueueError
from qtwist.mail.address import Address
from qtwist.mail.envelope import Envelope
from qtwist.policy.base import Drop, Opinion, Refusal, consult
from qtwist.policy.content import Discarded, KeptAside, discard
from qtwist.pumping import PumpingConnection
from qtwist.wire.smtp_reply import Reply

if TYPE_CHECKING:
    from qtwist.policy.serving import Hooks, PolicyFactory
    from qtwist.policy.session import Session

HEADER_SHOWN = 65536  # octets of the header that the message hook gets at most

TROUBLE = Reply(451, b"a local rule could not be applied, try again later (#4.3.0)")
NO_GREETING = Reply(421, TROUBLE.text)
TOO_MANY = Reply(421, b"too many connections, try again later (#4.3.2)")
NO_ROOM = Reply(451, b"the message cannot be looked at now, try again later (#4.3.0)")


class PolicyConnection(PumpingConnection):
    """Asks the policies, and reads no further than the disk can follow."""

    factory: PolicyFactory[Any]
    session: Session
    proxied: Any = None  # the addresses that a proxy has told (qtwist.proxying), where one did

    def __init__(self) -> None:
        super().__init__()
        self._incoming: IIncomingMessage | None = None
        self._header: HeaderShown | None = None
        self._asked: tuple[object, ...] = ()  # what the policies were asked about last
        self.hooks: Hooks = {}
        self.has_program = False  # whether there was control/qmailqueue when the client came

    @property
    def name(self) -> str:
        return self.session.id

    def hear(self, data: bytes) -> None:
        """Note that the client has sent something. The first thing that dataReceived does."""
        self.session.heard += len(data)
        if self.tracer is not None:
            self.tracer.received(data)

    # Questions to the policies

    def _ask(self, hook: str, then: Callable[[Opinion], object], *arguments: object) -> None:
        """Ask the policies; `then` gets their opinion, or 451 when one of them is broken.

        Where they close the connection (:func:`~qtwist.policy.base.drop`), nothing more is done.
        """
        asked = self.hooks[hook]
        self._asked = arguments
        if not asked:
            then(None)
            return

        def failed(failure: Failure) -> None:
            if not self._engine.closed:
                self.log.failure("{id}: a policy has failed in {hook}", failure, id=self.session.id, hook=hook)
                then(NO_GREETING if hook == "connect" else TROUBLE)

        def done(opinion: Opinion) -> None:
            if self._engine.closed:
                return
            if hook == "connect":
                if isinstance(opinion, Drop):
                    self._drop(opinion)
                    return
                self.hooks = self.factory.hooks_after_connect(self.session)  # now that all variables are set
            then(opinion)

        try:
            opinion = consult(asked, self.session, *arguments)
        except Exception:  # whatever foreign code raises must not end the connection
            failed(Failure())
            return
        if isinstance(opinion, Deferred):
            self._wait(opinion, done, failed, may_cancel=True)
        else:
            done(opinion)

    def _drop(self, refusal: Drop) -> None:
        """Leave without a word."""
        self.tell_refusal("connection", refusal)
        self._leaving = True
        self.factory.connection_leaves(self)
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def tell_too_many(self, others: int) -> None:
        """Log that the client was sent away because there are `others`."""
        reason = f"refused, there are {others} connections already (control/concurrencyincoming)"
        self.tell_refusal("connection", Refusal(TOO_MANY.code, TOO_MANY.text, rule="limits", reason=reason))

    def tell_refusal(self, step: str, reply: Reply) -> None:
        """Log that the client was refused at `step`: with which answer, by which rule and why."""
        session, rule, reason = self.session, "", ""
        if isinstance(reply, Refusal):
            rule, reason = reply.rule, reply.reason
        about: dict[str, str] = {"ip": session.remote_ip}
        if session.helo is not None:
            about["helo"] = show(session.helo)
        if session.sender is not None:
            about["sender"] = show(session.sender.raw)
        for argument in self._asked:
            if isinstance(argument, Address):
                about["sender" if step in ("MAIL", "sender") else "recipient"] = show(argument.raw)
        # The rule comes before what the client has said, and that cannot look like a field of ours.
        why = f" rule={rule}" if rule else ""
        why += f" ({reason})" if reason else ""
        why += "".join(f" {name}={value.replace(' ', '_')}" for name, value in about.items())
        self.log.info(
            "{id}: {step} answered {code} {text}{why}",
            id=session.id,
            step=step,
            code=reply.code,
            text=show(reply.text),
            rule=rule,
            reason=reason,
            why=why,
            **about,
        )

    # The message

    def _begin_message(self) -> None:
        """Start to take a message, and keep it aside where somebody filters it. QueueError, OSError or ControlError."""
        begin = functools.partial(self.factory.begin_message, self.session, self.has_program)
        self._incoming = KeptAside(begin) if self.hooks["content"] else begin()
        self._header = HeaderShown() if self.hooks["message"] else None

    def _ask_about_content(self, envelope: Envelope, then: Callable[[Opinion, Envelope], object]) -> None:
        """Have the message filtered; `then` gets the opinion of those who do, and the envelope as they have left it."""
        incoming = self._incoming
        if not isinstance(incoming, KeptAside):
            then(None, envelope)
            return
        try:
            content = incoming.complete(envelope.sender, envelope.recipients)
        except QueueError as error:
            self.log.error("{id}: message not queued: {error}", id=self.session.id, error=error)
            then(NO_ROOM, envelope)
            return

        def done(opinion: Opinion) -> None:
            if opinion is None and not content.recipients:
                opinion = discard("no recipient is left")
            if isinstance(opinion, Discarded):
                self.tell_refusal("message", opinion)
            then(opinion, Envelope(content.sender, tuple(content.recipients)))

        self._ask("content", done, content)

    def _write(self, data: bytes) -> None:
        assert self._incoming is not None
        slow = self._incoming.write(data)
        if slow is not None:
            # The commit reports an error of the disk, so that there is nothing to do about one here.
            self._wait(slow, lambda _: None, lambda _: None)

    def _abort(self) -> None:
        if self._incoming is not None:
            self._incoming.abort()
            self._incoming = None


class HeaderShown:
    """Collects the header of a message for the `message` hook, up to HEADER_SHOWN octets."""

    def __init__(self) -> None:
        self._text = bytearray()

    def feed(self, data: bytes) -> None:
        text = self._text
        if len(text) < HEADER_SHOWN and not (text.startswith(b"\n") or b"\n\n" in text):
            text += data[: HEADER_SHOWN - len(text)]

    def header(self) -> bytes:
        """What there is of it, up to the empty line."""
        text = bytes(self._text)
        if text.startswith(b"\n"):
            return b""
        end = text.find(b"\n\n")
        return text[: end + 1] if end >= 0 else text


def leading_number(text: bytes) -> int:
    """The leading digits as a number, 0 without any (DATABYTES, spec/qmail.md §4)."""
    digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
    return int(digits[:18] or b"0")


def show(text: bytes) -> str:
    """Bytes from outside as one harmless line for the log."""
    return text[:1000].decode("ascii", "backslashreplace").translate(_CONTROLS)


_CONTROLS = {code: "?" for code in (*range(32), 127)}

"""SMTP on standard input and output, as `sendmail -bs` has it (spec/qmail.md §16, §20).

The engine and the rules are those of the daemon; but nothing here waits for more than one thing, so no reactor runs.
What control/policies names is left out: such rules are about clients from the network.
"""

from __future__ import annotations

import os
import select
from time import time
from typing import TYPE_CHECKING

from qtwist.control import Control, ControlError
from qtwist.files.cdb import CDBError
from qtwist.mail.address import Address, replace_own_ip
from qtwist.policy.badmailfrom import BadMailFrom
from qtwist.policy.rcpthosts import RcptHosts
from qtwist.policy.session import Session
from qtwist.queue.client import QueueRefused, submit
from qtwist.smtpd.settings import Settings, read_settings
from qtwist.wire import smtp_events as wire
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import Limits, SMTPServer

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from qtwist.policy.base import Policy

# What sendmail -bs says of itself unless somebody like tcp-env has set PROTO.
LOCAL = {
    "RELAYCLIENT": "",
    "DATABYTES": "0",
    "PROTO": "TCP",
    "TCPLOCALIP": "127.0.0.1",
    "TCPLOCALHOST": "localhost",
    "TCPREMOTEIP": "127.0.0.1",
    "TCPREMOTEHOST": "localhost",
    "TCPREMOTEINFO": "sendmail-bs",
}

_VARIABLES = ("RELAYCLIENT", "DATABYTES", "TCPLOCALIP", "TCPLOCALHOST", "TCPREMOTEIP", "TCPREMOTEHOST", "TCPREMOTEINFO")
_BLOCK = 65536

_CANNOT_READ = Reply(421, b"the configuration cannot be read (#4.3.0)")
_NO_RULES = Reply(451, b"the rules cannot be read (#4.3.0)")
_TIMEOUT = Reply(451, b"timeout (#4.4.2)")


class _Gone(Exception):
    """The client is."""


class _Refused(Exception):
    """The message is, by ``args[0]``."""


def serve(home: str, environ: Mapping[str, str], source: int = 0, sink: int = 1) -> int:
    """Run one session between two file descriptors; returns 0 when it ended with QUIT, else 1."""
    environ = environ if "PROTO" in environ else {**environ, **LOCAL}
    control = Control(f"{home}/control")
    try:
        dialogue = _Dialogue(
            home, environ, read_settings(control), [BadMailFrom(control), RcptHosts(control)], source, sink
        )
    except ControlError:
        os.write(sink, _CANNOT_READ.to_bytes())
        return 1
    return dialogue.run()


class _Dialogue:
    def __init__(
        self,
        home: str,
        environ: Mapping[str, str],
        settings: Settings,
        policies: list[Policy],
        source: int,
        sink: int,
    ) -> None:
        known = {os.fsencode(name): os.fsencode(environ[name]) for name in _VARIABLES if name in environ}
        self._session = Session(id="", local_ip=environ.get("TCPLOCALIP", ""), environment=known)
        self._home = home
        self._environ = environ
        self._policies = policies
        self._timeout = settings.timeout
        self._source = source
        self._sink = sink
        localiphost = settings.localiphost
        own = (self._session.local_ip, "0.0.0.0")

        def rewrite(address: bytes) -> bytes:
            return replace_own_ip(address, localiphost or b"", lambda host: host in own)

        self._engine = SMTPServer(
            settings.greeting,
            limits=Limits(recipients=settings.recipients),
            rewrite=None if localiphost is None else rewrite,
        )
        self._engine.discard = settings.discard
        databytes = known.get(b"DATABYTES")
        self._engine.databytes = settings.databytes if databytes is None else _number(databytes)
        self._message_open = False

    def run(self) -> int:
        try:
            while True:
                event = self._next()
                if isinstance(event, wire.Quit):
                    self._flush()
                    return 0
                self._handle(event)
        except (_Gone, OSError):
            return 1

    def _next(self) -> wire.Event:
        """The next event. _Gone when there can be none; an OSError is as good as that."""
        engine = self._engine
        while (event := engine.next_event()) is None:
            self._flush()
            if engine.closed:
                raise _Gone
            if not select.select((self._source,), (), (), self._timeout)[0]:
                engine.end(_TIMEOUT)
                self._flush()
                raise _Gone
            data = os.read(self._source, _BLOCK)
            if not data:
                raise _Gone
            engine.receive(data)
        return event

    def _flush(self) -> None:
        view = memoryview(self._engine.data_to_send())
        while view:
            view = view[os.write(self._sink, view) :]

    def _handle(self, event: wire.Event) -> None:
        engine, session = self._engine, self._session
        if isinstance(event, wire.Helo):
            session.forget_transaction()
            session.helo = event.name
            engine.accept()
        elif isinstance(event, wire.Mail):
            session.forget_transaction()
            session.sender = Address(event.address)
            engine.accept()
        elif isinstance(event, wire.Rcpt):
            recipient = Address(event.address)
            refusal = self._refusal(recipient)
            if refusal is not None:
                engine.reply(refusal)
            else:
                suffix = session.environment.get(b"RELAYCLIENT", b"")
                session.recipients.append(Address(event.address + suffix))
                engine.accept()
        elif isinstance(event, wire.Reset):
            session.forget_transaction()
        elif isinstance(event, wire.Data):
            engine.accept()
            engine.reply(self._queue())
            session.forget_transaction()
        else:  # Connect
            engine.accept()

    def _refusal(self, recipient: Address) -> Reply | None:
        """What the rules have against this recipient."""
        try:
            for policy in self._policies:
                opinion = policy.rcpt(self._session, recipient)
                if isinstance(opinion, Reply):
                    return opinion
        except (ControlError, CDBError, OSError):
            return _NO_RULES
        return None

    def _queue(self) -> Reply:
        """Take the message that comes now; what to answer at its end."""
        session = self._session
        assert session.sender is not None
        recipients = [recipient.raw for recipient in session.recipients]
        message = self._message()
        self._message_open = True
        try:
            number = submit(self._home, message, session.sender.raw, recipients, self._environ)
        except _Refused as error:
            reply: Reply = error.args[0]
            return reply
        except QueueRefused as error:
            answer = Reply(554 if error.letter == b"D" else 451, error.text)
            message.close()
            try:
                while self._message_open:  # the client sends it all the same
                    self._chunk()
            except _Refused as refused:
                answer = refused.args[0]
            return answer
        return Reply(250, b"ok %d qp %d" % (time(), number))

    def _message(self) -> Generator[bytes, None, None]:
        yield self._session.received(b"SMTP", time())
        while self._message_open:
            yield self._chunk()

    def _chunk(self) -> bytes:
        """The next part of the message, empty at its end. _Refused when it may not be queued."""
        event = self._next()
        if isinstance(event, wire.Chunk):
            return event.data
        assert isinstance(event, wire.EndOfMessage)
        self._message_open = False
        if event.refusal is not None:
            raise _Refused(event.refusal)
        return b""


def _number(text: bytes) -> int:
    """The number that `text` begins with, 0 without one."""
    digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
    return int(digits[:18] or b"0")

"""An SMTP server on loopback for tests: its script says what it answers, and it writes down all it hears."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

HANG = None
"""A reply that never comes."""

CLOSE = b""
"""Instead of a reply, the connection is closed."""

DEFAULT: dict[str, Any] = {
    "greeting": b"220 mx.test ESMTP",
    "EHLO": b"250-mx.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 10000000",
    "HELO": b"250 mx.test",
    "MAIL": b"250 sender ok",
    "RCPT": b"250 recipient ok",
    "DATA": b"354 go ahead",
    "message": b"250-ok\r\n250 queued",
    "RSET": b"250 reset",
    "QUIT": b"221 bye",
}


class ScriptedSMTP(Factory):
    """`script` changes the replies of :data:`DEFAULT`; a list gives them one by one, the last one for ever.

    `sessions` has one list of commands per connection, `messages` the bodies as they came, end of data included, `ends`
    why connections ended (an exception's class). `tls` is what startTLS needs: TLS begins behind a reply 220 to
    STARTTLS (script ``STAR``), or with `immediate` before the greeting. Without it, a handshake gets an answer that is
    none.
    """

    noisy = False

    def __init__(self, **script: Any) -> None:
        self.script = {**DEFAULT, **script}
        self.tls: Any = None
        self.immediate = False
        self.sessions: list[list[bytes]] = []
        self.messages: list[bytes] = []
        self.ends: list[Any] = []
        self.open: list[Session] = []
        self._waiting: list[tuple[str, Deferred[None]]] = []
        self._empty: list[Deferred[None]] = []

    def buildProtocol(self, addr: Any) -> Session:
        return Session(self)

    def heard(self, step: str) -> Deferred[None]:
        """Fires when `step` comes next: a verb, ``greeting`` or ``message``."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((step, waiting))
        return waiting

    def empty(self) -> Deferred[None]:
        """Fires when no connection is open."""
        waiting: Deferred[None] = Deferred()
        if self.open:
            self._empty.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def next_reply(self, step: str) -> Any:
        reply = self.script.get(step, b"500 what?")
        if isinstance(reply, list):
            return reply.pop(0) if len(reply) > 1 else reply[0]
        return reply

    def tell(self, step: str) -> None:
        fired = [waiting for wanted, waiting in self._waiting if wanted == step]
        self._waiting = [pair for pair in self._waiting if pair[0] != step]
        for waiting in fired:
            waiting.callback(None)

    def gone(self, session: Session) -> None:
        self.open.remove(session)
        if not self.open:
            waiting, self._empty = self._empty, []
            for one in waiting:
                one.callback(None)


class Session(Protocol):
    """One connection."""

    transport: Any

    def __init__(self, server: ScriptedSMTP) -> None:
        self._server = server
        self._commands: list[bytes] = []
        self._buffer = b""
        self._in_message = False
        self._silent = False
        self._no_handshake = False

    def say(self, reply: bytes) -> None:
        """Give a reply that the script held back, and go on with the script."""
        self._silent = False
        self.transport.write(reply + b"\r\n")
        if reply.startswith(b"354"):
            self._in_message = True
        if reply.startswith((b"421", b"221")):
            self._silent = True
            self.transport.loseConnection()

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)  # so that a reply given by hand arrives at once
        self._server.open.append(self)
        self._server.sessions.append(self._commands)
        if self._server.immediate:
            self.transport.startTLS(self._server.tls)
        self._answer("greeting")

    def dataReceived(self, data: bytes) -> None:
        if self._no_handshake:
            self.transport.write(b"500 what?\r\n")
            return
        self._buffer += data
        while not self._silent and (self._in_message or b"\r\n" in self._buffer):
            if self._in_message:
                end = 3 if self._buffer.startswith(b".\r\n") else self._buffer.find(b"\r\n.\r\n") + 5
                if end == 4:
                    return
                self._server.messages.append(self._buffer[:end])
                self._buffer = self._buffer[end:]
                self._in_message = False
                self._answer("message")
            else:
                command, _, self._buffer = self._buffer.partition(b"\r\n")
                self._commands.append(command)
                self._answer(command[:4].decode("latin-1").upper())

    def connectionLost(self, reason: Failure | None = None) -> None:
        assert reason is not None
        self._server.ends.append(reason.type)
        self._server.gone(self)

    def _answer(self, step: str) -> None:
        reply = self._server.next_reply(step)
        if reply is HANG:
            self._silent = True
        elif reply == CLOSE:
            self._silent = True
            self.transport.loseConnection()
        else:
            self.say(reply)
            if step == "STAR" and reply.startswith(b"220"):
                if self._server.tls is not None:
                    self.transport.startTLS(self._server.tls)
                self._no_handshake = self._server.tls is None
        self._server.tell(step)

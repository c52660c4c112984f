"""The client's side of SMTP as a state machine: bytes from the server in, bytes to send and events out.

It knows no socket, clock or file. The shell calls :meth:`SMTPClient.receive` with what arrives, sends what
:meth:`SMTPClient.take_output` gives, and acts on the events. One connection carries any number of transactions, one
after the other; every :class:`Ready` allows the next one.

The dialogue is spec/qmail.md §15.4 with its defects repaired: EHLO first and HELO when that is refused; PIPELINING
(RFC 2920), SIZE (RFC 1870) and 8BITMIME (RFC 6152) where the server offers them; replies that make no sense break the
connection, which means "try again", never "failed for good". With STARTTLS (RFC 3207), the greeting begins anew once
the shell has started TLS; nothing that came before counts afterwards. 8-bit mail goes to a server without 8BITMIME as
it is, as qmail sends it (§26.7): nothing is converted. With a login, AUTH (RFC 4954) ends the greeting, or the session.
"""

from __future__ import annotations

import enum
import re
from collections import deque

import attrs

from qtwist.wire.dot_stuffing import DotStuffer
from qtwist.wire.sasl_client import ClientExchange, Login, choose

MAX_LINE = 2048
"""Octets of a reply line; RFC 5321 §4.5.3.1.5 has 512."""

MAX_TEXT = 5000
"""Octets of a reply's text that are kept (spec/qmail.md §15.4); what comes later is read and dropped, whole lines."""

MAX_LINES = 1000
"""Lines of one reply."""

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(-|[ \t]|$)")
_MAILMAX = re.compile(rb"(?:^|[ \t])MAILMAX=([0-9]{1,6})(?![^ \t])", re.IGNORECASE)
_TOO_MANY = re.compile(rb"[2-5][0-9][0-9][- ][45]\.5\.3\b")
_UNSAFE = re.compile(rb"[\r\n\0]")


class Stage(enum.Enum):
    """Where in the dialogue a reply belongs."""

    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    MESSAGE = "message"
    """The reply to the message itself, after the final dot (or too early, while the message is being sent)."""
    EMPTY = "empty message"
    """The reply to a lone dot: DATA was pipelined and accepted although no recipient was."""
    RSET = "RSET"
    QUIT = "QUIT"


@attrs.frozen
class Reply:
    """A whole reply: its code (200 to 599), and its lines with their codes, each ended by LF, without CR and NUL."""

    code: int
    text: bytes

    @property
    def positive(self) -> bool:
        return self.code < 300

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    @property
    def is_about_number(self) -> bool:
        """Whether this reply to RCPT is, or may be, about how many there were, or about the session, not about this
        one: RFC 5321 §3.8, §4.5.3.1.10, and X.5.3 of RFC 3463 §3.6."""
        return self.code in (421, 452, 552) or _TOO_MANY.match(self.text) is not None


@attrs.frozen
class Transaction:
    """One message to send. Addresses are as they stand between ``<`` and ``>``: quoted (spec/qmail.md §2.4).

    `size` is in octets, an estimate as RFC 1870 §5 allows; `require_tls` asks for REQUIRETLS (RFC 8689), `utf8` for
    SMTPUTF8 (RFC 6531). `asked_mail` and `asked`, one for each recipient or none at all, are parameters for a server
    that knows DSN (RFC 3461), as :mod:`qtwist.mail.asked` has them. ValueError for an address with CR, LF or NUL, which
    would be a command of its own.
    """

    sender: bytes
    recipients: tuple[bytes, ...] = attrs.field()
    size: int
    eight_bit: bool
    require_tls: bool = False
    utf8: bool = False
    asked_mail: bytes = b""
    asked: tuple[bytes, ...] = ()

    @recipients.validator
    def _check(self, _attribute: object, recipients: tuple[bytes, ...]) -> None:
        if not recipients:
            raise ValueError("no recipients")
        if any(_UNSAFE.search(address) for address in (self.sender, *recipients)):
            raise ValueError("a line end or NUL in an address")


@attrs.frozen
class Ready:
    """The server waits for a transaction."""


@attrs.frozen
class StartTLS:
    """The server waits for TLS: start it, then call :meth:`SMTPClient.secured`, or :meth:`SMTPClient.lost`."""


@attrs.frozen
class NoTLS:
    """The session is over before it began, as TLS was required: `reply` to STARTTLS; None if it is not offered."""

    reply: Reply | None


@attrs.frozen
class NoLogin:
    """The session is over before it began, as the login was not taken, or not given: why, and the `reply` to it."""

    why: str
    reply: Reply | None = None


@attrs.frozen
class NeedBody:
    """The server waits for the message: hand it to :meth:`SMTPClient.body`, then call :meth:`SMTPClient.end_body`."""


@attrs.frozen
class RecipientResult:
    """What the server says of one recipient."""

    recipient: bytes
    reply: Reply


@attrs.frozen
class Finished:
    """The transaction is over: `reply` to `stage` settled it.

    At Stage.RCPT no recipient was accepted, or the server closed the session (421). Each RCPT that was answered has
    had its :class:`RecipientResult` before.
    """

    stage: Stage
    reply: Reply


@attrs.frozen
class TooLarge:
    """The transaction is over before it began: the server told a limit (octets) that the message exceeds."""

    limit: int


@attrs.frozen
class Lacking:
    """The transaction is over before it began: it cannot do without this extension, which the server does not offer."""

    extension: bytes


@attrs.frozen
class Refused:
    """The session is over before it began: this reply to the greeting, to HELO or to STARTTLS."""

    stage: Stage
    reply: Reply


@attrs.frozen
class Broken:
    """The connection died, or is to be closed because of a reply that makes no sense.

    `stage` is the reply that was waited for. `dot_sent` tells that the server may have taken the message all the same.
    `nonsense` is the line that could not be understood, None when the connection ended or a reply did not come in time.
    """

    stage: Stage
    dot_sent: bool
    nonsense: bytes | None = None


Event = (
    Ready | StartTLS | NoTLS | NoLogin | NeedBody | RecipientResult | Finished | TooLarge | Lacking | Refused | Broken
)


class SMTPClient:
    """One connection. `helohost` is the name that EHLO and HELO tell. With `start_tls`, TLS begins where the server
    offers it; with `require_tls`, nothing is sent without. `encrypted` says that it has begun before the greeting. With
    a `login`, nothing is sent before that is taken."""

    def __init__(
        self,
        helohost: bytes,
        *,
        start_tls: bool = False,
        require_tls: bool = False,
        encrypted: bool = False,
        login: Login | None = None,
    ) -> None:
        if _UNSAFE.search(helohost) or not helohost:
            raise ValueError("not a host name")
        self._helohost = helohost
        self._start_tls = start_tls or require_tls
        self._require_tls = require_tls
        self._handshaking = False
        self._encrypted = encrypted
        self._login = login
        self._exchange: ClientExchange | None = None
        self._out: list[bytes] = []
        self._buffer = b""
        self._lines: list[bytes] = []
        self._line_count = 0
        self._text_size = 0
        self._code = 0
        self._replies = 0
        self._expected: deque[Stage] = deque((Stage.GREETING,))
        self._extensions: dict[bytes, bytes] = {}
        self._transaction: Transaction | None = None
        self._unsent: deque[bytes] = deque()  # recipients whose RCPT has not been sent
        self._unanswered: deque[bytes] = deque()  # recipients whose RCPT has
        self._accepted = 0
        self._verdict: Finished | None = None
        self._stuffer: DotStuffer | None = None
        self._dot_sent = False
        self._closed = False

    # What the shell asks.

    @property
    def closed(self) -> bool:
        """Nothing more will be sent; the shell closes the connection."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Greeted, and free for a transaction."""
        return not (self._closed or self._handshaking or self._expected or self._transaction)

    @property
    def wants_body(self) -> bool:
        """Between :class:`NeedBody` and :meth:`end_body`, unless the server has ended the message early."""
        return self._stuffer is not None and not self._closed

    @property
    def waiting(self) -> bool:
        """A reply is due."""
        return bool(self._expected)

    @property
    def replies(self) -> int:
        """How many complete replies have come: a shell with a clock allows each its time."""
        return self._replies

    @property
    def extensions(self) -> dict[bytes, bytes]:
        """What EHLO offered: keyword in capitals, its parameters. Empty after HELO."""
        return self._extensions

    @property
    def knows_dsn(self) -> bool:
        """Whether the server takes the parameters of RFC 3461."""
        return b"DSN" in self._extensions

    @property
    def most_transactions(self) -> int | None:
        """How many messages the server takes over one connection (LIMITS MAILMAX, RFC 9422 §3); None: it does not tell.

        RCPTMAX and RCPTDOMAINMAX are not looked at: whom a server refuses for their number is tried alone.
        """
        match = _MAILMAX.search(self._extensions.get(b"LIMITS", b""))
        return None if match is None else int(match[1])

    def take_output(self) -> bytes:
        """What is to be sent now; it is forgotten here."""
        if not self._out:
            return b""
        output = b"".join(self._out)
        self._out.clear()
        return output

    # What the shell tells.

    def start(self, transaction: Transaction) -> list[Event]:
        """Begin `transaction`. RuntimeError unless the engine is idle."""
        if not self.idle:
            raise RuntimeError("not ready for a transaction")
        if transaction.require_tls and not (self._encrypted and b"REQUIRETLS" in self._extensions):
            return [Lacking(b"REQUIRETLS"), Ready()]
        if transaction.utf8 and b"SMTPUTF8" not in self._extensions:
            return [Lacking(b"SMTPUTF8"), Ready()]
        limit = self._size_limit()
        if limit and transaction.size > limit:
            return [TooLarge(limit), Ready()]
        self._transaction = transaction
        self._accepted = 0
        self._verdict = None
        self._dot_sent = False
        self._unsent.extend(transaction.recipients)
        self._send(self._mail_command(transaction), Stage.MAIL)
        if b"PIPELINING" in self._extensions:
            while self._unsent:
                self._send_rcpt()
            self._send(b"DATA", Stage.DATA)
        return []

    def secured(self) -> None:
        """TLS has begun as :class:`StartTLS` wanted it. RuntimeError when it did not."""
        if not self._handshaking:
            raise RuntimeError("TLS was not asked for")
        self._handshaking = self._start_tls = self._require_tls = False
        self._encrypted = True
        self._send(b"EHLO " + self._helohost, Stage.EHLO)

    def body(self, chunk: bytes) -> None:
        """The next chunk of the message as stored. RuntimeError when no message is wanted."""
        if self._stuffer is None or self._closed:
            raise RuntimeError("no message is wanted")
        self._out.append(self._stuffer.encode(chunk))

    def end_body(self) -> None:
        """The message is complete."""
        if self._stuffer is None or self._closed:
            raise RuntimeError("no message is wanted")
        self._out.append(self._stuffer.finish())
        self._stuffer = None
        self._dot_sent = True
        self._expected.append(Stage.MESSAGE)

    def quit(self) -> None:
        """Send QUIT. RuntimeError unless the engine is idle; the connection may be closed at any time afterwards."""
        if not self.idle:
            raise RuntimeError("a transaction is running")
        self._send(b"QUIT", Stage.QUIT)

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the server. What comes after the engine has closed is dropped."""
        events: list[Event] = []
        buffer = self._buffer + data
        start = 0
        while not self._closed:
            end = buffer.find(b"\n", start)
            length = (len(buffer) if end < 0 else end) - start
            if length > MAX_LINE:
                self._break(events, buffer[start : start + MAX_LINE])
                break
            if end < 0:
                break
            self._line(events, buffer[start:end])
            start = end + 1
            if self._handshaking:
                self._begin_tls(events, buffer[start:])
                break
        self._buffer = b"" if self._closed or self._handshaking else buffer[start:]
        return events

    def lost(self) -> list[Event]:
        """The connection has ended, or a reply did not come in time."""
        events: list[Event] = []
        if not self._closed:
            self._break(events, None)
        return events

    # Replies.

    def _line(self, events: list[Event], line: bytes) -> None:
        """One reply line, without its LF; bare LF is taken as a line end, as qmail does."""
        line = line.replace(b"\r", b"")
        match = _REPLY_LINE.match(line)
        if match is None:
            self._break(events, line)
            return
        code = int(match[1])
        self._line_count += 1
        if (self._line_count > 1 and code != self._code) or self._line_count > MAX_LINES:
            self._break(events, line)
            return
        self._code = code
        self._text_size += len(line) + 1
        if self._text_size <= MAX_TEXT:
            self._lines.append(line)
        if match[2] == b"-":
            return
        text = b"".join(kept + b"\n" for kept in self._lines).replace(b"\0", b"?")
        self._lines.clear()
        self._line_count = self._text_size = 0
        self._reply(events, Reply(code, text))

    def _reply(self, events: list[Event], reply: Reply) -> None:
        self._replies += 1
        if not self._expected:
            self._unexpected(events, reply)
            return
        stage = self._expected.popleft()
        if self._transaction is not None:
            self._transaction_reply(events, stage, reply)
        elif stage is Stage.GREETING:
            if reply.code == 220:
                self._send(b"EHLO " + self._helohost, Stage.EHLO)
            else:
                self._refuse(events, stage, reply)
        elif stage is Stage.EHLO and reply.code == 250:
            self._extensions = _parse_extensions(reply.text)
            if self._start_tls and b"STARTTLS" in self._extensions:
                self._send(b"STARTTLS", Stage.STARTTLS)
            else:
                self._greeted(events)
        elif stage is Stage.AUTH:
            self._auth_reply(events, reply)
        elif stage is Stage.STARTTLS and reply.code == 220:
            self._extensions = {}
            self._handshaking = True
        elif stage is Stage.STARTTLS and reply.code >= 400:
            if reply.code == 421:
                self._refuse(events, stage, reply)
            else:
                self._greeted(events, reply)
        elif stage is Stage.EHLO and reply.permanent:
            self._send(b"HELO " + self._helohost, Stage.HELO)
        elif stage in (Stage.EHLO, Stage.HELO):
            if reply.code == 250:
                self._greeted(events)
            else:
                self._refuse(events, stage, reply)
        elif stage is Stage.STARTTLS:
            self._expected.appendleft(stage)
            self._break(events, reply.text.partition(b"\n")[0])
        elif stage is Stage.RSET and reply.positive:
            events.append(Ready())
        else:
            self._closed = True  # QUIT was answered, or the server is confused

    def _greeted(self, events: list[Event], refusal: Reply | None = None) -> None:
        """The greeting is over, without TLS if that is still wanted; `refusal` is what was said to STARTTLS."""
        if self._require_tls:
            self._out.append(b"QUIT\r\n")
            self._closed = True
            events.append(NoTLS(refusal))
        elif self._login is not None:
            self._log_in(events, self._login)
        else:
            events.append(Ready())

    def _log_in(self, events: list[Event], login: Login) -> None:
        offered = self._extensions.get(b"AUTH", b"").upper().split()
        if not (self._encrypted or login.in_clear):
            self._give_up_login(events, NoLogin("the connection is not encrypted"))
            return
        self._exchange = choose(login, offered, self._encrypted)
        if self._exchange is None:
            self._give_up_login(events, NoLogin("AUTH is not offered, or by no mechanism that we know"))
        else:
            self._send(b"AUTH " + self._exchange.command, Stage.AUTH)

    def _auth_reply(self, events: list[Event], reply: Reply) -> None:
        assert self._exchange is not None
        if reply.code == 334:
            response = self._exchange.answer(reply.text[4:].partition(b"\n")[0].strip())
            # To a challenge that makes no sense, the answer is to cancel; the reply to that ends the session.
            self._send(b"*" if response is None else response, Stage.AUTH)
            if response is None:
                self._login = None
        elif reply.code == 235 and self._login is not None and self._exchange.complete:
            self._login = None
            events.append(Ready())
        else:
            why = "the login was refused" if reply.code != 235 else "it took the login too early, as an impostor would"
            self._give_up_login(events, NoLogin(why, reply))

    def _give_up_login(self, events: list[Event], why: NoLogin) -> None:
        self._out.append(b"QUIT\r\n")
        self._closed = True
        events.append(why)

    def _begin_tls(self, events: list[Event], rest: bytes) -> None:
        """What came in the clear behind the 220 must not be taken for something said through TLS."""
        if rest:
            self._break(events, rest[:MAX_LINE])
        else:
            events.append(StartTLS())

    def _unexpected(self, events: list[Event], reply: Reply) -> None:
        """A reply that nothing asked for: the server ends a message early (too large) or an idle connection (421)."""
        if self._transaction is not None and reply.code >= 400:
            self._closed = True
            self._settle(events, Finished(Stage.MESSAGE, reply))
        else:
            self._break(events, reply.text.partition(b"\n")[0])

    def _transaction_reply(self, events: list[Event], stage: Stage, reply: Reply) -> None:
        understood = reply.code == 354 if stage is Stage.DATA else reply.positive
        if not understood and reply.code < 400 and self._verdict is None:
            self._break(events, reply.text.partition(b"\n")[0])
            return
        if reply.code == 421:
            # The server is going: no further reply will come, this one answers for them all (RFC 5321 §3.8).
            self._expected.clear()
            self._closed = True
        if stage is Stage.MAIL:
            if not understood:
                self._verdict = Finished(stage, reply)
        elif stage is Stage.RCPT:
            self._rcpt_reply(events, reply, understood)
        elif stage is Stage.DATA:
            if understood and self._verdict is None:
                self._stuffer = DotStuffer()
                events.append(NeedBody())
                return
            if understood:
                self._send(b".", Stage.EMPTY)
            elif self._verdict is None:
                self._verdict = Finished(stage, reply)
        elif stage is Stage.MESSAGE:
            self._verdict = Finished(stage, reply)
        if not self._expected:
            self._next_command(events)

    def _rcpt_reply(self, events: list[Event], reply: Reply, accepted: bool) -> None:
        recipients = [self._unanswered.popleft()]
        if self._closed:
            recipients += [*self._unanswered, *self._unsent]
        if self._verdict is not None:
            return  # MAIL was refused: what the server says of recipients means nothing
        events.extend(RecipientResult(recipient, reply) for recipient in recipients)
        self._accepted += accepted
        if self._closed or not (self._accepted or self._unanswered or self._unsent):
            self._verdict = Finished(Stage.RCPT, reply)

    def _next_command(self, events: list[Event]) -> None:
        """Every reply so far is in: go on, or end the transaction."""
        if self._verdict is not None:
            self._settle(events, self._verdict)
        elif self._unsent:
            self._send_rcpt()
        else:
            self._send(b"DATA", Stage.DATA)

    def _settle(self, events: list[Event], verdict: Finished) -> None:
        events.append(verdict)
        self._end_transaction()
        if self._closed:
            return
        if verdict.stage is Stage.MESSAGE:
            events.append(Ready())
        else:
            self._send(b"RSET", Stage.RSET)

    def _end_transaction(self) -> None:
        self._transaction = None
        self._verdict = None
        self._stuffer = None
        self._unsent.clear()
        self._unanswered.clear()

    def _refuse(self, events: list[Event], stage: Stage, reply: Reply) -> None:
        self._out.append(b"QUIT\r\n")
        self._closed = True
        events.append(Refused(stage, reply))

    def _break(self, events: list[Event], nonsense: bytes | None) -> None:
        """The connection is of no use any more. What is known stays known; the rest is to be tried again."""
        self._closed = True
        stage = self._expected[0] if self._expected else Stage.STARTTLS if self._handshaking else Stage.MESSAGE
        if self._verdict is not None:
            self._settle(events, self._verdict)
        elif self._transaction is not None or stage in (
            Stage.GREETING,
            Stage.EHLO,
            Stage.HELO,
            Stage.STARTTLS,
            Stage.AUTH,
        ):
            events.append(Broken(stage, self._dot_sent, nonsense))
            self._end_transaction()

    # Commands.

    def _send(self, command: bytes, reply: Stage) -> None:
        self._out.append(command + b"\r\n")
        self._expected.append(reply)

    def _send_rcpt(self) -> None:
        recipient = self._unsent.popleft()
        self._unanswered.append(recipient)
        command = b"RCPT TO:<%b>" % recipient
        transaction = self._transaction
        if transaction is not None and transaction.asked and self.knows_dsn:
            asked = transaction.asked[-1 - len(self._unsent)]
            if asked:
                command += b" " + asked
        self._send(command, Stage.RCPT)

    def _mail_command(self, transaction: Transaction) -> bytes:
        command = b"MAIL FROM:<%b>" % transaction.sender
        if b"SIZE" in self._extensions:
            command += b" SIZE=%d" % transaction.size
        if transaction.eight_bit and b"8BITMIME" in self._extensions:
            command += b" BODY=8BITMIME"
        if transaction.require_tls:
            command += b" REQUIRETLS"
        if transaction.utf8:
            command += b" SMTPUTF8"
        if transaction.asked_mail and self.knows_dsn:
            command += b" " + transaction.asked_mail
        if self._exchange is not None:
            command += b" AUTH=<>"
        return command

    def _size_limit(self) -> int:
        """The most octets that the server takes (RFC 1870 §4); 0 means no limit, or none told."""
        parameter = self._extensions.get(b"SIZE", b"")
        return int(parameter) if parameter.isdigit() and len(parameter) <= 20 else 0


def _parse_extensions(text: bytes) -> dict[bytes, bytes]:
    """Keyword and parameters of each line of an EHLO reply but the first (RFC 5321 §4.1.1.1)."""
    extensions: dict[bytes, bytes] = {}
    for line in text.splitlines()[1:]:
        keyword, _, parameters = line[4:].strip().partition(b" ")
        extensions[keyword.upper()] = parameters.strip()
    return extensions

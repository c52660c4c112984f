"""The server's side of SMTP as a state machine without I/O (spec/qmail.md §2.10, §16; RFC 5321, 1870, 2920, 3030,
3207, 6152).

Bytes go in by :meth:`SMTPServer.receive`, events (:mod:`qtwist.wire.smtp_events`) come out of
:meth:`SMTPServer.next_event`, bytes for the client out of :meth:`SMTPServer.data_to_send`. Connect, Helo, StartTLS,
XClient, Etrn, Mail, Rcpt, Data and EndOfMessage are questions: after one of them the machine looks at no further input
until :meth:`~SMTPServer.accept` or :meth:`~SMTPServer.reply` has answered it. So answers are in order under pipelining,
however late one of them comes.
AUTH has questions of its own (:mod:`qtwist.wire.sasl_mechanisms`). Everything else it answers itself.

The invariant: any bytes are parsed or answered with an error reply; nothing else happens.

It must not know sockets, Deferreds, files, clocks or who may do what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from qtwist.mail.address import parse_path
from qtwist.mail.domains import is_utf8
from qtwist.wire import sasl
from qtwist.wire.sasl_mechanisms import FOREIGN, Authenticating, Claimed, Confirmed, E
from qtwist.wire.smtp_body import BodyDecoder, ChunkDecoder, HopCounter
from qtwist.wire.smtp_chunking import BINARYMIME, CHUNKING, Chunk, Chunking, Data
from qtwist.wire.smtp_dsn import DSN, MAIL_DSN_CHECKS, RCPT_DSN_CHECKS
from qtwist.wire.smtp_etrn import Turning
from qtwist.wire.smtp_events import Connect, EndOfMessage, Event, Helo, Mail, Quit, Rcpt, Reset, StartTLS
from qtwist.wire.smtp_parameters import (
    MAIL_CHECKS,
    BadParameter,
    Check,
    check_any_body,
    check_mailbox,
    check_no_value,
    check_parameters,
    split_parameters,
)
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.xclient import ATTRIBUTES, Fronted, XClient

MAX_LINE = 2048  # octets of a command line before its LF
MAX_AUTH_LINE = sasl.LONGEST_LINE + 1  # the same of a client's response in AUTH, its CR included
MAX_SKIPPED = 65536  # octets of an overlong command line after which the connection is closed
MAX_ADDRESS = 899  # spec §16.3
MAX_HELO = 255  # RFC 5321 §4.5.3.1.2
MAX_HOPS = 100  # this many are too many (spec §16.6)
INPUT_ENOUGH = 65536  # unread octets from which on the shell should not read more


@attrs.frozen
class Limits:
    """Bounds of one connection. `errors` counts commands that make no sense, `refusals` the 5xx answers to commands
    that do; both start again with every accepted message. `logins` counts what was answered 535. Reaching one is
    answered 421 and ends the connection."""

    recipients: int = 10000
    errors: int = 20
    refusals: int = 100
    logins: int = 5


_BARE = Reply(554, b"bare LF, bare CR or NUL in the message: line ends are CRLF (RFC 5321 section 2.3.8) (#5.6.0)")
_NOT_CONVERTIBLE = Reply(554, b"the parts of the message cannot be told apart, so it cannot be converted (#5.6.1)")
_HOPS = Reply(554, b"this message has passed through too many hosts, it is looping (#5.4.6)")
_TOO_BIG = Reply(552, b"the message is larger than this server takes (#5.3.4)")
_PIPELINED = Reply(554, b"nothing may follow STARTTLS before TLS has begun (RFC 3207 section 4) (#5.5.1)")
_TOO_MANY = Reply(421, b"too many errors, closing the connection (#4.7.0)")
_NO_UTF8 = (553, b"with SMTPUTF8, addresses are UTF-8 (RFC 6531) (#5.6.7)")
_UNIMPLEMENTED = (502, b"unimplemented (#5.5.1)")
_WRONG_LOGIN = 535

ENHANCED = b"ENHANCEDSTATUSCODES"  # RFC 2034
SMTPUTF8 = b"SMTPUTF8"  # RFC 6531

_SASL_REPLIES = {  # RFC 4954 §4, §6
    sasl.CANCELLED: (501, b"cancelled (#5.7.0)"),
    sasl.MALFORMED: (501, b"the response is malformed (#5.5.2)"),
    sasl.TOO_LONG: (500, b"the response is too long (#5.5.6)"),
    sasl.OTHER_CHANNEL: (_WRONG_LOGIN, b"the response is bound to another channel (#5.7.8)"),
    FOREIGN: (_WRONG_LOGIN, b"nobody may act for somebody else (#5.7.8)"),
}


class SMTPServer(Authenticating, Chunking, Fronted, Turning):
    """One connection.

    `has_auth` says whether there is AUTH at all, `mechanisms` are those that it offers: to be set before an EHLO is
    accepted, empty where passwords must not come over this connection.

    `greeting` is the host name (and more) of control/smtpgreeting. `rewrite` is applied to every address that was
    parsed (localiphost, spec §16.3). `bare` goes to :class:`BodyDecoder`. `databytes`, the most octets that a message
    may have (0: any number), can be set until the connection is accepted and afterwards. `offer_tls` says that STARTTLS
    may be given, `secured` that the connection is encrypted: from the start, or since a StartTLS was accepted.

    `discard` are the keywords, in capitals, that EHLO does not announce; what they stand for is not refused, but for
    CHUNKING and DSN. To a client that has given EHLO and was told of ENHANCEDSTATUSCODES, replies begin with the
    enhanced code.

    HELO is not demanded, a second MAIL begins anew, a command may end in a bare LF: all as in qmail (§16.1, §2.10).
    That leniency cannot be used for smuggling, because a body that holds a bare LF never comes to its end in peace.
    """

    def __init__(
        self,
        greeting: bytes,
        *,
        limits: Limits | None = None,
        rewrite: Callable[[bytes], bytes] | None = None,
        bare: str = "refuse",
    ) -> None:
        self.databytes = 0
        self.discard: frozenset[bytes] = frozenset()
        self.offer_tls = False
        self.secured = False
        self.has_auth = False
        self.mechanisms: tuple[bytes, ...] = ()
        self.closed = False
        self._greeting = greeting
        self._limits = limits or Limits()
        self._rewrite = rewrite
        self._bare = bare
        self._output: list[bytes] = []
        self._input = b""
        self._at = 0
        self._arrived: list[bytes] = []
        self._unread = 0  # octets of _input from _at on, and of _arrived
        self._skipped = 0  # octets of an overlong line that were dropped
        self._question: Any = None
        self._connected = False
        self._has_sender = False
        self._utf8 = False
        self._recipients = 0
        self._body: BodyDecoder | ChunkDecoder | None = None
        self._hops = HopCounter()
        self._ended = False
        self._errors = 0
        self._refusals = 0
        self._failed_logins = 0
        self._has_login = False
        self._enhanced = False

    # What the shell calls

    def receive(self, data: bytes) -> None:
        """Take bytes from the client. They are looked at by :meth:`next_event`; after the end they are dropped."""
        if not self.closed:
            self._arrived.append(data)
            self._unread += len(data)

    @property
    def wants_input(self) -> bool:
        """False when so much lies unread that the shell should stop reading from the client for now."""
        return self._unread < INPUT_ENOUGH

    @property
    def in_message(self) -> bool:
        """True from an accepted DATA, or the first BDAT, until the message is answered."""
        return self._body is not None

    def data_to_send(self) -> bytes:
        """What to send to the client now; empty when there is nothing."""
        if not self._output:
            return b""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def next_event(self) -> Event | None:
        """The next thing that happens. None: more input is needed, a question is open, or all is over (`closed`)."""
        if not (self._connected or self.closed):
            self._connected = True
            return self._ask(Connect())
        while self._question is None and not self.closed:
            if self._arriving is not None:
                event: Event | None = self._next_of_chunk(self._arriving)
                if event is not None or self._arriving is not None:
                    return event
                continue
            if isinstance(self._body, BodyDecoder):
                return self._next_of_body(self._body)
            line = self._next_line()
            if line is None:
                return None
            event = self._response(line) if self._in_auth else self._command(line)
            if event is not None:
                return event
        return None

    def accept(self, reply: Reply | None = None) -> None:
        """Answer the open question positively, with `reply` where one is given and the protocol leaves a choice."""
        question = self._question
        if isinstance(question, Connect):
            self.reply(Reply(220, b"%s ESMTP" % self._greeting))
        elif isinstance(question, Helo):
            self.reply(Reply(250, self._capabilities() if question.extended else self._greeting))
        elif isinstance(question, StartTLS):
            self._answered(StartTLS)
            self._start_tls()
        elif isinstance(question, XClient):
            self._answered(XClient)
            self._forget_client()
        elif isinstance(question, Data):
            self._answered(Data)
            if question.chunked:
                self._begin_chunks()
            else:
                self._send(Reply(354, b"go ahead"))
                self._body = BodyDecoder(limit=self.databytes, bare=self._bare)
            self._hops = HopCounter()
            self._ended = False
        elif isinstance(question, Claimed | Confirmed):
            self.reply(Reply(235, b"ok, go ahead (#2.7.0)"))
        else:
            self.reply(reply or Reply(250, b"ok"))

    def reply(self, reply: Reply) -> None:
        """Answer the open question. A code 421 ends the connection, as do a refused Connect and a broken body.

        Data, StartTLS and XClient are answered positively by :meth:`accept` only: ValueError else.
        """
        question = self._answered(object)
        if isinstance(question, Helo):
            self._enhanced = False  # the answer to EHLO has no enhanced code (RFC 2034 section 4)
        if isinstance(question, (Data, StartTLS, XClient)) and reply.positive:
            raise ValueError("a positive answer to DATA, STARTTLS or XCLIENT is given by accept()")
        broken = False
        if isinstance(question, EndOfMessage):
            broken = isinstance(self._body, BodyDecoder) and self._body.refused
            self._body = None
            if reply.positive:
                self._errors = self._refusals = 0
        elif reply.positive:
            if isinstance(question, Mail):
                self._has_sender = True
            elif isinstance(question, Rcpt):
                self._recipients += 1
            elif isinstance(question, Claimed | Confirmed):
                self._has_login = True
        if reply.code >= 500:
            self._refusals += 1
            self._failed_logins += reply.code == _WRONG_LOGIN
            if self._refusals >= self._limits.refusals or self._failed_logins >= self._limits.logins:
                reply = _TOO_MANY
        if self._arriving is not None and reply.code != 421:
            self._arriving.answer = reply  # to DATA; the octets of the chunk come first
        else:
            self._send(reply, _STATUS.get(type(question), b"0.0"))
        if isinstance(question, Helo) and reply.positive:
            self._enhanced = question.extended and ENHANCED not in self.discard
        if reply.code == 421 or broken or (isinstance(question, Connect) and not reply.positive):
            self.close()

    def end(self, reply: Reply) -> None:
        """Say `reply` out of turn (a timeout, a shutdown) and end the connection."""
        if not self.closed:
            self._send(reply)
            self.close()

    def close(self) -> None:
        """The connection is gone, or about to go: nothing more is read, asked or answered. Harmless when repeated."""
        self.closed = True
        self._question = None
        self._in_auth = False
        self._input = b""
        self._arrived.clear()
        self._at = self._unread = 0

    # Inside

    def _ask(self, question: E) -> E:
        self._question = question
        return question

    def _answered(self, kind: type) -> Event:
        question: Event | None = self._question
        if question is None or not isinstance(question, kind):
            raise RuntimeError("there is no such question to answer")
        self._question = None
        return question

    def _send(self, reply: Reply, status: bytes = b"0.0") -> None:
        """Send `reply`, to a client that knows them with its enhanced code: `status` where it has none of its own."""
        self._output.append((reply.with_status(status) if self._enhanced else reply).to_bytes())

    def _error(self, code: int, text: bytes) -> None:
        self._errors += 1
        if self._errors >= self._limits.errors:
            self.end(_TOO_MANY)
        else:
            self._send(Reply(code, text))

    def _capabilities(self) -> bytes:
        size = b"SIZE %d" % self.databytes if self.databytes else b"SIZE"
        lines = [b"PIPELINING", b"8BITMIME", SMTPUTF8, ENHANCED, DSN, b"LIMITS RCPTMAX=%d" % self._limits.recipients]
        if self._takes_chunks:
            lines.append(CHUNKING)
        if self._takes_binary:
            lines.append(BINARYMIME)
        lines.append(size)
        if self.secured:
            lines.append(b"REQUIRETLS")
        elif self.offer_tls:
            lines.append(b"STARTTLS")
        if self.offer_etrn:
            lines.append(b"ETRN")
        if self.offer_xclient:
            lines.append(b"XCLIENT " + b" ".join(ATTRIBUTES))
        if self.mechanisms:
            lines.append(b"AUTH " + b" ".join(self.mechanisms))
        return b"\n".join([self._greeting, *(line for line in lines if line.split()[0] not in self.discard)])

    def _start_tls(self) -> None:
        if self._unread:
            # Whoever sent it did so before TLS: a man in the middle could have (CVE-2011-0411).
            self.end(_PIPELINED)
            return
        self._send(Reply(220, b"ready to start TLS"))
        self._forget_greeting()
        self.secured = True

    def _forget_greeting(self) -> None:
        self._forget()
        self.mechanisms = ()  # until the next EHLO
        self._enhanced = False

    def _forget_client(self) -> None:
        """Another client is there: what was counted of the last one, and its login, are not its own."""
        self._forget_greeting()
        self._errors = self._refusals = self._failed_logins = 0
        self._connected = self._has_login = False

    def _gather(self) -> None:
        """Bring all that has arrived into _input."""
        if self._arrived:
            if self._at < len(self._input):
                self._arrived.insert(0, self._input[self._at :])
            self._input = b"".join(self._arrived) if len(self._arrived) > 1 else self._arrived[0]
            self._arrived.clear()
            self._at = 0

    def _next_of_body(self, body: BodyDecoder) -> Event | None:
        if not self._ended:
            self._gather()
            data = self._input[self._at :] if self._at else self._input
            if not data:
                return None
            text, rest = body.feed(data)
            self._input, self._at = rest or b"", 0
            self._unread = len(self._input)
            self._ended = rest is not None
            self._hops.feed(text)
            if text and not body.too_big:
                return Chunk(text)
            if not self._ended:
                return None
        return self._ask_end(body)

    def _ask_end(self, body: BodyDecoder | ChunkDecoder) -> EndOfMessage:
        refusal = None
        hops = self._hops.hops
        if body.refused:
            refusal = _NOT_CONVERTIBLE if getattr(body, "not_convertible", False) else _BARE
        elif hops >= MAX_HOPS:
            refusal = _HOPS
        elif body.too_big:
            refusal = _TOO_BIG
        return self._ask(EndOfMessage(body.size, hops, refusal))

    def _take(self, most: int) -> bytes:
        """What there is of the input, up to `most` octets."""
        if self._at == len(self._input):
            self._gather()
        data = self._input[self._at : self._at + most]
        self._at += len(data)
        self._unread -= len(data)
        return data

    def _next_line(self) -> bytes | None:
        end = self._input.find(b"\n", self._at)
        if end < 0 and self._arrived:
            self._gather()
            end = self._input.find(b"\n", self._at)
        longest = MAX_AUTH_LINE if self._in_auth else MAX_LINE
        if end < 0:
            if self._unread > longest:
                self._skipped += self._unread
                self._input, self._at, self._unread = b"", 0, 0
                if self._skipped > MAX_SKIPPED:
                    self.end(_TOO_MANY)
            return None
        length = self._skipped + end - self._at
        line = self._input[self._at : end]
        self._unread -= end + 1 - self._at
        self._at = end + 1
        self._skipped = 0
        if length > MAX_SKIPPED:
            self.end(_TOO_MANY)
            return None
        # An overlong line is handed on too long as it is, so that _command sees it.
        return line if length <= longest else b"\0"

    def _response(self, line: bytes) -> Event | None:
        """A line of the client's in the middle of AUTH."""
        if b"\0" not in line:
            return self._auth_line(line.removesuffix(b"\r"))
        self._in_auth = False
        self._auth_failed(sasl.TOO_LONG)
        return None

    def _command(self, line: bytes) -> Event | None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if b"\0" in line:
            self._error(500, b"the line is too long, or has a NUL in it (#5.5.2)")
            return None
        verb, _, argument = line.partition(b" ")
        method = _COMMANDS.get(verb.upper())
        if method is None:
            self._error(*_UNIMPLEMENTED)
            return None
        if self._body is not None and method not in _BETWEEN_CHUNKS:
            self._error(503, b"a message is coming by BDAT: go on, or RSET (#5.5.1)")
            return None
        return method(self, argument.lstrip(b" "))

    def _helo(self, name: bytes, extended: bool = False) -> Event | None:
        if len(name) > MAX_HELO:
            self._error(501, b"the name is too long (#5.5.4)")
            return None
        self._forget()
        return self._ask(Helo(name, extended))

    def _ehlo(self, name: bytes) -> Event | None:
        return self._helo(name, extended=True)

    def _starttls(self, argument: bytes) -> Event | None:
        """RFC 3207 §4: no parameters, and nothing behind it until TLS has begun."""
        if self.secured:
            self._error(503, b"TLS has begun already (#5.5.1)")
        elif not self.offer_tls:
            self._error(*_UNIMPLEMENTED)
        elif self._has_login:
            self._error(503, b"TLS comes before AUTH (#5.5.1)")
        elif argument:
            self._error(501, b"STARTTLS has no parameters (#5.5.4)")
        elif self._unread:
            self.end(_PIPELINED)
        else:
            return self._ask(StartTLS())
        return None

    def _mail(self, argument: bytes) -> Event | None:
        parsed = self._parse(argument)
        if parsed is None:
            return None
        address, params = parsed
        if params and not self._good(params, self._mail_checks()):
            return None
        if SMTPUTF8 in params and not is_utf8(address):
            self._error(*_NO_UTF8)
            return None
        params.pop(b"AUTH", None)  # nobody here is trusted to say who the sender is
        self._forget()
        if self.databytes and int(params.get(b"SIZE", b"0")) > self.databytes:
            self._send(_TOO_BIG)
            return None
        self._utf8 = SMTPUTF8 in params
        self._binary = params.get(b"BODY", b"").upper() == BINARYMIME
        return self._ask(Mail(address, params))

    def _mail_checks(self) -> dict[bytes, Check]:
        """What MAIL may have on this connection."""
        checks = MAIL_CHECKS | MAIL_DSN_CHECKS if DSN not in self.discard else dict(MAIL_CHECKS)
        if self._takes_binary:
            checks[b"BODY"] = check_any_body
        if self.mechanisms:
            checks[b"AUTH"] = check_mailbox
        if self.secured:
            checks[b"REQUIRETLS"] = check_no_value
        return checks

    def _good(self, params: dict[bytes, bytes], checks: dict[bytes, Check]) -> bool:
        """Whether `checks` let `params` pass; the client has got an error else."""
        try:
            check_parameters(params, checks)
        except BadParameter as bad:
            self._error(bad.code, bad.text)
            return False
        return True

    def _rcpt(self, argument: bytes) -> Event | None:
        if not self._has_sender:
            self._error(503, b"MAIL first (#5.5.1)")
            return None
        parsed = self._parse(argument)
        if parsed is None:
            return None
        address, params = parsed
        if not address:
            self._error(501, b"a recipient is needed (#5.1.3)")
        elif params and not self._good(params, {} if DSN in self.discard else RCPT_DSN_CHECKS):
            pass
        elif self._utf8 and not is_utf8(address):
            self._error(*_NO_UTF8)
        elif self._recipients >= self._limits.recipients:
            self._send(Reply(452, b"too many recipients for one message (#4.5.3)"))
        else:
            return self._ask(Rcpt(address, params))
        return None

    def _auth(self, argument: bytes) -> Event | None:
        words = argument.split()
        if not self.has_auth:
            self._error(*_UNIMPLEMENTED)
        elif not self.mechanisms:
            if self.secured:
                self._error(503, b"EHLO tells whether there is AUTH here (#5.5.1)")
            else:
                self._error(538, b"logins are taken over an encrypted connection only (#5.7.11)")
        elif self._has_login:
            self._error(503, b"you have logged in already (#5.5.1)")
        elif self._has_sender:
            self._error(503, b"not in the middle of a transaction (#5.5.1)")
        elif not 1 <= len(words) <= 2:
            self._error(501, b"a mechanism and at most one response are needed (#5.5.4)")
        elif words[0].upper() not in self.mechanisms:
            self._error(504, b"no such mechanism (#5.5.4)")
        else:
            return self._auth_begin(words[0], words[1] if len(words) > 1 else None)
        return None

    def _challenge(self, text: bytes) -> None:
        self._send(Reply(334, text))

    def _auth_failed(self, kind: str) -> None:
        self._error(*_SASL_REPLIES[kind])

    def _parse(self, argument: bytes) -> tuple[bytes, dict[bytes, bytes]] | None:
        """Address and parameters of MAIL or RCPT; None when the client has got an error instead."""
        if b"<" not in argument and b":" not in argument:
            # qmail takes this for the empty address (spec §26.7): nobody means that.
            self._error(501, b"an address in <> is needed (#5.5.4)")
            return None
        address, rest = parse_path(argument)
        if self._rewrite is not None:
            address = self._rewrite(address)
        if len(address) > MAX_ADDRESS:
            self._error(555, b"the address is too long (#5.5.4)")
            return None
        if b"\r" in address:
            # It would come out again in other servers' SMTP dialogues and header lines.
            self._error(501, b"a CR cannot be part of an address (#5.1.3)")
            return None
        try:
            return address, split_parameters(rest)
        except BadParameter as bad:
            self._error(bad.code, bad.text)
            return None

    def _data(self, argument: bytes) -> Event | None:
        if not self._has_sender:
            self._error(503, b"MAIL first (#5.5.1)")
        elif not self._recipients:
            self._error(503, b"RCPT first (#5.5.1)")
        elif self._binary:
            self._error(503, b"BINARYMIME comes by BDAT (#5.5.1)")
        else:
            self._forget()
            return self._ask(Data())
        return None

    def _rset(self, argument: bytes) -> Event | None:
        self._forget()
        self._send(Reply(250, b"flushed"))
        return Reset()

    def _noop(self, argument: bytes) -> Event | None:
        self._send(Reply(250, b"ok"))
        return None

    def _vrfy(self, argument: bytes) -> Event | None:
        self._send(Reply(252, b"send the mail and see (#2.5.0)"))
        return None

    def _help(self, argument: bytes) -> Event | None:
        self._send(Reply(214, b"qtwist, SMTP as in RFC 5321: https://www.rfc-editor.org/rfc/rfc5321"))
        return None

    def _quit(self, argument: bytes) -> Event | None:
        self.end(Reply(221, self._greeting))
        return Quit()

    def _forget(self) -> None:
        self._has_sender = False
        self._recipients = 0
        self._body = None


_COMMANDS: dict[bytes, Callable[[SMTPServer, bytes], Event | None]] = {
    b"HELO": SMTPServer._helo,
    b"EHLO": SMTPServer._ehlo,
    b"STARTTLS": SMTPServer._starttls,
    b"AUTH": SMTPServer._auth,
    b"ETRN": SMTPServer._etrn,
    b"XCLIENT": SMTPServer._xclient,
    b"MAIL": SMTPServer._mail,
    b"RCPT": SMTPServer._rcpt,
    b"DATA": SMTPServer._data,
    b"BDAT": SMTPServer._bdat,
    b"RSET": SMTPServer._rset,
    b"NOOP": SMTPServer._noop,
    b"VRFY": SMTPServer._vrfy,
    b"HELP": SMTPServer._help,
    b"QUIT": SMTPServer._quit,
}

#: Subject and detail of what a client is told where the text does not say (RFC 3463 §3).
_STATUS: dict[type, bytes] = {Mail: b"1.0", Rcpt: b"1.5", Claimed: b"7.0", Confirmed: b"7.0"}

_BETWEEN_CHUNKS = frozenset(
    _COMMANDS[name] for name in (b"BDAT", b"RSET", b"HELO", b"EHLO", b"NOOP", b"VRFY", b"HELP", b"QUIT")
)

"""The server's side of POP3 as a state machine without I/O (spec/qmail.md §2.10, §18; RFC 1939, 2449, 2595, 3206,
5034).

Bytes go in by :meth:`POP3Server.receive`, events come out of :meth:`POP3Server.next_event`, bytes for the client out of
:meth:`POP3Server.data_to_send`. All but Listing and Quit are questions: after one of them the machine looks at no
further input until it is answered, so that answers are in order under pipelining, however late one of them comes.
Everything else it answers itself; it keeps the marks of DELE, too: they end with the session.

The invariant: any bytes are parsed or answered with -ERR; nothing else happens.

It must not know sockets, Deferreds, files, clocks, or who may log in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from qtwist.wire import sasl
from qtwist.wire.pop3_events import (
    Event,
    Finish,
    Listing,
    Login,
    MechanismsWanted,
    Quit,
    Retrieve,
    SizesWanted,
    StartTLS,
    UidsWanted,
)
from qtwist.wire.pop3_message import MessageEncoder
from qtwist.wire.sasl_mechanisms import BY_PASSWORD, FOREIGN, MECHANISMS, Authenticating, Claimed, Confirmed, E

MAX_LINE = 4352  # octets of a line before its LF: the longest response of SASL, and its command
MAX_SKIPPED = 65536  # octets of an overlong line after which the connection is closed
MAX_ARGUMENT = 1024  # octets of a name or password, as in SASL
INPUT_ENOUGH = 65536  # unread octets from which on the shell should not read more
LISTED_AT_ONCE = 1000  # lines of LIST and UIDL between two events
_MOST_DIGITS = 10

TEMPORARY = b"SYS/TEMP"  # RFC 3206 §4
PERMANENT = b"SYS/PERM"  # RFC 3206 §4
BAD_CREDENTIALS = b"AUTH"  # RFC 3206 §5
IN_USE = b"IN-USE"  # RFC 2449 §8.1.2


@attrs.frozen
class Limits:
    """Bounds of one connection: failed logins, and commands that make no sense. Reaching one ends the connection."""

    logins: int = 5
    errors: int = 50


_Login = Login | Claimed | Confirmed

_CAPABILITIES = (
    b"TOP",
    b"UIDL",
    b"PIPELINING",
    b"RESP-CODES",
    b"AUTH-RESP-CODE",
    b"UTF8 USER",
    b"EXPIRE NEVER",
    b"IMPLEMENTATION qtwist",
)

_PIPELINED = b"nothing may follow STLS before TLS has begun"
_DELETED, _RETRIEVED = 1, 2


class POP3Server(Authenticating):
    """One connection.

    `timestamp` is what APOP is computed with, angle brackets included (RFC 1939 §7); it ends the greeting. `secured`
    says whether the connection is encrypted: from the start, or since a StartTLS was answered; `plaintext` whether
    passwords may be sent in the clear where it is not; `offer_tls` whether STLS may be given. `mechanisms` are those of
    SASL that work here, None when they are to be asked for.
    """

    def __init__(
        self,
        timestamp: bytes,
        *,
        secured: bool = False,
        plaintext: bool = False,
        limits: Limits | None = None,
        mechanisms: tuple[bytes, ...] | None = BY_PASSWORD,
    ) -> None:
        self.timestamp = timestamp
        self.secured = secured
        self.offer_tls = False
        self.mechanisms = self._given_mechanisms = mechanisms
        self.closed = False
        self.utf8 = False
        self._plaintext = plaintext
        self._limits = limits or Limits()
        self._output: list[bytes] = []
        self._input = b""
        self._at = 0
        self._arrived: list[bytes] = []
        self._unread = 0  # octets of _input from _at on, and of _arrived
        self._skipped = 0  # octets of an overlong line that were dropped
        self._question: Any = None
        self._again: Callable[[], Event | None] | None = None  # the command that waits for sizes or ids
        self._listing: Iterator[bytes] | None = None
        self._encoder: MessageEncoder | None = None
        self._username: bytes | None = None
        self._failed_logins = 0
        self._errors = 0
        # The transaction
        self._marks: bytearray | None = None  # of each message
        self._sizes: Sequence[int] | None = None
        self._uids: Sequence[bytes] | None = None
        self._deleted = 0
        self._octets = 0  # of the messages not deleted, once the sizes are known
        self._last = 0
        self._top_lines: int | None = None

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
    def in_transaction(self) -> bool:
        """True from a login on: there may be marks that only QUIT makes good."""
        return self._marks is not None

    @property
    def may_use_plaintext(self) -> bool:
        """Whether passwords may be sent over this channel as they are."""
        return self.secured or self._plaintext

    def data_to_send(self) -> bytes:
        """What to send to the client now; empty when there is nothing."""
        if not self._output:
            return b""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def next_event(self) -> Event | None:
        """The next thing that happens. None: more input is needed, a question is open, or all is over (`closed`)."""
        while self._question is None and not self.closed:
            if self._listing is not None:
                block = next(self._listing, None)
                if block is not None:
                    self._output.append(block)
                    return Listing()
                self._listing = None
                self._output.append(b".\r\n")
                continue
            if self._again is not None:
                again, self._again = self._again, None
                event = again()
            else:
                line = self._next_line()
                if line is None:
                    return None
                event = self._handle(line)
            if event is not None:
                return event
        return None

    # Answers

    def greet(self) -> None:
        """Say that the client is welcome (spec §18.1)."""
        self._ok(self.timestamp)

    def start_tls(self) -> None:
        """Answer StartTLS: yes. The shell sends what there is to send and starts TLS at once; what the machine is given
        next must have come through TLS, and what the client has said so far is forgotten (RFC 2595 §4)."""
        self._answered(StartTLS)
        if self._unread:
            # Whoever sent it did so before TLS: a man in the middle could have (CVE-2011-0411).
            self.end(_PIPELINED)
            return
        self._ok(b"begin TLS now")
        self._username = None
        self.utf8 = False
        self.mechanisms = self._given_mechanisms  # where they are asked for, there may be others now
        self.secured = True

    def logged_in(self, count: int) -> None:
        """Answer Login: the maildrop is open and has `count` messages."""
        self._answered(_Login)
        self._marks = bytearray(count)
        self._username = None
        self._ok()

    def give_mechanisms(self, mechanisms: tuple[bytes, ...]) -> None:
        """Answer MechanismsWanted, with names that :data:`qtwist.wire.sasl_mechanisms.MECHANISMS` has."""
        self._answered(MechanismsWanted)
        self.mechanisms = mechanisms

    def give_sizes(self, sizes: Sequence[int]) -> None:
        """Answer SizesWanted. They are kept and not changed."""
        self._answered(SizesWanted)
        marks = self._transaction
        self._sizes = sizes
        self._octets = sum(sizes)
        if self._deleted:
            self._octets -= sum(size for size, mark in zip(sizes, marks, strict=True) if mark & _DELETED)

    def give_uids(self, uids: Sequence[bytes]) -> None:
        """Answer UidsWanted. They are kept and not changed."""
        self._answered(UidsWanted)
        self._uids = uids

    def begin_message(self) -> None:
        """Answer Retrieve: the message comes now, by :meth:`message_part`; :meth:`end_message` ends it."""
        if not isinstance(self._question, Retrieve) or self._encoder is not None:
            raise RuntimeError("no message was asked for")
        self._ok()
        self._encoder = MessageEncoder(None if self._question.whole else self._top_lines)

    def message_part(self, data: bytes) -> bool:
        """The next octets of the stored message; whether the client wants more of it."""
        if self._encoder is None:
            raise RuntimeError("no message has begun")
        self._output.append(self._encoder.encode(data))
        return not self._encoder.complete

    def end_message(self) -> None:
        """The message is complete, or :meth:`message_part` wants no more of it."""
        question = self._answered(Retrieve)
        assert isinstance(question, Retrieve) and self._encoder is not None
        self._output.append(self._encoder.finish())
        self._encoder = None
        if question.whole:
            self._transaction[question.index] |= _RETRIEVED

    def finished(self, failed: int) -> None:
        """Answer Finish: so many of the messages could not be removed. The connection is over."""
        self._answered(Finish)
        if failed:
            self._err(b"%d deleted messages could not be removed" % failed)
        else:
            self._ok()
        self.close()

    def refuse(self, text: bytes, code: bytes = b"") -> None:
        """Answer the open question with -ERR; `code` is a response code without its brackets (RFC 2449 §8)."""
        question = self._answered(object)
        if self._encoder is not None:
            raise RuntimeError("the message has begun")
        self._again = None
        self._err(text, code)
        if isinstance(question, _Login):
            self._failed_logins += 1
            if self._failed_logins >= self._limits.logins:
                self.close()
        elif isinstance(question, Finish):
            self.close()

    def end(self, text: bytes, code: bytes = b"") -> None:
        """Say -ERR out of turn (a shutdown) and end the connection."""
        if not self.closed:
            self._err(text, code)
            self.close()

    def close(self) -> None:
        """The connection is gone, or about to go: nothing more is read, asked or answered. Harmless when repeated."""
        self.closed = True
        self._question = self._again = self._listing = self._encoder = self._exchange = None
        self._in_auth = False
        self._input = b""
        self._arrived.clear()
        self._at = self._unread = 0

    # Inside

    @property
    def _transaction(self) -> bytearray:
        assert self._marks is not None
        return self._marks

    def _ask(self, question: E) -> E:
        self._question = question
        return question

    def _answered(self, kind: Any) -> Event:
        question: Event | None = self._question
        if question is None or not isinstance(question, kind):
            raise RuntimeError("there is no such question to answer")
        self._question = None
        return question

    def _ok(self, text: bytes = b"") -> None:
        self._output.append(b"+OK %s\r\n" % text)

    def _err(self, text: bytes, code: bytes = b"") -> None:
        """A negative answer. No text can forge a second one."""
        text = text.translate(None, b"\r\n\0")
        self._output.append(b"-ERR [%s] %s\r\n" % (code, text) if code else b"-ERR %s\r\n" % text)

    def _error(self, text: bytes) -> None:
        """A command that makes no sense."""
        self._errors += 1
        if self._errors >= self._limits.errors:
            self.end(b"too many errors")
        else:
            self._err(text)

    def _next_line(self) -> bytes | None:
        """The next line without its end, too long as it is if it is; None when there is none yet."""
        end = self._input.find(b"\n", self._at)
        if end < 0 and self._arrived:
            self._arrived.insert(0, self._input[self._at :])
            self._input = b"".join(self._arrived)
            self._arrived.clear()
            self._at = 0
            end = self._input.find(b"\n")
        if end < 0:
            if self._unread > MAX_LINE + 1:  # one more for the CR
                self._skipped += self._unread
                self._input, self._at, self._unread = b"", 0, 0
                if self._skipped > MAX_SKIPPED:
                    self.end(b"the line is too long")
            return None
        length = self._skipped + end - self._at
        line = self._input[self._at : end]
        self._unread -= end + 1 - self._at
        self._at = end + 1
        self._skipped = 0
        if length > MAX_SKIPPED:
            self.end(b"the line is too long")
            return None
        if line.endswith(b"\r"):
            line = line[:-1]
            length -= 1
        return line if length <= MAX_LINE else b"\0"

    def _handle(self, line: bytes) -> Event | None:
        if b"\0" in line:
            self._in_auth = False
            self._error(b"the line is too long, or has a NUL in it")
            return None
        if self._in_auth:
            return self._auth_line(line)
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        method = (_BEFORE_LOGIN if self._marks is None else _AFTER_LOGIN).get(verb)
        if method is not None:
            return method(self, argument)
        if verb in _AFTER_LOGIN:
            self._error(b"log in first")
        elif verb in _BEFORE_LOGIN:
            self._error(b"you have logged in already")
        else:
            self._error(b"no such command")
        return None

    # Both states

    def _capa(self, argument: bytes) -> Event | None:
        lines = list(_CAPABILITIES)
        if self.may_use_plaintext:
            if self.mechanisms is None:
                return self._wait_for(MechanismsWanted(), lambda: self._capa(argument))
            lines.append(b"USER")
            if self.mechanisms:
                lines.append(b"SASL " + b" ".join(self.mechanisms))
        if self.offer_tls and not self.secured:
            lines.append(b"STLS")
        self._ok()
        self._output.append(b"".join(line + b"\r\n" for line in lines) + b".\r\n")
        return None

    def _noop(self, argument: bytes) -> None:
        self._ok()

    # AUTHORIZATION (RFC 1939 §4)

    def _stls(self, argument: bytes) -> Event | None:
        """RFC 2595 §4: before a login only, and nothing behind it until TLS has begun."""
        if self.secured:
            self._error(b"TLS has begun already")
        elif not self.offer_tls:
            self._error(b"no such command")
        elif argument:
            self._error(b"STLS has no argument")
        elif self._unread:
            self.end(_PIPELINED)
        else:
            return self._ask(StartTLS())
        return None

    def _plaintext_refused(self) -> bool:
        if self.may_use_plaintext:
            return False
        self._username = None
        self._err(b"passwords are taken over an encrypted connection only, or by APOP", PERMANENT)
        return True

    def _user(self, argument: bytes) -> None:
        if self._plaintext_refused():
            return
        name = argument.strip(b" ")
        if not name or len(name) > MAX_ARGUMENT:
            self._error(b"a name of at most %d octets is needed" % MAX_ARGUMENT)
            return
        self._username = name
        self._ok()

    def _pass(self, argument: bytes) -> Event | None:
        if self._plaintext_refused():
            return None
        username, self._username = self._username, None
        if username is None:
            self._error(b"USER first")
        elif not argument or len(argument) > MAX_ARGUMENT:
            self._error(b"a password of at most %d octets is needed" % MAX_ARGUMENT)
        else:
            # RFC 1939 section 7: spaces after the first one are part of the password.
            return self._ask(Login(username, argument, None, "USER"))
        return None

    def _apop(self, argument: bytes) -> Event | None:
        name, _, digest = argument.strip(b" ").rpartition(b" ")
        name = name.rstrip(b" ")
        if not name or len(name) > MAX_ARGUMENT or len(digest) != 32 or digest.strip(b"0123456789abcdefABCDEF"):
            self._error(b"a name and 32 hexadecimal digits are needed")
            return None
        self._username = None
        return self._ask(Login(name, None, digest, "APOP"))

    def _auth(self, argument: bytes) -> Event | None:
        words = argument.split()
        if self.may_use_plaintext and self.mechanisms is None:
            return self._wait_for(MechanismsWanted(), lambda: self._auth(argument))
        offered = (self.mechanisms or ()) if self.may_use_plaintext else ()
        if not words:
            # Older than RFC 5034, and still tried by clients: the mechanisms, one a line.
            self._ok()
            self._output.append(b"".join(name + b"\r\n" for name in offered) + b".\r\n")
        elif len(words) > 2:
            self._error(b"a mechanism and at most one response are needed")
        elif words[0].upper() in offered:
            self._username = None
            return self._auth_begin(words[0], words[1] if len(words) > 1 else None)
        elif words[0].upper() not in MECHANISMS or not self._plaintext_refused():
            self._error(b"no such mechanism")
        return None

    def _challenge(self, text: bytes) -> None:
        self._output.append(b"+ %s\r\n" % text)

    def _auth_failed(self, kind: str) -> None:
        if kind == sasl.CANCELLED:
            self._err(b"cancelled")
        elif kind == FOREIGN:
            self._error(b"nobody may act for somebody else")
        else:
            self._error(b"the response is " + kind.encode("ascii"))

    def _utf8(self, argument: bytes) -> None:
        """RFC 6856 §2.1. Messages go out as they are stored in either mode; the client has said that it is ready."""
        self.utf8 = True
        self._ok()

    def _quit_early(self, argument: bytes) -> Event | None:
        self._ok()
        self.close()
        return Quit()

    # TRANSACTION (RFC 1939 §5)

    def _number(self, word: bytes) -> int | None:
        """The index of the message that `word` names; None when the client has got an error instead."""
        marks = self._transaction
        if not word.isdigit():
            self._error(b"a message number is needed")
            return None
        number = int(word) if len(word) <= _MOST_DIGITS else len(marks) + 1
        if not number:
            self._err(b"messages are counted from 1")
        elif number > len(marks):
            self._err(b"there are not so many messages")
        elif marks[number - 1] & _DELETED:
            self._err(b"that message is deleted")
        else:
            return number - 1
        return None

    def _wait_for(self, question: Event, again: Callable[[], Event | None]) -> Event:
        self._again = again
        return self._ask(question)

    def _stat(self, argument: bytes) -> Event | None:
        if self._sizes is None:
            return self._wait_for(SizesWanted(), lambda: self._stat(argument))
        self._ok(b"%d %d" % (len(self._transaction) - self._deleted, self._octets))
        return None

    def _list(self, argument: bytes) -> Event | None:
        if self._sizes is None:
            return self._wait_for(SizesWanted(), lambda: self._list(argument))
        self._show(self._sizes, b"%d %d", argument)
        return None

    def _uidl(self, argument: bytes) -> Event | None:
        if self._uids is None:
            return self._wait_for(UidsWanted(), lambda: self._uidl(argument))
        self._show(self._uids, b"%d %s", argument)
        return None

    def _show(self, values: Sequence[object], form: bytes, argument: bytes) -> None:
        """One value, or all of them."""
        word = argument.strip(b" ")
        if word:
            index = self._number(word)
            if index is not None:
                self._ok(form % (index + 1, values[index]))
        else:
            self._ok()
            self._listing = self._lines(values, form + b"\r\n")

    def _lines(self, values: Sequence[object], form: bytes) -> Iterator[bytes]:
        marks = self._transaction
        for start in range(0, len(marks), LISTED_AT_ONCE):
            shown = range(start, min(start + LISTED_AT_ONCE, len(marks)))
            yield b"".join([form % (index + 1, values[index]) for index in shown if not marks[index] & _DELETED])

    def _retr(self, argument: bytes) -> Event | None:
        index = self._number(argument.strip(b" "))
        return None if index is None else self._ask(Retrieve(index, True))

    def _top(self, argument: bytes) -> Event | None:
        words = argument.split()
        lines = words[1] if len(words) > 1 else b""
        if len(words) > 2 or (lines and not lines.isdigit()):
            self._error(b"a message number and a number of lines are needed")
            return None
        index = self._number(words[0] if words else b"")
        if index is None:
            return None
        # Without the second number the whole message is sent, as qmail-pop3d does (section 18.2); that is no RETR.
        self._top_lines = min(int(lines[:_MOST_DIGITS]), 1 << 32) if lines else None
        return self._ask(Retrieve(index, False))

    def _dele(self, argument: bytes) -> None:
        index = self._number(argument.strip(b" "))
        if index is not None:
            self._transaction[index] |= _DELETED
            self._deleted += 1
            if self._sizes is not None:
                self._octets -= self._sizes[index]
            self._last = max(self._last, index + 1)
            self._ok()

    def _rset(self, argument: bytes) -> None:
        marks = self._transaction
        self._marks = marks.translate(_UNDELETE)
        self._deleted = self._last = 0
        if self._sizes is not None:
            self._octets = sum(self._sizes)
        self._ok()

    def _last_number(self, argument: bytes) -> None:
        """The highest number deleted so far, as qmail-pop3d has it (§18.2)."""
        self._ok(b"%d" % self._last)

    def _quit(self, argument: bytes) -> Event | None:
        marks = self._transaction
        deleted = tuple(index for index, mark in enumerate(marks) if mark & _DELETED) if self._deleted else ()
        retrieved = tuple(index for index, mark in enumerate(marks) if mark == _RETRIEVED)
        return self._ask(Finish(deleted, retrieved))


_UNDELETE = bytes(mark & ~_DELETED for mark in range(256))

_Command = Callable[[POP3Server, bytes], Event | None]

_BEFORE_LOGIN: dict[bytes, _Command] = {
    b"USER": POP3Server._user,
    b"PASS": POP3Server._pass,
    b"APOP": POP3Server._apop,
    b"AUTH": POP3Server._auth,
    b"STLS": POP3Server._stls,
    b"UTF8": POP3Server._utf8,
    b"CAPA": POP3Server._capa,
    b"NOOP": POP3Server._noop,
    b"QUIT": POP3Server._quit_early,
}

_AFTER_LOGIN: dict[bytes, _Command] = {
    b"STAT": POP3Server._stat,
    b"LIST": POP3Server._list,
    b"UIDL": POP3Server._uidl,
    b"RETR": POP3Server._retr,
    b"TOP": POP3Server._top,
    b"DELE": POP3Server._dele,
    b"RSET": POP3Server._rset,
    b"LAST": POP3Server._last_number,
    b"CAPA": POP3Server._capa,
    b"NOOP": POP3Server._noop,
    b"QUIT": POP3Server._quit,
}

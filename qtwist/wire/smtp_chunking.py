"""BDAT, as the part of an SMTP server's engine that takes messages in chunks (RFC 3030 §2, §4.2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from qtwist.wire.smtp_body import BinaryDecoder, BodyDecoder, ChunkDecoder, HopCounter
from qtwist.wire.smtp_reply import Reply

CHUNKING = b"CHUNKING"
BINARYMIME = b"BINARYMIME"

_ARGUMENT = re.compile(rb"([0-9]{1,20})(?:[ \t]+(LAST))?[ \t]*", re.IGNORECASE)

_MALFORMED = Reply(501, b"BDAT has a number of octets, and LAST or nothing (#5.5.4)")


@attrs.frozen
class Data:
    """A question: may the message come? The transaction is over in the machine, whatever the answer. `chunked` says
    that it comes by BDAT, so that the first octets of it are on their way already."""

    chunked: bool = False


@attrs.frozen
class Chunk:
    """The next octets of the message, with LF line ends, transparency removed."""

    data: bytes


@attrs.define
class _Arriving:
    """A chunk of BDAT: how many octets are to come, and what is said behind them where it cannot be taken. `counts`
    tells that the answer is for a client that makes no sense."""

    left: int
    last: bool
    answer: Reply | None = None
    finished: bool = False
    counts: bool = False


class Chunking:
    """What the engine needs to take BDAT.

    The octets of every chunk are consumed before its answer, be it refused or out of place, so that they are never
    read as commands. Where their number cannot be read, the connection ends. Between chunks nothing is taken that
    belongs to another transaction; RSET, HELO and EHLO end the message.
    """

    #: Set by the shell that can let go of a message at RSET.
    offer_chunking = False

    _arriving: _Arriving | None = None
    _body: BodyDecoder | ChunkDecoder | None
    _hops: HopCounter
    _has_sender: bool
    _binary = False  # the message comes as BINARYMIME
    _recipients: int
    databytes: int
    discard: frozenset[bytes]

    _send: Callable[[Reply], None]
    _error: Callable[[int, bytes], None]
    _forget: Callable[[], None]
    _take: Callable[[int], bytes]
    _ask_end: Callable[[Any], Any]
    end: Callable[[Reply], None]

    @property
    def _takes_chunks(self) -> bool:
        return self.offer_chunking and CHUNKING not in self.discard

    @property
    def _takes_binary(self) -> bool:
        """Only what comes by BDAT can be binary (RFC 3030 §3)."""
        return self._takes_chunks and BINARYMIME not in self.discard

    def _ask(self, question: Any) -> Any:
        raise NotImplementedError

    def _bdat(self, argument: bytes) -> Data | None:
        match = _ARGUMENT.fullmatch(argument)
        if match is None:
            # Nobody can tell where the next command begins.
            self.end(_MALFORMED)
            return None
        self._arriving = one = _Arriving(int(match[1]), match[2] is not None)
        if not self._takes_chunks:
            one.answer = Reply(502, b"unimplemented (#5.5.1)")
        elif self._body is not None:
            return None  # it goes on
        elif not self._has_sender:
            one.answer = Reply(503, b"MAIL first (#5.5.1)")
        elif not self._recipients:
            one.answer = Reply(503, b"RCPT first (#5.5.1)")
        else:
            self._forget()
            asked: Data = self._ask(Data(chunked=True))
            return asked
        one.counts = True
        return None

    def _begin_chunks(self) -> None:
        """The message may come."""
        self._body = (BinaryDecoder if self._binary else ChunkDecoder)(limit=self.databytes)

    def _next_of_chunk(self, one: _Arriving) -> Any:
        """The next event of the chunk that arrives. None: its octets are not all there, or it was answered, and nothing
        arrives any more."""
        body = self._body if one.answer is None else None
        if one.left:
            data = self._take(one.left)
            one.left -= len(data)
            if isinstance(body, ChunkDecoder) and data:
                text = body.feed(data)
                self._hops.feed(text)
                if text and not body.too_big:
                    return Chunk(text)
            if one.left:
                return None
        if one.last and isinstance(body, ChunkDecoder) and not one.finished:
            one.finished = True
            text = body.finish()
            self._hops.feed(text)
            if text and not body.too_big:
                return Chunk(text)
        self._arriving = None
        if one.answer is not None:
            if one.counts:
                self._error(one.answer.code, one.answer.text)
            else:
                self._send(one.answer)
            return None
        assert isinstance(body, ChunkDecoder)
        if one.last or body.refused or body.too_big:
            return self._ask_end(body)
        self._send(Reply(250, b"ok, go on"))
        return None

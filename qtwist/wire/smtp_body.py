"""The body of a message as DATA and BDAT carry it: finding its end, taking the transparency off, counting its hops."""

from __future__ import annotations

import re
from collections.abc import Callable

from qtwist.mail.binary_mime import BinaryMIME, NotConvertible

_END = b"\r\n.\r\n"
_LOOKALIKE = re.compile(rb"\n\.\r?\n")
_BARE_CR = re.compile(rb"\r(?!\n)")
_STUFFED = re.compile(rb"\n\.")
_UNSTUFF_BESIDE_CR = re.compile(rb"\n\.(?!\r)")
_HOP = re.compile(rb"\n(?:received|delivered)", re.IGNORECASE)
_LONGEST_HOP = 10  # octets of b"\ndelivered"


def _line_feeds(text: bytes) -> int:
    """How many there are; twice as fast as bytes.count, which stops at each."""
    return len(text) - len(text.replace(b"\n", b""))


class BodyDecoder:
    """Turns what follows ``354`` into the message with LF line ends (spec/qmail.md §16.6, RFC 5321 §4.5.2).

    Only CRLF.CRLF ends the message. A bare LF is always refused; a bare CR and a NUL are refused unless `bare` is
    ``"qmail"``, which passes them on unchanged as the automaton of §16.6 does. After the first of these `refused` is
    true and nothing more is decoded: the rest is swallowed up to the true end, or up to a lookalike of it
    (LF.LF, LF.CRLF) that a sender with broken line ends takes for the end. Stopping there is safe only because the
    caller closes the connection: nothing that comes after a refused body may be read as a command (§26.3).

    `limit` bounds the decoded octets (0: no bound). Once `size` is more, `too_big` is true; what is decoded from then
    on is worth nothing but a look at its header.

    The work is done on whole pieces, never line by line, and at most four octets are held back between them. What looks
    for one octet costs a fraction of what looks for two, and a pattern half of it; so that comes first (most of a large
    message is base64, which has no dots).
    """

    def __init__(self, *, limit: int = 0, bare: str = "refuse") -> None:
        self.size = 0
        self.refused = False
        self.too_big = False
        self._limit = limit
        self._pass_cr = bare == "qmail"
        self._held = b"\r\n"  # the body starts as if after a CRLF, so that a first line "." is the end
        self._started = False

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take `data`; give (decoded octets, what follows the end of the message, or None when it goes on)."""
        buffer = self._held + data
        if self.refused:
            return self._swallow(buffer)
        end = buffer.find(_END) if b"." in buffer else -1
        if end >= 0:
            raw, rest = buffer[: end + 2], buffer[end + len(_END) :]
            self._held = b""
        else:
            # An end may be split anywhere, and so may a CRLF: keep what could become either.
            kept = next((n for n in (4, 3, 2, 1) if buffer.endswith(_END[:n])), 0)
            raw, rest = buffer[: len(buffer) - kept], None
            self._held = buffer[len(buffer) - kept :]
        text = self._decode(raw)
        if self.refused:
            return self._swallow(buffer)
        if text and not self._started:
            self._started = True
            text = text[1:]
        self.size += len(text)
        if self._limit and self.size > self._limit:
            self.too_big = True
        return text, rest

    def _decode(self, raw: bytes) -> bytes:
        text = raw.replace(b"\r", b"")  # many times faster than replacing the pairs
        clean = _BARE_CR.search(raw) is None
        lines = len(raw) - len(text) if clean else raw.count(b"\r\n")
        if _line_feeds(text) != lines or not (self._pass_cr or (clean and b"\0" not in raw)):
            self.refused = True
            return b""
        if clean:
            return text.replace(b"\n.", b"\n") if b"." in text and _STUFFED.search(text) else text
        return _UNSTUFF_BESIDE_CR.sub(b"\n", raw.replace(b"\r\n", b"\n"))

    def _swallow(self, buffer: bytes) -> tuple[bytes, bytes | None]:
        if _LOOKALIKE.search(buffer):
            return b"", b""
        self._held = buffer[-3:]
        return b"", None


class ChunkDecoder:
    """Turns what comes by BDAT into the message with LF line ends (RFC 3030 §2): there is no transparency, and the end
    is known by counting.

    A bare LF, a bare CR and a NUL are refused as they are by DATA, whatever `bare` may be there: such a message cannot
    be stored, or sent on by DATA. From there on `refused` is true and nothing more is decoded. The two octets of a line
    end may be in different chunks. `limit`, `size` and `too_big` are as in :class:`BodyDecoder`.
    """

    def __init__(self, *, limit: int = 0) -> None:
        self.size = 0
        self.refused = False
        self.too_big = False
        self._limit = limit
        self._held = b""  # a CR whose LF may come

    def feed(self, data: bytes) -> bytes:
        """Take octets of the message, give what they are stored as."""
        if self.refused:
            return b""
        raw = self._held + data
        self._held = b"\r" if raw.endswith(b"\r") else b""
        if self._held:
            raw = raw[:-1]
        text = raw.replace(b"\r", b"")
        if _line_feeds(text) != len(raw) - len(text) or _BARE_CR.search(raw) or b"\0" in raw:
            self.refused = True
            return b""
        self.size += len(text)
        if self._limit and self.size > self._limit:
            self.too_big = True
        return text

    def finish(self) -> bytes:
        """The last octet has come; what is still to be stored."""
        if self._held:
            self.refused = True
        return b""


class BinaryDecoder(ChunkDecoder):
    """The same for a message that was announced as BINARYMIME (RFC 3030 §3): its binary parts become base64. Where
    that cannot be done, `refused` is true, and `not_convertible` if its parts could not be told apart."""

    def __init__(self, *, limit: int = 0) -> None:
        super().__init__(limit=limit)
        self.not_convertible = False
        self._mime = BinaryMIME()

    def feed(self, data: bytes) -> bytes:
        return self._through(lambda: self._mime.feed(data))

    def finish(self) -> bytes:
        text = self._through(self._mime.finish)
        return text + super().finish()

    def _through(self, convert: Callable[[], bytes]) -> bytes:
        if self.refused:
            return b""
        try:
            return super().feed(convert())
        except NotConvertible:
            self.refused = self.not_convertible = True
            return b""


class HopCounter:
    """Counts the header lines that begin with ``received`` or ``delivered``, in any letter case (spec §16.6).

    It is fed the decoded message in pieces of any size and stops looking at the first empty line.
    """

    def __init__(self) -> None:
        self.in_header = True
        self._hops = 0
        self._carry = b"\n"  # the start of the unfinished line, with the LF before it

    @property
    def hops(self) -> int:
        return self._hops + len(_HOP.findall(self._carry))

    def feed(self, data: bytes) -> None:
        if not self.in_header or not data:
            return
        buffer = self._carry + data
        end = buffer.find(b"\n\n")
        if end >= 0:
            self.in_header = False
            self._carry = b""
            self._hops += len(_HOP.findall(buffer, 0, end))
            return
        cut = max(buffer.rfind(b"\n"), 0)
        self._hops += len(_HOP.findall(buffer, 0, cut))
        self._carry = buffer[cut : cut + _LONGEST_HOP]

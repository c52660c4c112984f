"""A reply of an SMTP server as a value, and where its enhanced status code is (RFC 2034, 3463)."""

from __future__ import annotations

import re

import attrs

_STATUS = rb"[245]\.([0-9]{1,3}\.[0-9]{1,3})"
_AHEAD = re.compile(rb"\A" + _STATUS + rb"(?:[ \t]+|$)")
_BEHIND = re.compile(rb"[ \t]*\(#" + _STATUS + rb"\)[ \t]*$")


@attrs.frozen
class Reply:
    """An answer to the client: a code from 200 to 599 and its text, lines separated by LF.

    qmail puts the enhanced code in brackets at the end of the text: ``b"no such user (#5.1.1)"``; so do we, in the log
    and for clients that do not know better. What others get is :meth:`with_status`.
    """

    code: int = attrs.field()
    text: bytes

    @code.validator
    def _check_code(self, attribute: object, value: int) -> None:
        if not 200 <= value <= 599:
            raise ValueError(f"an SMTP reply code is 200 to 599, not {value!r}")

    @property
    def positive(self) -> bool:
        return self.code < 400

    def to_bytes(self) -> bytes:
        """The reply as it goes over the wire. A CR or NUL in the text is dropped: no text can forge a second reply."""
        lines = self.text.replace(b"\r", b"").replace(b"\0", b"").split(b"\n")
        last = lines.pop()
        head = b"".join(b"%d-%s\r\n" % (self.code, line) for line in lines)
        return head + b"%d %s\r\n" % (self.code, last)

    def with_status(self, default: bytes = b"0.0") -> Reply:
        """The same as RFC 2034 §4 wants it: each line begins with the enhanced code, which is nowhere else.

        Its class is that of the reply, its subject and detail those that the text has, in front or in brackets at the
        end; else `default`. An intermediate reply has none.
        """
        if 300 <= self.code < 400:
            return self
        text = self.text
        match = _BEHIND.search(text)
        if match is not None:
            text = text[: match.start()]
        ahead = _AHEAD.match(text)
        if ahead is not None:
            match = ahead
        status = b"%d.%s " % (self.code // 100, default if match is None else match[1])
        return Reply(self.code, b"\n".join(status + _AHEAD.sub(b"", line, count=1) for line in text.split(b"\n")))

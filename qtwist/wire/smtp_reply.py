"""A reply of an SMTP server as a value."""

from __future__ import annotations

import attrs


@attrs.frozen
class Reply:
    """An answer to the client: a code from 200 to 599 and its text, lines separated by LF.

    qmail puts the enhanced code in brackets at the end of the text: ``b"no such user (#5.1.1)"``.
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

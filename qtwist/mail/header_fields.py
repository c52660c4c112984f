"""The header of a message as a list of fields that can be changed, octet for octet otherwise (RFC 5322 §2.2). Pure.

Line ends are LF. A field is a name, a colon and all lines up to the next field; whatever is none of that ends the
header, as it does in qmail.
"""

from __future__ import annotations

import re
from itertools import compress

LONGEST_HEADER = 1 << 18
"""Octets of a header at most, so that one of tiny fields takes no long time; what comes after them counts as body."""

_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*")
_NAME = re.compile(rb"[!-9;-~]+")
_LINE_END = re.compile(rb"\r?\n(?![ \t])|\r(?!\n)|\0")


class HeaderFields:
    """The fields at the beginning of `text`; `length` is how many octets of it they are, without the empty line."""

    def __init__(self, text: bytes) -> None:
        self._fields: list[bytes] = []
        self._names: list[bytes] = []  # of the fields, in lower case
        at = 0
        while at < min(len(text), LONGEST_HEADER) and (match := _FIELD.match(text, at)) is not None:
            self._fields.append(match[0])
            self._names.append(match[0].partition(b":")[0].rstrip(b" \t").lower())
            at = match.end()
        self.length = at

    def __bytes__(self) -> bytes:
        return b"".join(self._fields)

    def items(self) -> list[tuple[bytes, bytes]]:
        """Names and values in order; a value is what follows the colon, without its last line end."""
        pairs = (field.partition(b":") for field in self._fields)
        return [(name.rstrip(b" \t"), value[:-1]) for name, _, value in pairs]

    def insert(self, index: int, name: bytes, value: bytes) -> None:
        """Put a field where the `index`-th is (0: in front of all); behind all when there are not so many.

        ValueError for a name that none can have, or a value that would be more than one field.
        """
        place = min(max(index, 0), len(self._fields))
        self._fields.insert(place, _field(name, value))
        self._names.insert(place, name.lower())

    def add(self, name: bytes, value: bytes) -> None:
        """Put a field behind all others. ValueError as in :meth:`insert`."""
        self.insert(len(self._fields), name, value)

    def change(self, name: bytes, number: int, value: bytes | None) -> None:
        """Replace the `number`-th field (from 1) with this name, in any case; None removes it. Where there are not so
        many, the field is added. ValueError as in :meth:`insert`."""
        place = self._place(name.lower(), number)
        if value is None:
            if place is not None:
                del self._fields[place], self._names[place]
        elif place is not None:
            self._fields[place] = _field(name, value)
        else:
            self.add(name, value)

    def remove(self, name: bytes) -> None:
        """Remove all fields with this name, in any case."""
        gone = name.lower()
        kept = [known != gone for known in self._names]
        self._fields = list(compress(self._fields, kept))
        self._names = list(compress(self._names, kept))

    def _place(self, name: bytes, number: int) -> int | None:
        """Where the `number`-th field with this name in lower case is."""
        place = -1
        try:
            for _ in range(min(number, len(self._names) + 1)):
                place = self._names.index(name, place + 1)
        except ValueError:
            return None
        return place if number >= 1 else None


def _field(name: bytes, value: bytes) -> bytes:
    """Continuation lines may end in CRLF or LF."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"no field can be called {name[:50]!r}")
    value = value.replace(b"\r\n", b"\n")
    if _LINE_END.search(value):
        raise ValueError(f"the value of {name.decode()} would end the field")
    return b"%b:%b%b\n" % (name, b"" if value[:1] in (b" ", b"\t") else b" ", value)

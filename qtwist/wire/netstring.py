"""Netstrings: ``<decimal length>:<bytes>,`` (spec/qmail.md §27), written whole and read in whatever pieces they come.

Lengths are read strictly: ASCII digits, no leading zero but for the empty netstring, and no number above a limit that
the reader is given. Nothing is collected here: contents are handed on as they come.
"""

from __future__ import annotations


class NetstringError(ValueError):
    """These bytes are no netstring."""


class TooLong(NetstringError):
    """A netstring is longer than its reader allows."""


def encode(contents: bytes) -> bytes:
    """`contents` as a netstring."""
    return b"%d:%b," % (len(contents), contents)


class LengthReader:
    """Reads the length of a netstring, colon included. It is `length` once it is there, None before."""

    __slots__ = ("_digits", "_limit", "_most", "length")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._most = len(str(limit))
        self._digits = b""
        self.length: int | None = None

    def feed(self, data: bytes, start: int, end: int) -> int:
        """Read on in ``data[start:end]``; returns where the contents begin, or `end`. NetstringError for garbage."""
        # Never more than the longest length and its colon.
        stop = min(end, start + self._most + 1 - len(self._digits))
        colon = data.find(b":", start, stop)
        self._digits += data[start : colon if colon >= 0 else stop]
        digits = self._digits
        if (digits and not digits.isdigit()) or (len(digits) > 1 and digits.startswith(b"0")):
            raise NetstringError("a length is not written as a number")
        if len(digits) > self._most:
            raise TooLong(f"a netstring is longer than {self._limit}")
        if colon < 0:
            return end
        if not digits:
            raise NetstringError("a length is missing")
        self.length = int(digits)
        if self.length > self._limit:
            raise TooLong(f"a netstring is longer than {self._limit}")
        return colon + 1


class NetstringReader:
    """Reads one netstring of at most `limit` octets.

    `length` is how long it is, once that is known; `ended` is true after its comma.
    """

    __slots__ = ("_head", "_left", "ended")

    def __init__(self, limit: int) -> None:
        self._head = LengthReader(limit)
        self._left = 0
        self.ended = False

    @property
    def length(self) -> int | None:
        """The length of the contents; None as long as it is not known."""
        return self._head.length

    def feed(self, data: bytes, start: int, end: int) -> tuple[bytes, int]:
        """What ``data[start:end]`` holds of the contents, and where this netstring stops in it (or `end`).

        NetstringError for garbage.
        """
        if self._head.length is None:
            start = self._head.feed(data, start, end)
            if self._head.length is None:
                return b"", end
            self._left = self._head.length
        stop = min(end, start + self._left)
        contents = data[start:stop]
        self._left -= stop - start
        if self._left or stop == end:
            return contents, stop
        if data[stop] != 0x2C:
            raise NetstringError("a netstring does not end with a comma")
        self.ended = True
        return contents, stop + 1


def split(data: bytes) -> list[bytes]:
    """The contents of the netstrings that `data` is made of, one after the other. NetstringError for anything else."""
    found: list[bytes] = []
    position, size = 0, len(data)
    while position < size:
        head = LengthReader(size)
        start = head.feed(data, position, size)
        if head.length is None:
            raise NetstringError("a length has no end")
        end = start + head.length
        if data[end : end + 1] != b",":
            raise NetstringError("a netstring does not end with a comma")
        found.append(data[start:end])
        position = end + 1
    return found

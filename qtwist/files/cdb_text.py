"""The text form of a cdb, which cdbmake reads and cdbdump writes (spec/related.md §1.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_HEAD = re.compile(rb"\+([0-9]{1,10}),([0-9]{1,10}):")
_HEAD_SIZE = 24


class TextError(Exception):
    """What is not the text form of a cdb. `entry` counts the records from 1."""

    def __init__(self, entry: int, problem: str) -> None:
        super().__init__(entry, problem)
        self.entry = entry
        self.problem = problem

    def __str__(self) -> str:
        return f"entry {self.entry}: {self.problem}"


def format_record(key: bytes, data: bytes) -> bytes:
    """``+KLEN,DLEN:KEY->DATA`` and LF. One more LF ends the whole text."""
    return b"+%d,%d:%b->%b\n" % (len(key), len(data), key, data)


def parse_records(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The (key, data) records in a text that comes cut anywhere; what follows the empty line at its end is not read.

    TextError for anything else, among it a text without that end. Holds a block and a record at a time.
    """
    source = iter(blocks)
    data = b""
    at = 0
    entry = 0
    while True:
        entry += 1
        if len(data) - at < _HEAD_SIZE:
            data, at = _filled(source, data[at:], _HEAD_SIZE), 0
        if data.startswith(b"\n", at):
            return
        head = _HEAD.match(data, at)
        if head is None:
            short = b"\n" not in data[at:] and len(data) - at < _HEAD_SIZE
            raise TextError(entry, "the input ends too early" if short else "expected +KLEN,DLEN:KEY->DATA")
        key_size, data_size = int(head[1]), int(head[2])
        start = head.end() - at
        size = start + key_size + 2 + data_size + 1
        if len(data) - at < size:
            data, at = _filled(source, data[at:], size), 0
            if len(data) < size:
                raise TextError(entry, "the input ends too early")
        middle = at + start + key_size
        end = at + size - 1
        if not data.startswith(b"->", middle):
            raise TextError(entry, "expected -> behind the key")
        if not data.startswith(b"\n", end):
            raise TextError(entry, "expected the end of the line behind the data")
        yield data[at + start : middle], data[middle + 2 : end]
        at = end + 1


def _filled(source: Iterator[bytes], data: bytes, size: int) -> bytes:
    """`data` with more of `source` behind it: at least `size` octets, or all that there are."""
    parts = [data]
    have = len(data)
    while have < size:
        block = next(source, None)
        if block is None:
            break
        parts.append(block)
        have += len(block)
    return b"".join(parts)

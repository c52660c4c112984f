"""users/assign, the text, and users/cdb made from it: who owns which local part (spec/qmail.md §12.1, §12.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qtwist.files.cdb import CDB, CDBError, prefix_hashes

_FIELDS = 6


class AssignError(Exception):
    """A line of users/assign that is not right; `line` counts from 1."""

    def __init__(self, line: int, expected: str) -> None:
        super().__init__(line, expected)
        self.line = line
        self.expected = expected

    def __str__(self) -> str:
        return f"line {self.line}: expected {self.expected}"


class RecordError(Exception):
    """A record of users/cdb without the six fields that it must have, or with ids that are no numbers."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who gets the mail of a local part: account, ids, home directory, and which .qmail file (`dash`, `ext`)."""

    user: bytes
    uid: int
    gid: int
    home: bytes
    dash: bytes
    ext: bytes


def compile_assign(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The cdb records of the text of users/assign, in the order in which they are written (§12.2).

    Raises AssignError, with the number of the line, for a line of the wrong form or a missing last line.
    """
    wildcards = bytearray()
    start = 0
    number = 0
    while True:
        number += 1
        if text.startswith(b".", start):
            break
        end = text.find(b"\n", start)
        if end < 0:
            raise AssignError(number, "a line that starts with a dot, and is the end of the list")
        fields = text[start:end].split(b":", _FIELDS + 1)
        if b"\0" in text[start:end]:
            raise AssignError(number, "a line without NUL bytes")
        if len(fields) < _FIELDS + 2 or not fields[0]:
            raise AssignError(number, '"=local:user:uid:gid:home:dash:ext:" or "+loc:user:uid:gid:home:dash:pre:"')
        name = fields[0][1:]
        key = b"!" + name.lower()
        if not fields[0].startswith(b"+"):
            key += b"\0"
        elif name and name[-1] not in wildcards:
            wildcards.append(name[-1])
        yield key, b"\0".join(fields[1:-1])
        start = end + 1
    yield b"", bytes(wildcards)


def find_assignment(database: CDB, local: bytes) -> Assignment | None:
    """Who owns `local` according to users/cdb, None if the database does not say (§12.1).

    CDBError for a damaged database or one without the record of wildcard characters; RecordError for a bad record.
    """
    wildcards = database.get(b"")
    if wildcards is None:
        raise CDBError(f"{database.path!r} was not made by qmail-newu: no record of wildcard characters")
    key = b"!" + local.lower() + b"\0"
    hashes = prefix_hashes(key)  # not one by one: a hostile local part has many prefixes
    data = database.get(key, hashes[-1])
    if data is not None:
        return _parse(data)
    for size in range(len(key) - 1, 0, -1):
        if size == 1 or key[size - 1] in wildcards:
            data = database.get(key[:size], hashes[size])
            if data is not None:
                return _parse(data + local[size - 1 :])
    return None


def _parse(data: bytes) -> Assignment:
    fields = data.split(b"\0")
    if len(fields) != _FIELDS or not (_is_id(fields[1]) and _is_id(fields[2])):
        raise RecordError(f"no proper record of an account in users/cdb: {data[:200]!r}")
    user, uid, gid, home, dash, ext = fields
    return Assignment(user, int(uid), int(gid), home, dash, ext)


def _is_id(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= 10

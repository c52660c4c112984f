"""The form of requests to the queue's door that our own servers use: many on one connection, answered in any order.

After the octet ``*`` the client sends requests, the door sends answers. Numbers are in network byte order::

    request   4 octets   how many octets follow
              4 octets   a number of the client's choice, which is in the answer
              4 octets   the length of the message
              the message, then netstrings: the sender and each recipient, where DSN parameters belong to one
              followed by a NUL and these (:mod:`qtwist.mail.asked`)

    answer    4 octets   how many octets follow
              4 octets   the number of the request
              1 octet    qmail-queue's exit code, 0 when the message is queued (spec/qmail.md §6.3)
              8 octets   the number of the message; 0 when it is not queued
              what is to be said about a refusal, UTF-8

This is for messages that are in memory as a whole; larger ones go in the chunked form (:mod:`qtwist.wire.qmqp`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from qtwist.wire.netstring import NetstringError, encode, split

MARK = b"*"
#: The longest request, and the longest answer (octets).
LONGEST = 1024 * 1024
#: Of the text of an answer, so much is sent.
TEXT_LIMIT = 10_000

_LENGTH = struct.Struct("!I")
_REQUEST = struct.Struct("!III")
_ANSWER = struct.Struct("!IIBQ")
_HEAD = _LENGTH.size

T = TypeVar("T")

#: (number, message, sender, recipients)
Request = tuple[int, bytes, bytes, tuple[bytes, ...]]
#: (number of the request, exit code, number of the message, text)
Answer = tuple[int, int, int, str]


def request(number: int, message: bytes, sender: bytes, recipients: Sequence[bytes]) -> bytes | None:
    """A request as it is sent; None when it would be too long."""
    addresses = b"".join((encode(sender), *map(encode, recipients)))
    length = _REQUEST.size - _HEAD + len(message) + len(addresses)
    if length > LONGEST:
        return None
    return b"".join((_REQUEST.pack(length, number, len(message)), message, addresses))


def answer(number: int, code: int, message: int, text: str = "") -> bytes:
    """An answer as it is sent."""
    data = text.encode("utf-8", "replace")[:TEXT_LIMIT]
    return _ANSWER.pack(_ANSWER.size - _HEAD + len(data), number, code, message) + data


def read_request(data: bytes) -> Request:
    """What stands behind the length of a request. NetstringError for garbage."""
    start = _REQUEST.size - _HEAD
    if len(data) < start:
        raise NetstringError("a request is too short")
    number, length = struct.unpack_from("!II", data)
    end = start + length
    if end > len(data):
        raise NetstringError("a request is shorter than its message")
    addresses = split(data[end:])
    if not addresses:
        raise NetstringError("the sender is missing")
    return number, data[start:end], addresses[0], tuple(addresses[1:])


def read_answer(data: bytes) -> Answer:
    """What stands behind the length of an answer. NetstringError for garbage."""
    start = _ANSWER.size - _HEAD
    if len(data) < start:
        raise NetstringError("an answer is too short")
    number, code, message = struct.unpack_from("!IBQ", data)
    return number, code, message, data[start:].decode("utf-8", "replace")


class Reader(Generic[T]):
    """Cuts what arrives into requests or answers, by `read` (:func:`read_request`, :func:`read_answer`)."""

    def __init__(self, read: Callable[[bytes], T]) -> None:
        self._read = read
        self._parts: list[bytes] = []
        self._octets = 0
        self._wanted = _HEAD

    def feed(self, data: bytes) -> list[T]:
        """What is complete now. NetstringError for garbage; then nothing more can be read."""
        self._parts.append(data)
        self._octets += len(data)
        found: list[T] = []
        if self._octets < self._wanted:
            return found
        held = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        position = 0
        self._wanted = _HEAD
        while len(held) - position >= _HEAD:
            [length] = _LENGTH.unpack_from(held, position)
            if length > LONGEST:
                raise NetstringError(f"{length} octets, where there may be {LONGEST}")
            end = position + _HEAD + length
            if end > len(held):
                self._wanted = end - position
                break
            found.append(self._read(held[position + _HEAD : end]))
            position = end
        rest = held[position:] if position else held
        self._parts = [rest] if rest else []
        self._octets = len(rest)
        return found

"""The records in the queue's files: todo and intd, info, local and remote (spec/qmail.md §5.2).

A record is a letter, a value without NUL, and a NUL. Beside qmail's there are those of messages that came with DSN
parameters (RFC 3461; :mod:`qtwist.mail.asked`), and of no others: in todo ``m`` for the message and ``r`` for the
recipient that follows; in info, behind the sender, ``m``, and ``l`` and ``r`` with the offset of a recipient's record
in local and remote, a space, and its parameters.

Nothing here touches a file; damaged contents are a ValueError
that says where and what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import attrs

from qtwist.interfaces import RecipientRecord
from qtwist.mail import asked as dsn
from qtwist.mail.asked import Kept
from qtwist.mail.envelope import Envelope

#: The longest address that an envelope may hold (§6.2).
ADDRESS_LIMIT = 1002

#: The longest record that is read from any file. Rewriting makes addresses longer than ADDRESS_LIMIT, but not so long.
RECORD_LIMIT = 16384

_LETTERS = {"local": b"l", "remote": b"r"}
_CHANNELS = {letter: channel for channel, letter in _LETTERS.items()}
_ASKED = re.compile(rb"([lr])([0-9]{1,12}) ([!-~]+(?: [!-~]+)*)")


class UnknownRecord(ValueError):
    """A record starts with a letter that its file does not know."""


class AddressTooLong(ValueError):
    """An envelope has an address of more than ADDRESS_LIMIT octets."""


@attrs.frozen
class EnvelopeHead:
    """What an envelope file says beside the recipients. `qp` and `uid` are 0 where the file does not tell."""

    uid: int
    qp: int
    sender: bytes
    asked_mail: bytes = b""


def check_envelope(envelope: Envelope) -> None:
    """AddressTooLong, or ValueError for an address with a NUL, which no file could hold."""
    addresses = (envelope.sender, *envelope.recipients)
    if max(map(len, addresses)) > ADDRESS_LIMIT:
        raise AddressTooLong(f"an address has more than {ADDRESS_LIMIT} octets")
    if b"\0" in b"".join(addresses):
        raise ValueError("an address contains NUL")
    if envelope.asked is not None:
        dsn.check(envelope.asked, len(envelope.recipients))


def format_envelope(uid: int, qp: int, envelope: Envelope) -> bytes:
    """The contents of intd/N and todo/N. ValueError as :func:`check_envelope` tells it."""
    check_envelope(envelope)
    head = b"u%d\0p%d\0F%s\0" % (uid, qp, envelope.sender)
    if envelope.asked is None:
        return head + format_recipients(envelope.recipients)
    pairs = zip(envelope.asked.recipients, envelope.recipients, strict=True)
    parts = [b"r%s\0T%s\0" % pair if pair[0] else b"T%s\0" % pair[1] for pair in pairs]
    mail = envelope.asked.mail
    return b"".join((head, b"m%s\0" % mail if mail else b"", *parts))


def format_recipients(addresses: Iterable[bytes]) -> bytes:
    """Records of recipients that are not done. The addresses have no NUL."""
    return b"".join([b"T%s\0" % address for address in addresses])


def format_info(sender: bytes) -> bytes:
    """The contents of info/N."""
    return b"F%s\0" % sender


def format_asked(kept: Kept | None) -> bytes:
    """What follows in info/N where something was asked for."""
    if kept is None:
        return b""
    parts = [b"%c%d %s\0" % (_LETTERS[channel], offset, text) for (channel, offset), text in kept.recipients.items()]
    return b"".join((b"m%s\0" % kept.mail, *parts))


def parse_asked(contents: bytes, where: str) -> Kept | None:
    """What :func:`format_asked` was given. None for what begins otherwise (old garbage, as qmail-send ignores it);
    ValueError for what is damaged."""
    if not contents.startswith(b"m"):
        return None
    first, *others = contents.split(b"\0")
    if not others or others.pop():
        raise ValueError(f"{where}: the last record is cut off")
    dsn.of_message(first[1:])
    recipients = {}
    for record in others:
        match = _ASKED.fullmatch(record)
        if match is None:
            raise ValueError(f"{where}: a record is no recipient's: {record[:40]!r}")
        dsn.of_recipient(match[3])
        recipients[_CHANNELS[match[1]], int(match[2])] = match[3]
    return Kept(first[1:], recipients)


def split_records(blocks: Iterable[bytes], where: str) -> Iterator[list[bytes]]:
    """The records in `blocks` (a file, cut anywhere), without their NULs, some at a time.

    ValueError for a record longer than RECORD_LIMIT or without an end, and for an empty one.
    """
    rest = b""
    for block in blocks:
        *records, rest = (rest + block).split(b"\0")
        if len(rest) > RECORD_LIMIT or (records and max(map(len, records)) > RECORD_LIMIT):
            raise ValueError(f"{where}: a record has more than {RECORD_LIMIT} octets")
        if b"" in records:
            raise UnknownRecord(f"{where}: a record is empty")
        if records:
            yield records
    if rest:
        raise ValueError(f"{where}: the last record is cut off")


def parse_envelope(
    blocks: Iterable[bytes],
    where: str,
    take: Callable[[list[bytes]], None],
    asked: dict[int, bytes] | None = None,
) -> EnvelopeHead:
    """Read todo/N. `take` gets the recipients, some at a time and in order; then the rest is returned. The parameters
    of a recipient are in `asked`, by its place among all, before `take` gets it.

    ValueError when the file is damaged: what `take` has got by then is to be forgotten.
    """
    uid = qp = seen = 0
    sender = None
    mail = b""
    parameters: bytes | None = None  # of the recipient that is to follow
    for records in split_records(blocks, where):
        recipients = []
        for record in records:
            letter = record[:1]
            if letter == b"T":
                recipients.append(record[1:])
                if parameters is not None:
                    if asked is not None:
                        asked[seen + len(recipients) - 1] = parameters
                    parameters = None
            elif parameters is not None:
                raise ValueError(f"{where}: parameters without a recipient")
            elif letter == b"F":
                if sender is not None:
                    raise ValueError(f"{where}: there are two senders")
                sender = record[1:]
            elif letter == b"u":
                uid = _decimal(record, where)
            elif letter == b"p":
                qp = _decimal(record, where)
            elif letter == b"m":
                mail = record[1:]
                dsn.of_message(mail)
            elif letter == b"r":
                parameters = record[1:]
                dsn.of_recipient(parameters)
            else:
                raise UnknownRecord(f"{where}: unknown record type {letter!r}")
        if recipients:
            take(recipients)
            seen += len(recipients)
    if parameters is not None:
        raise ValueError(f"{where}: parameters without a recipient")
    if sender is None:
        raise ValueError(f"{where}: there is no sender")
    return EnvelopeHead(uid, qp, sender, mail)


def parse_info(contents: bytes, where: str) -> bytes:
    """The sender in the contents of info/N; whatever follows its record is ignored, as qmail-send does."""
    end = contents.find(b"\0")
    if not contents.startswith(b"F"):
        raise UnknownRecord(f"{where}: the first record is no sender")
    if end == -1:
        raise ValueError(f"{where}: the sender is cut off")
    return contents[1:end]


def parse_recipients(data: bytes, start: int, limit: int, where: str) -> list[RecipientRecord]:
    """At most `limit` complete records of a channel file, of which `data` is the part that lies at offset `start`."""
    records: list[RecipientRecord] = []
    position = 0
    while len(records) < limit and (end := data.find(b"\0", position)) != -1:
        letter = data[position : position + 1]
        if letter not in (b"T", b"D"):
            raise UnknownRecord(f"{where}: unknown record type {letter!r} at offset {start + position}")
        records.append(RecipientRecord(start + position, letter == b"D", data[position + 1 : end]))
        position = end + 1
    return records


def _decimal(record: bytes, where: str) -> int:
    digits = record[1:]
    if not digits.isdigit() or len(digits) > 20:
        raise ValueError(f"{where}: {record[:1].decode()} is followed by {digits[:20]!r}, not by a number")
    return int(digits)

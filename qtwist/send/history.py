"""What became of the attempts so far: kept in memory, within bounds, for those who look at the queue.

qmail's queue has no place for it. A daemon that ends in order leaves it in a file for the next one; that costs the
deliveries nothing. After a crash it starts empty; the log has all of it.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

import attrs

from qtwist.mail.envelope import Report

#: How many messages are remembered, those that were tried last, and attempts in all of them; recipients of each;
#: attempts of each of these; octets of a reply.
MESSAGES = 10_000
TOTAL = 100_000
RECIPIENTS = 100
ATTEMPTS = 10
TEXT = 500

#: Births that differ by less are the same (seconds): a file's time may be rounded.
SAME_BIRTH = 0.001

#: The longest file that is read, in octets. Ours are shorter.
_FILE_LIMIT = 128 * 1024 * 1024


@attrs.frozen
class Attempt:
    """One delivery that has ended. `when` is in seconds since the epoch; `letter` and `text` are its report."""

    when: float
    letter: bytes
    text: bytes


@attrs.define(eq=False)
class _Message:
    birth: float
    recipients: dict[tuple[str, bytes], deque[Attempt]] = attrs.field(factory=dict)
    count: int = 0  # of attempts


class History:
    """The last attempts for recipients, who are named by channel and address.

    A message is named by its number and its birth (seconds since the epoch), as numbers are given anew.
    """

    def __init__(self, messages: int = MESSAGES, total: int = TOTAL) -> None:
        self._limit = messages
        self._total = total
        self._count = 0
        self._messages: OrderedDict[int, _Message] = OrderedDict()

    def note(self, number: int, birth: float, channel: str, address: bytes, when: float, report: Report) -> None:
        """Remember an attempt that has ended."""
        self._add(number, birth, (channel, address), Attempt(when, report.letter, report.text[:TEXT]))

    def forget(self, number: int) -> None:
        """The message is gone; its number may be given to another one."""
        message = self._messages.pop(number, None)
        if message is not None:
            self._count -= message.count

    def numbers(self) -> list[int]:
        return list(self._messages)

    def birth(self, number: int) -> float:
        """The birth of the message that is remembered. KeyError when there is none."""
        return self._messages[number].birth

    def of(self, number: int) -> dict[tuple[str, bytes], list[Attempt]]:
        """The attempts for each recipient, the oldest first."""
        message = self._messages.get(number)
        return {} if message is None else {key: list(found) for key, found in message.recipients.items()}

    def _add(self, number: int, birth: float, key: tuple[str, bytes], attempt: Attempt) -> None:
        message = self._messages.get(number)
        if message is not None and abs(message.birth - birth) >= SAME_BIRTH:
            self.forget(number)
            message = None
        if message is None:
            message = self._messages[number] = _Message(birth)
        else:
            self._messages.move_to_end(number)
        found = message.recipients.get(key)
        if found is None:
            if len(message.recipients) >= RECIPIENTS:
                return
            found = message.recipients[key] = deque(maxlen=ATTEMPTS)
        if len(found) < ATTEMPTS:
            message.count += 1
            self._count += 1
        found.append(attempt)
        while len(self._messages) > self._limit or (self._count > self._total and len(self._messages) > 1):
            self.forget(next(iter(self._messages)))

    # From one daemon to the next.

    def lines(self) -> Iterator[bytes]:
        """All of it, one JSON array a line for each message: number, birth, [channel, address, attempts] …."""
        for number, message in self._messages.items():
            recipients = [
                [channel, _text(address), [[one.when, _text(one.letter), _text(one.text)] for one in found]]
                for (channel, address), found in message.recipients.items()
            ]
            yield json.dumps([number, message.birth, recipients]).encode("ascii") + b"\n"

    def take_in(self, lines: Iterable[bytes]) -> None:
        """What :meth:`lines` gave in an earlier life. Lines that are damaged are left out."""
        for line in lines:
            try:
                number, birth, recipients = json.loads(line)
                found = [
                    (str(channel), _octets(address), Attempt(float(when), _octets(letter), _octets(text)[:TEXT]))
                    for channel, address, attempts in recipients
                    for when, letter, text in attempts
                ]
                number, birth = int(number), float(birth)
            except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
                continue
            for channel, address, attempt in found:
                self._add(number, birth, (channel, address), attempt)


def save(history: History, path: str) -> None:
    """Write the history to a file, for the owner's eyes. OSError. It is not synced: nothing depends on it."""
    fresh = f"{path}.new"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.writelines(history.lines())
    os.replace(fresh, path)


def load(history: History, path: str) -> None:
    """Take in what :func:`save` has written, and remove it: after a crash it would be out of date. OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        os.unlink(path)
        if os.fstat(file.fileno()).st_size <= _FILE_LIMIT:
            history.take_in(file)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

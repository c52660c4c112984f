"""What became of the attempts so far: kept in memory, within bounds, for those who look at the queue.

qmail's queue has no place for it, so it starts empty with the daemon; the log has all of it.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import attrs

from qtwist.mail.envelope import Report

#: How many messages are remembered, those that were tried last; recipients of each; attempts and octets of a reply.
MESSAGES = 10_000
RECIPIENTS = 100
ATTEMPTS = 10
TEXT = 500


@attrs.frozen
class Attempt:
    """One delivery that has ended. `when` is in seconds since the epoch; `letter` and `text` are its report."""

    when: float
    letter: bytes
    text: bytes


class History:
    """The last attempts for recipients, who are named by channel and address."""

    def __init__(self, messages: int = MESSAGES) -> None:
        self._limit = messages
        self._messages: OrderedDict[int, dict[tuple[str, bytes], deque[Attempt]]] = OrderedDict()

    def note(self, number: int, channel: str, address: bytes, when: float, report: Report) -> None:
        recipients = self._messages.setdefault(number, {})
        self._messages.move_to_end(number)
        if len(self._messages) > self._limit:
            self._messages.popitem(last=False)
        key = (channel, address)
        if key not in recipients and len(recipients) >= RECIPIENTS:
            return
        attempt = Attempt(when, report.letter, report.text[:TEXT])
        recipients.setdefault(key, deque(maxlen=ATTEMPTS)).append(attempt)

    def forget(self, number: int) -> None:
        """The message is gone; its number may be given to another one."""
        self._messages.pop(number, None)

    def numbers(self) -> list[int]:
        return list(self._messages)

    def of(self, number: int) -> dict[tuple[str, bytes], list[Attempt]]:
        """The attempts of a message, the latest one last, by channel and address."""
        return {key: list(attempts) for key, attempts in self._messages.get(number, {}).items()}

"""Deciding about single messages: fail, drop, retry (doc/queue.md), by the rules of the queue manager.

What changes files is written once, over the queue's interface: :class:`Steering` does it under a running queue manager,
and `qtwist queue` does it itself on a queue that it has locked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.task import deferLater

from qtwist.interfaces import IQueue
from qtwist.mail.envelope import Report
from qtwist.send.flushing import Flusher
from qtwist.send.manager import QueueManager
from qtwist.send.reporting import end_paragraph
from qtwist.send.schedule import READ_AHEAD

FAIL = "fail"
DROP = "drop"

#: Seconds that running deliveries of a message get to end.
PATIENCE = 20

#: Births that differ by less are the same (seconds): a file's time may be rounded.
SAME_BIRTH = 0.001

#: The report about a recipient who was failed by hand.
REPORT = Report.failure(
    b"The administrator of this mail system has ended the attempts to deliver the message. (#5.0.0)\n"
)


class SteeringError(Exception):
    """Why nothing was done, in one line."""


async def fail_recipients(queue: IQueue, number: int, channel: str, original: Callable[[bytes], bytes]) -> int:
    """Bounce all recipients of one channel file that are not done; how many there were.

    Each one's paragraph is on disk before its mark, so that a crash in between tries again and forgets nobody.
    """
    count = offset = 0
    info = await queue.info(number)
    while True:
        records, offset = await queue.recipients(number, channel, offset, READ_AHEAD)
        left = [record for record in records if not record.done]
        found = [end_paragraph(info, channel, record, original(record.address), REPORT) for record in left]
        paragraphs = [paragraph for paragraph in found if paragraph is not None]
        if paragraphs:
            await queue.append_bounce(number, b"".join(paragraphs))
        for record in left:
            await queue.mark(number, channel, record.offset)
        count += len(left)
        if len(records) < READ_AHEAD:
            return count


class Steering:
    """The decisions, under a running queue manager."""

    def __init__(self, manager: QueueManager) -> None:
        self._manager = manager
        self._flusher = Flusher(manager)

    async def flush(self, domain: bytes) -> int:
        """As :meth:`~qtwist.send.flushing.Flusher.flush` has it."""
        return await self._flusher.flush(domain)

    def reread_holds(self) -> None:
        """control/holds has changed. ControlError when it is wrong; then the old holds stay."""
        self._manager.reread_holds()

    def retry(self, numbers: Collection[int]) -> None:
        """Make these messages due now; what is held stays held."""
        self._manager.retry(numbers)

    def attempts(self, numbers: Collection[int] | None) -> dict[str, Any]:
        """The remembered attempts, of all messages when `numbers` is None; ready for JSON."""
        history = self._manager.history
        return {
            str(number): [
                {
                    "channel": channel,
                    "address": _text(address),
                    "attempts": [
                        {"when": one.when, "letter": _text(one.letter), "text": _text(one.text)} for one in attempts
                    ],
                }
                for (channel, address), attempts in history.of(number).items()
            ]
            for number in (history.numbers() if numbers is None else numbers)
        }

    async def settle(self, number: int, birth: float, verdict: str, uid: int) -> int:
        """Fail or drop the message that has this number and this birth; how many recipients were failed.

        SteeringError when it was not done. Deliveries that run are waited for. The message ends in the usual way: what
        it bounces goes to its sender.
        """
        manager = self._manager
        if number in manager.keeper.claimed:
            raise SteeringError(f"message {number}: somebody else is at it")
        manager.keeper.claimed.add(number)
        # A stop of the daemon waits for it.
        count: int = await manager.attend(self._settle_claimed(number, birth, verdict, uid))
        return count

    async def _settle_claimed(self, number: int, birth: float, verdict: str, uid: int) -> int:
        manager = self._manager
        due: dict[str, float] = {}
        try:
            await self._wait(number)
            due = self._withdraw(number)
            if not await self._is_it(number, birth):
                raise SteeringError(f"message {number}: it has ended meanwhile, and its number is another one's")
            manager.log.steered(verdict, number, uid)
            return await self._settle(number, verdict, due)
        except (OSError, ValueError) as error:
            raise SteeringError(f"message {number}: {error}") from error
        finally:
            for name, when in due.items():  # what is left after trouble
                manager.channels[name].add(number, when)
            manager.keeper.claimed.discard(number)
            manager.retry(())

    async def _wait(self, number: int) -> None:
        """Until nothing of the message runs."""
        manager = self._manager
        manager.keep_back()
        for _ in range(PATIENCE):
            if manager.exiting:
                raise SteeringError(f"message {number}: the daemon is stopping")
            if not manager.is_busy(number):
                return
            await deferLater(manager.clock, 1)
        raise SteeringError(f"message {number}: a delivery is running; hold the message, and try again later")

    def _withdraw(self, number: int) -> dict[str, float]:
        """Take the message out of the schedule; when its channels would have been due."""
        due = {name: channel.withdraw(number) for name, channel in self._manager.channels.items()}
        found = {name: when for name, when in due.items() if when is not None}
        if not found:
            raise SteeringError(f"message {number}: no such message, or it is just ending")
        return found

    async def _is_it(self, number: int, birth: float) -> bool:
        """Whether the number is still that of the message which was meant: numbers are given anew."""
        info = await self._manager.queue.info(number)
        return abs(info.birth - birth) < SAME_BIRTH

    async def _settle(self, number: int, verdict: str, due: dict[str, float]) -> int:
        manager = self._manager
        queue = manager.queue
        count = 0
        for name in list(due):
            if verdict == FAIL:
                count += await fail_recipients(queue, number, name, manager.original)
            await queue.finish_channel(number, name)
            del due[name]
            if verdict == DROP and not due:
                # Not before: until now the message goes on after a crash, and so do its bounces.
                await queue.discard_bounce(number)
            await manager.channel_finished(number)
        return count


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

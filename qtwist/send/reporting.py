"""What senders are told: failures, and what they have asked for (spec/qmail.md §9.10, §9.11; RFC 3461)."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from qtwist.interfaces import IQueue, MessageInfo, QueueError, RecipientRecord
from qtwist.mail import dsn
from qtwist.mail.envelope import Report
from qtwist.mail.qsbmf import recipient_paragraph
from qtwist.send.bounces import BounceSettings, inject_bounce, inject_report
from qtwist.send.log import SendLog
from qtwist.send.schedule import Pass


def end_paragraph(
    info: MessageInfo, channel: str, record: RecipientRecord, address: bytes, report: Report
) -> bytes | None:
    """What bounce/N gets of a recipient who is done, `address` as the sender knew it; None for nothing."""
    if info.asked is None:
        return recipient_paragraph(address, report.text) if report.letter == b"D" else None
    wanted = info.asked.recipients.get((channel, record.offset), b"")
    action = dsn.outcome(channel, report, wanted, info.sender)
    if action is None:
        return None
    # What programs print when all goes well is not for strangers.
    text = b"" if report.letter == b"K" and channel == "local" else report.text
    return dsn.marked_paragraph(address, action, channel, record.offset, text)


class Reporter:
    """Collects in bounce/N what is to be told, and tells it. `original` gives an address as its sender knew it."""

    def __init__(
        self,
        queue: IQueue,
        settings: BounceSettings,
        log: SendLog,
        clock: IReactorTime,
        original: Callable[[bytes], bytes],
    ) -> None:
        self._queue = queue
        self._settings = settings
        self._log = log
        self._clock = clock
        self._original = original

    def paragraph(self, channel: str, one: Pass, record: RecipientRecord, report: Report) -> bytes | None:
        """What bounce/N gets of a recipient who is done; None for nothing. One who is not is noted for his delay."""
        if report.letter == b"K" and one.asked is None:
            return None
        address = self._original(record.address)
        if report.letter in (b"K", b"D"):
            return end_paragraph(MessageInfo(one.sender, one.birth, one.asked), channel, record, address, report)
        if one.asked is not None and self._is_late(one):
            wanted = one.asked.recipients.get((channel, record.offset), b"")
            if dsn.tells_delay(wanted, one.sender):
                one.delayed.append(dsn.About(address, dsn.DELAYED, report.text, channel, record.offset))
        return None

    def _is_late(self, one: Pass) -> bool:
        return bool(self._settings.delaywarn) and self._clock.seconds() >= one.birth + self._settings.delaywarn

    async def tell_delay(self, one: Pass) -> None:
        """Tell of those who were noted in this pass, unless it was told before. What cannot be is tried again after the
        next pass."""
        number = one.number
        try:
            text = await self._queue.bounce(number) or b""
            told = {(about.channel, about.offset) for about in dsn.read_paragraphs(text, marked=True)}
            untold = [about for about in one.delayed if (about.channel, about.offset) not in told]
            if not untold:
                return
            info = await self._queue.info(number)
            now = int(self._clock.seconds())
            accepted = await inject_report(self._queue, self._settings, number, info, untold, now)
            self._log.report(number, accepted.qp)
            # That they were told, until the message ends. Crash here, and they are told again.
            notes = [
                dsn.marked_paragraph(about.address, dsn.DELAYED, about.channel, about.offset, b"The sender knows.\n")
                for about in untold
            ]
            await self._queue.append_bounce(number, b"".join(notes))
        except (QueueError, OSError, ValueError) as error:
            self._log.warning(f"trouble injecting delay notice, will try later: {error}")

    async def tell_end(self, number: int) -> None:
        """At the end of a message, tell what bounce/N has, and remove it. QueueError, OSError or ValueError when that
        cannot be now."""
        text = await self._queue.bounce(number)
        if text is None:
            return
        info = await self._queue.info(number)
        now = int(self._clock.seconds())
        if info.sender == b"#@[]":
            self._log.triple_bounce(number)
        elif info.asked is not None or self._settings.multipart:
            found = dsn.read_paragraphs(text, marked=info.asked is not None)
            # After a crash a recipient may have been tried again: the last word counts.
            last = {(one.channel, one.offset) if one.channel else one.address: one for one in found}
            about = [one for one in last.values() if one.action != dsn.DELAYED]
            if about:
                accepted = await inject_report(self._queue, self._settings, number, info, about, now)
                failed = any(one.action == dsn.FAILED for one in about)
                (self._log.bounce if failed else self._log.report)(number, accepted.qp)
        elif text:  # a crash may leave a file without a whole paragraph
            accepted = await inject_bounce(self._queue, self._settings, number, info.sender, text, now)
            self._log.bounce(number, accepted.qp)
        await self._queue.discard_bounce(number)

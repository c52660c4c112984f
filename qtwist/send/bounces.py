"""Injecting notices: single and double bounces (spec/qmail.md §9.11), and reports (RFC 3461, 3464)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence

import attrs

from qtwist.interfaces import Accepted, IIncomingMessage, IQueue, MessageInfo
from qtwist.mail.dsn import About, ReportFacts, copies_all, report_head, report_tail
from qtwist.mail.envelope import Envelope, Origin
from qtwist.mail.qsbmf import notice_head
from qtwist.mail.require_tls import MARK, demands_tls
from qtwist.mail.verp import bounce_address

_BLOCK = 65536


@attrs.frozen
class BounceSettings:
    """Who sends notices, and who gets those that cannot be sent back (spec/qmail.md §3); after how many seconds a delay
    is told, if it was asked for (0: never), and whether all notices of failure have the form of reports."""

    bouncefrom: bytes
    bouncehost: bytes
    doublebounceto: bytes
    doublebouncehost: bytes
    delaywarn: int = 0
    multipart: bool = False

    def envelope(self, sender: bytes) -> Envelope:
        """The envelope of the notice about a message from `sender` (which is not ``#@[]``)."""
        sender = bounce_address(sender)
        if sender:
            return Envelope(b"", (sender,))
        return Envelope(b"#@[]", (self.doublebounceto + b"@" + self.doublebouncehost,))


async def inject_bounce(
    queue: IQueue, settings: BounceSettings, number: int, sender: bytes, paragraphs: bytes, now: int
) -> Accepted:
    """Queue the notice for message `number`: the collected paragraphs and a copy of the message.

    The notice about a message that demands TLS all the way demands it too, and has its header only (RFC 8689 §5).
    `sender` is the stored one, `now` the time in seconds for the Date field. QueueError when the queue refuses,
    OSError when the message cannot be read; in both cases nothing was queued.
    """
    envelope = settings.envelope(sender)
    head = notice_head(settings, sender, envelope.recipients[0], paragraphs, now)
    return await _inject(queue, number, envelope, lambda full: head, True, b"")


async def inject_report(
    queue: IQueue, settings: BounceSettings, number: int, info: MessageInfo, about: Sequence[About], now: int
) -> Accepted:
    """Queue the report on some recipients of message `number`, with a copy of it where that is due, else with its
    header. Errors, and what demands TLS, are as for a bounce."""
    envelope = settings.envelope(info.sender)
    token = b"%d.%d.%s" % (number, now, secrets.token_hex(12).encode())
    facts = ReportFacts(envelope.recipients[0], info.sender, info.asked, info.birth, now, token)

    def head(full: bool) -> bytes:
        return report_head(settings, facts, about, full=full)

    return await _inject(queue, number, envelope, head, copies_all(info.asked, about), report_tail(token))


async def _inject(
    queue: IQueue, number: int, envelope: Envelope, head: Callable[[bool], bytes], full: bool, tail: bytes
) -> Accepted:
    """Queue `head`, the message or with not `full` its header, and `tail`; `head` is told which."""
    fd = await queue.open(number)
    try:
        block = os.pread(fd, _BLOCK, 0)
        require_tls = demands_tls(block)
        incoming = queue.begin(Origin.bounce(os.getuid(), MARK if require_tls else b""))
    except BaseException:
        os.close(fd)
        raise
    try:
        full = full and not require_tls
        await _write(incoming, head(full))
        if not full:
            header, _, _ = block.partition(b"\n\n")
            await _write(incoming, header + b"\n")
            block = b""
        offset = len(block)
        while block:
            await _write(incoming, block)
            block = os.pread(fd, _BLOCK, offset)
            offset += len(block)
        if tail:
            await _write(incoming, tail)
        accepted: Accepted = await incoming.commit(envelope)
        return accepted
    except BaseException:
        incoming.abort()
        raise
    finally:
        os.close(fd)


async def _write(incoming: IIncomingMessage, data: bytes) -> None:
    waiting = incoming.write(data)
    if waiting is not None:
        await waiting

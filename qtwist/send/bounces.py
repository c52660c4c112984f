"""Injecting notices of failure: single and double bounces (spec/qmail.md §9.11)."""

from __future__ import annotations

import os

import attrs

from qtwist.interfaces import Accepted, IIncomingMessage, IQueue
from qtwist.mail.envelope import Envelope, Origin
from qtwist.mail.qsbmf import notice_head
from qtwist.mail.require_tls import MARK, demands_tls
from qtwist.mail.verp import bounce_address

_BLOCK = 65536


@attrs.frozen
class BounceSettings:
    """Who sends notices, and who gets those that cannot be sent back (spec/qmail.md §3)."""

    bouncefrom: bytes
    bouncehost: bytes
    doublebounceto: bytes
    doublebouncehost: bytes

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
    fd = await queue.open(number)
    try:
        block = os.pread(fd, _BLOCK, 0)
        require_tls = demands_tls(block)
        incoming = queue.begin(Origin.bounce(os.getuid(), MARK if require_tls else b""))
    except BaseException:
        os.close(fd)
        raise
    try:
        await _write(incoming, notice_head(settings, sender, envelope.recipients[0], paragraphs, now))
        if require_tls:
            header, _, _ = block.partition(b"\n\n")
            await _write(incoming, header + b"\n")
            block = b""
        offset = len(block)
        while block:
            await _write(incoming, block)
            block = os.pread(fd, _BLOCK, offset)
            offset += len(block)
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

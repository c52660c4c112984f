"""Trying all mail for a domain now, because its host is there (ETRN, RFC 1985; doc/extensions.md)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from twisted.internet.defer import DeferredLock

from qtwist.mail.domains import ascii_domain
from qtwist.send.manager import QueueManager
from qtwist.send.schedule import READ_AHEAD

#: A domain is not looked for again within so many seconds: a look reads the recipients of all that waits.
INTERVAL = 30

#: So many domains are remembered for that.
MOST_REMEMBERED = 1000

#: Up to so many waiting messages the answer waits for the count.
COUNTED = 1000

#: The answer where nobody has counted.
STARTED = -1


class Flusher:
    """Finds what waits for a domain on the remote channel, and makes it due."""

    def __init__(self, manager: QueueManager) -> None:
        self._manager = manager
        self._lock = DeferredLock()  # one look at a time, however many ask
        self._asked: OrderedDict[bytes, float] = OrderedDict()

    async def flush(self, domain: bytes) -> int:
        """Make what waits for `domain` due; how many messages that is, STARTED where that takes long or was just done.

        What is held stays held; so does an address that does not answer (lock/tcpto), for its time.
        """
        manager = self._manager
        domain = ascii_domain(domain)
        now = manager.clock.seconds()
        if now - self._asked.get(domain, now - INTERVAL) < INTERVAL:
            return STARTED
        self._asked[domain] = now
        self._asked.move_to_end(domain)
        if len(self._asked) > MOST_REMEMBERED:
            self._asked.popitem(last=False)
        numbers = manager.channels["remote"].waiting_numbers()
        looking = manager.attend(self._look(domain, numbers))
        if len(numbers) > COUNTED:
            looking.addErrback(
                lambda failure: manager.log.alert(f"unable to look for mail for a domain: {failure.value}")
            )
            return STARTED
        return await looking

    async def _look(self, domain: bytes, numbers: Collection[int]) -> int:
        manager = self._manager
        found = []
        await self._lock.acquire()
        try:
            for number in numbers:
                if manager.exiting:
                    break
                if await self._is_for(number, domain):
                    found.append(number)
        finally:
            self._lock.release()
        if found and not manager.exiting:
            manager.retry(found)
        return len(found)

    async def _is_for(self, number: int, domain: bytes) -> bool:
        offset = 0
        while self._manager.channels["remote"].is_waiting(number):
            try:
                records, offset = await self._manager.queue.recipients(number, "remote", offset, READ_AHEAD)
            except (OSError, ValueError):
                return False  # it has ended meanwhile, or its next try will tell what is wrong
            if any(not one.done and ascii_domain(one.address.rpartition(b"@")[2]) == domain for one in records):
                return True
            if len(records) < READ_AHEAD:
                return False
        return False

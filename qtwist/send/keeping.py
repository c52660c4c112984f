"""What the queue manager leaves alone: held by the administrator, or claimed by somebody who works on it."""

from __future__ import annotations

from collections.abc import Callable

from qtwist.mail.holds import Hold, Holds
from qtwist.send.schedule import Pass


class Keeper:
    """Which messages and recipients are kept back, and which of them were.

    `read` gives the holds as they stand, or raises what is wrong with them; `original` turns a rewritten address into
    the one that its sender knew. Messages in `claimed` are left alone until they are taken out again.
    """

    def __init__(self, read: Callable[[], Holds], original: Callable[[bytes], bytes]) -> None:
        self.holds = Holds()
        self.claimed: set[int] = set()
        self._read = read
        self._original = original
        self._kept_back: dict[int, set[Hold]] = {}  # messages of which something was not tried, and why

    def reread(self) -> list[int]:
        """Keep back what is to be kept back from now on; the messages of which something no longer is."""
        self.holds = self._read()
        free = [number for number, why in self._kept_back.items() if any(hold not in self.holds for hold in why)]
        for number in free:
            del self._kept_back[number]
        return free

    def keeps(self, number: int, birth: float, sender: bytes) -> bool:
        """Whether a whole message is held; it is remembered."""
        hold = self.holds.of_message(number, birth, sender)
        if hold is not None:
            self._kept_back.setdefault(number, set()).add(hold)
        return hold is not None

    def sift(self, one: Pass) -> None:
        """Take what is held or claimed out of one pass; it stays for a later one."""
        if self.keeps(one.number, one.birth, one.sender) or one.number in self.claimed:
            one.left = one.left or bool(one.pending) or not one.at_end
            one.pending.clear()
            one.at_end = True
            return
        for record in list(one.pending) if self.holds.entries else ():
            hold = self._hold_of(record.address)
            if hold is not None:
                self._kept_back.setdefault(one.number, set()).add(hold)
                one.pending.remove(record)
                one.left = True

    def forget(self, number: int) -> None:
        """The message is gone."""
        self._kept_back.pop(number, None)

    def _hold_of(self, address: bytes) -> Hold | None:
        """Why a recipient is held, by the address as it is delivered to or as its sender knew it."""
        return self.holds.of_recipient(address) or self.holds.of_recipient(self._original(address))

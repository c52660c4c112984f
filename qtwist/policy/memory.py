"""control/memoryminfree: nobody is let in, and no mail is begun, that there is no memory for."""

from __future__ import annotations

from qtwist.mail.address import Address
from qtwist.policy.base import Opinion, Policy, refuse
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched
from qtwist.queue.memory import Memory

_TEXT = b"not enough memory, try again later (#4.3.1)"


class MemoryFree(Policy):
    """While less than control/memoryminfree octets of memory are free, answers a connection with 421, and MAIL on those
    that are there with 452. Nobody is excepted."""

    name = "memory"

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        least = Watched(control, ("memoryminfree",), lambda: control.integer("memoryminfree"))
        self.memory = Memory(least.get, surroundings.clock.seconds)

    def connect(self, session: Session) -> Opinion:
        return self._refusal(421)

    def mail(self, session: Session, sender: Address) -> Opinion:
        return self._refusal(452)

    def _refusal(self, code: int) -> Opinion:
        return None if self.memory.has() else refuse(code, _TEXT, "memoryminfree")

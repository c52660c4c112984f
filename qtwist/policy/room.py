"""control/queueminfree: no mail is begun that the queue's disk has no room for."""

from __future__ import annotations

from qtwist.mail.address import Address
from qtwist.policy.base import Opinion, Policy, refuse
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched
from qtwist.queue.room import Room

_TEXT = b"insufficient system storage, try again later (#4.3.1)"


class QueueRoom(Policy):
    """Answers MAIL with 452 while less than control/queueminfree octets, or a thousand inodes, are free where the queue
    lies; or would be, with a message of the SIZE that the client tells. Nobody is excepted."""

    name = "queueroom"

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        least = Watched(control, ("queueminfree",), lambda: control.integer("queueminfree"))
        self.room = Room(f"{surroundings.home}/queue", least.get, surroundings.clock.seconds)

    def mail(self, session: Session, sender: Address) -> Opinion:
        if self.room.has(session.declared_size):
            return None
        return refuse(452, _TEXT, "queueminfree")

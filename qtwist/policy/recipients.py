"""control/rcptcheck: recipients that mail could not be delivered to are refused at RCPT (spec/qmail.md §12, §13).

The look-up is the one of a delivery: control/locals and control/virtualdomains, then users/cdb, accounts and alias,
then the .qmail files. So nothing is accepted that would bounce to a sender who may be forged.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.logger import Logger

from qtwist.local.errors import DONE, PERMANENT
from qtwist.mail.address import Address
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.rewriting import LOCAL, Rewriter
from qtwist.policy.base import Answer, Opinion, Policy, refuse
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched

if TYPE_CHECKING:
    from qtwist.control import Control

FILES = ("me", "rcptcheck", "brtlimit", "envnoathost", "locals", "percenthack", "virtualdomains")

#: Seconds that a look-up may take, with the wait for its turn; after that the client is asked to come again.
PATIENCE = 30
#: Seconds that an answer is remembered: that there is a mailbox, and that there is none.
REMEMBERED = 60.0
REMEMBERED_ABSENT = 15.0
MOST_REMEMBERED = 10_000

_log = Logger(namespace="qtwist.policy")


class ILookup(Protocol):
    """Says whether mail to a local part could be delivered."""

    def __call__(self, local: bytes) -> Deferred[int]:
        """Exit codes of a delivery (§11.3): 0 it could, 100 never, others not now. It may take long."""


@attrs.frozen
class _Settings:
    on: bool
    limit: int
    rewriter: Rewriter


class Recipients(Policy):
    """Refuses recipients here that have no mailbox, with 550, if control/rcptcheck is 1: a home that cannot be used now
    is a 451. After control/brtlimit refused ones the connection ends with 421."""

    name = "rcptcheck"
    idle_without = ("rcptcheck",)

    def __init__(self, surroundings: Surroundings) -> None:
        control = surroundings.control
        self._surroundings = surroundings
        self._settings = Watched(control, FILES, lambda: _read(control))
        self._known: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def rcpt(self, session: Session, recipient: Address) -> Answer:
        settings = self._settings.get()
        lookup = self._surroundings.lookup
        if not settings.on or lookup is None:
            return None
        channel, address = settings.rewriter.route(recipient.raw + session.environment.get(b"RELAYCLIENT", b""))
        if channel != LOCAL:
            return None
        return self._judge(session, settings, lookup, address.rpartition(b"@")[0])

    async def _judge(self, session: Session, settings: _Settings, lookup: ILookup, local: bytes) -> Opinion:
        code = await self._look_up(lookup, local)
        if code == DONE:
            return None
        if code != PERMANENT:
            return refuse(
                451, b"this mailbox cannot be used now, try again later (#4.3.0)", f"look-up gave code {code}"
            )
        missed = session.notes[self] = int(session.notes.get(self, 0)) + 1  # type: ignore[call-overload]
        if settings.limit and missed >= settings.limit:
            reason = f"{missed} recipients that do not exist (control/brtlimit)"
            return refuse(421, b"too many recipients that do not exist (#4.7.0)", reason)
        return refuse(550, b"there is no mailbox of that name here (#5.1.1)", "no such recipient")

    async def _look_up(self, lookup: ILookup, local: bytes) -> int:
        clock = self._surroundings.clock
        expires, code = self._known.get(local, (0.0, DONE))
        if expires > clock.seconds():
            return code
        try:
            code = await lookup(local).addTimeout(PATIENCE, clock)
        except (TimeoutError, CancelledError):
            return -1
        if code in (DONE, PERMANENT):
            self._known[local] = clock.seconds() + (REMEMBERED if code == DONE else REMEMBERED_ABSENT), code
            self._known.move_to_end(local)
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        return code


def _read(control: Control) -> _Settings:
    on = bool(control.integer("rcptcheck"))
    rewriter = Rewriter(
        control.line("envnoathost") or b"",
        control.map("locals") or ConstantMap(),
        control.map("percenthack") or ConstantMap(),
        control.map("virtualdomains") or ConstantMap(),
    )
    return _Settings(on, control.integer("brtlimit"), rewriter)


class InThread:
    """A look-up by a blocking function, in a process that may see the homes."""

    def __init__(self, surroundings: Surroundings, look_up: LookUp) -> None:
        self._surroundings = surroundings
        self._look_up = look_up

    def __call__(self, local: bytes) -> Deferred[int]:
        if not local:
            return succeed(DONE)  # mail for nobody at this host is thrown away (§11.2)
        code: Deferred[int] = self._surroundings.in_thread(self._look_up, local)
        return code


class LookUp(Protocol):
    def __call__(self, local: bytes) -> int: ...

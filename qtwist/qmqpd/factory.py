"""The factory of QMQP connections, and what the control files say about one (spec/qmail.md §17.2)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
from twisted.internet.interfaces import IAddress, IReactorTime

from qtwist.gating import Gate
from qtwist.interfaces import IQueueEntrance
from qtwist.mail.envelope import Origin
from qtwist.policy.relay import Networks
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.trace import Traces
from qtwist.policy.watched import Watched
from qtwist.qmqpd.protocol import QMQPProtocol
from qtwist.queue.room import Reserve
from qtwist.serving import DrainingFactory

if TYPE_CHECKING:
    from qtwist.control import Control

FILES = ("qmqpclients", "timeoutqmtpd", "concurrencyincoming")


@attrs.frozen
class Settings:
    """`clients` are those who are served; `timeout` is how many seconds a request may take."""

    clients: Networks
    timeout: int
    connections: int


def read_settings(control: Control) -> Settings:
    """Read them. ControlError when a file is wrong or cannot be read."""
    return Settings(
        clients=Networks.read(control, "qmqpclients"),
        timeout=max(control.integer("timeoutqmtpd"), 1),
        connections=control.integer("concurrencyincoming"),
    )


class QMQPFactory(DrainingFactory[QMQPProtocol]):
    """Makes the connections of a QMQP port. Nobody is served who is not listed in control/qmqpclients.

    The files are read per connection, but only when they have changed. `clock` times out; `now` tells the date.
    `refused` counts the connections that are still there only to read why they are not served. While there is not
    enough of one of `reserves`, nothing is taken.
    """

    protocol: Callable[[], QMQPProtocol] = QMQPProtocol  # type: ignore[assignment]  # narrower than Factory has it

    def __init__(
        self,
        control: Control,
        queue: IQueueEntrance,
        *,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
        reserves: Sequence[Reserve] = (),
    ) -> None:
        super().__init__()
        if clock is None:
            from twisted.internet import reactor

            clock = IReactorTime(reactor)
        self.control = control
        self.queue = queue
        self.clock = clock
        self.now = now
        self.reserves = reserves
        self.refused = 0
        self.traces = Traces(control)
        self.surroundings = Surroundings(control, clock, now)
        self._gate = Gate(self.surroundings, "qmqp")
        self.settings: Watched[Settings] = Watched(control, FILES, lambda: read_settings(control))

    @property
    def origin(self) -> Origin:
        """What the queue is told of a message's origin; made when it is needed, for privileges may be shed after us."""
        return Origin.network(os.getuid())

    def buildProtocol(self, addr: IAddress | None) -> QMQPProtocol | None:  # type: ignore[override]
        connection: QMQPProtocol | None = self._gate.build(self, addr, self._make)
        return connection

    def _make(self, variables: dict[bytes, bytes]) -> QMQPProtocol:
        connection = self.protocol()
        connection.factory = self
        connection.variables = variables
        return connection

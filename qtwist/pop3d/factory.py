"""The factory of POP3 connections."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IAddress, IReactorTime

from qtwist.gating import Gate
from qtwist.policy.limits import ConnectionCounts
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.trace import Traces
from qtwist.policy.watched import Watched
from qtwist.pop3d.protocol import POP3Protocol
from qtwist.pop3d.settings import FILES, Settings, read_settings
from qtwist.queue.memory import Memory
from qtwist.serving import DrainingFactory
from qtwist.tls.certificates import Certificates
from qtwist.wire.pop3_server import Limits

if TYPE_CHECKING:
    from qtwist.auth.authenticator import Authenticator
    from qtwist.control import Control


class POP3Factory(DrainingFactory[POP3Protocol]):
    """Makes the connections of a POP3 port.

    `authenticator` is asked for an :class:`~qtwist.pop3d.interfaces.IMaildrop`. `control` is read per connection, but
    only files that have changed. `clock` times everything out; `now` tells the date. A subclass can change `protocol`,
    `limits`, :meth:`timestamp` and `service`, the name of the service in logs and for the authenticator.
    Nobody is let in that there is no `memory` for.
    """

    protocol: Callable[[], POP3Protocol] = POP3Protocol  # type: ignore[assignment]  # narrower than Factory has it
    limits = Limits()
    service = "pop3"

    def __init__(
        self,
        control: Control,
        authenticator: Authenticator,
        *,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        if clock is None:
            from twisted.internet import reactor

            clock = IReactorTime(reactor)
        self.authenticator = authenticator
        self.clock = clock
        self.now = now
        self.settings: Watched[Settings] = Watched(control, FILES, lambda: read_settings(control))
        self.certificates = Certificates(control, now)
        least = Watched(control, ("memoryminfree",), lambda: control.integer("memoryminfree"))
        self.memory = Memory(least.get, clock.seconds, kept="session of POP3")
        self._counter = itertools.count(1)
        self.traces = Traces(control)
        self.surroundings = Surroundings(control, clock, now, share=lambda: self.share)
        self.clients = ConnectionCounts(self.surroundings, "pop3")
        self._gate = Gate(self.surroundings, "pop3")

    def timestamp(self, host: bytes) -> bytes:
        """What APOP is computed with, never the same twice (RFC 1939 §7): ``<pid.time.count@host>`` (spec §18.1)."""
        return b"<%d.%d.%d@%s>" % (os.getpid(), self.now(), next(self._counter), host)

    def buildProtocol(self, addr: IAddress | None) -> POP3Protocol | None:  # type: ignore[override]
        connection: POP3Protocol | None = self._gate.build(self, addr, self._make)
        return connection

    def _make(self, variables: dict[bytes, bytes]) -> POP3Protocol:
        connection = self.protocol()
        connection.factory = self
        connection.variables = variables
        return connection

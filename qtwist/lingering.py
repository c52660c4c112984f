"""How a server leaves a client that may still be sending: the last answer must not be lost.

A TCP connection that is closed while there is something unread in it is reset, and a reset can overtake what was
written before: the client would never see its answers, and send messages again that were accepted.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How long the client may take to read and to hang up (seconds).
PATIENCE = 10


class Lingering:
    """Shows the client the end, then waits for the client's own.

    Whoever makes one throws away what still comes, calls `transport.loseConnection` at the client's end, and
    :meth:`over` when the connection is gone.
    """

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        self._timer: IDelayedCall | None = None
        half_close = getattr(transport, "loseWriteConnection", None)
        if half_close is None:  # TLS, which says goodbye itself
            transport.loseConnection()
            return
        transport.resumeProducing()
        half_close()
        self._timer = clock.callLater(PATIENCE, self._give_up, transport)

    def over(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, transport: Any) -> None:
        self._timer = None
        transport.abortConnection()

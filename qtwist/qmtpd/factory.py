"""The factory of QMTP connections, and what the control files say about one (spec/qmail.md §17.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
from twisted.internet.interfaces import IAddress, IReactorTime

from qtwist.interfaces import IQueueEntrance
from qtwist.policy.base import Policy
from qtwist.policy.serving import PolicyFactory
from qtwist.policy.watched import Watched
from qtwist.qmtpd.protocol import QMTPProtocol
from qtwist.tls.certificates import Certificates

if TYPE_CHECKING:
    from qtwist.control import Control

FILES = ("databytes", "timeoutqmtpd", "maxrecipients", "concurrencyincoming")


@attrs.frozen
class Settings:
    """`databytes` 0 means no limit; `timeout` is how many seconds a session may last."""

    databytes: int
    timeout: int
    recipients: int
    connections: int


def read_settings(control: Control) -> Settings:
    """Read them. ControlError when a file cannot be read."""
    return Settings(
        databytes=control.integer("databytes"),
        timeout=max(control.integer("timeoutqmtpd"), 1),
        recipients=control.integer("maxrecipients"),
        connections=control.integer("concurrencyincoming"),
    )


class QMTPFactory(PolicyFactory[QMTPProtocol]):
    """Makes the connections of a QMTP port. The policies are those of SMTP, but for `helo`, which never comes."""

    service = "qmtp"
    protocol: Callable[[], QMTPProtocol] = QMTPProtocol  # type: ignore[assignment]  # narrower than Factory has it

    def __init__(
        self,
        control: Control,
        queue: IQueueEntrance,
        policies: Sequence[Policy] = (),
        *,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(control, queue, policies, clock=clock, now=now)
        self.settings: Watched[Settings] = Watched(control, FILES, lambda: read_settings(control))
        self.certificates = Certificates(control, now)

    def buildProtocol(self, addr: IAddress | None) -> QMTPProtocol:  # type: ignore[override]
        connection = self.protocol()
        connection.factory = self
        return connection

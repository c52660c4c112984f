"""The factory of SMTP connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime

from qtwist.interfaces import IQueueEntrance
from qtwist.policy.base import Policy
from qtwist.policy.relay import Networks
from qtwist.policy.serving import PolicyFactory
from qtwist.policy.session import Session
from qtwist.policy.watched import Watched
from qtwist.smtpd.protocol import SMTPProtocol
from qtwist.smtpd.settings import FILES, Settings, read_settings
from qtwist.smtpd.turning import Turns, ask
from qtwist.tls.certificates import Certificates

if TYPE_CHECKING:
    from qtwist.auth.authenticator import Authenticator
    from qtwist.control import Control


class SMTPFactory(PolicyFactory[SMTPProtocol]):
    """Makes the connections of an SMTP port; a subclass can change :meth:`is_own_address` and `service`, too. STARTTLS
    is offered as soon as there are `certificates`.


    `authenticator` is asked for the IAccount of who gives AUTH, in the name of `service`; without one there is no AUTH.
    """

    service = "smtp"
    protocol: Callable[[], SMTPProtocol] = SMTPProtocol  # type: ignore[assignment]  # narrower than Factory has it

    def __init__(
        self,
        control: Control,
        queue: IQueueEntrance,
        policies: Sequence[Policy] = (),
        *,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
        authenticator: Authenticator | None = None,
    ) -> None:
        super().__init__(control, queue, policies, clock=clock, now=now)
        self.authenticator = authenticator
        self.settings: Watched[Settings] = Watched(control, FILES, lambda: read_settings(control))
        self.certificates = Certificates(control, now)
        self.etrn = Watched(control, ("etrnclients",), lambda: Turns.read(control, "etrnclients"))
        self.autoturn = Watched(control, ("autoturn",), lambda: Turns.read(control, "autoturn"))
        self.fronts = Watched(control, ("xclients",), lambda: Networks.read(control, "xclients"))

    def send_for(self, domain: bytes) -> Deferred[int]:
        """Have what waits for a domain tried; how many messages, -1 where they were not counted."""
        return ask(self.clock, self.surroundings.home, domain)

    def is_own_address(self, session: Session, address: str) -> bool:
        """Is this IPv4 address, written with dots, one of ours (localiphost, spec §16.3)?

        The one that the client is connected to is, and 0.0.0.0; give a subclass that knows all interfaces, if needed.
        """
        return address in (session.local_ip, "0.0.0.0")

    def buildProtocol(self, addr: IAddress | None) -> SMTPProtocol:  # type: ignore[override]
        connection = self.protocol()
        connection.factory = self
        return connection

"""control/tlsclients: clients that may send mail to anywhere because of their certificate (spec/related.md §14.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtwist.mail.address import Address
from qtwist.policy.base import Opinion, Policy
from qtwist.policy.session import Session
from qtwist.policy.watched import Watched

if TYPE_CHECKING:
    from qtwist.control import Control


class TLSClients(Policy):
    """Sets RELAYCLIENT, empty, for clients with a verified certificate in which a listed mail address stands.

    Letter case does not matter. At MAIL, as TLS may begin at any time before.
    """

    def __init__(self, control: Control) -> None:
        self._listed = Watched(control, ("tlsclients",), lambda: control.map("tlsclients"))

    @classmethod
    def from_control(cls, control: Control) -> TLSClients:
        return cls(control)

    def mail(self, session: Session, sender: Address) -> Opinion:
        if session.tls is None or session.tls.client is None or session.may_relay:
            return None
        listed = self._listed.get()
        for email in session.tls.client.emails:
            if listed is not None and email in listed:
                session.environment[b"RELAYCLIENT"] = b""
                session.relay_certificate = email
                break
        return None

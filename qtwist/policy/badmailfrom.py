"""control/badmailfrom: senders whose mail nobody gets (spec/qmail.md §16.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtwist.mail.address import Address
from qtwist.policy.base import Opinion, Policy
from qtwist.policy.session import Session
from qtwist.policy.watched import Watched
from qtwist.wire.smtp_server import Reply

if TYPE_CHECKING:
    from qtwist.control import Control

REFUSAL = Reply(553, b"mail from this sender is not taken here (#5.7.1)")


class BadMailFrom(Policy):
    """Refuses every recipient when the whole sender address, or ``@`` and its domain, is listed. Case is ignored."""

    def __init__(self, control: Control) -> None:
        self._bad = Watched(
            control, ("badmailfrom",), lambda: frozenset(line.lower() for line in control.list("badmailfrom") or ())
        )

    @classmethod
    def from_control(cls, control: Control) -> BadMailFrom:
        return cls(control)

    def connect(self, session: Session) -> Opinion:
        self._bad.get()  # a file that cannot be read shows now, not in the middle of a transaction
        return None

    def rcpt(self, session: Session, recipient: Address) -> Opinion:
        bad = self._bad.get()
        if bad and session.sender is not None:
            sender = session.sender.raw.lower()
            at = sender.rfind(b"@")
            if sender in bad or (at >= 0 and sender[at:] in bad):
                return REFUSAL
        return None

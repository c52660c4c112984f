"""control/badmailfrom and control/badrcptto: senders and recipients whose mail nobody gets (spec/qmail.md §16.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtwist.mail.address import Address
from qtwist.policy.base import Opinion, Policy, refuse
from qtwist.policy.patterns import PatternFiles
from qtwist.policy.session import Session

if TYPE_CHECKING:
    from qtwist.control import Control


class BadMailFrom(Policy):
    """Refuses every recipient when the sender is listed: its whole address, ``@`` and its domain, or a pattern that
    fits. BADMAILFROM in a rule names another list, or none. Clients that may relay are not excepted."""

    name = "badmailfrom"
    idle_without = ("badmailfrom", "BADMAILFROM")

    def __init__(self, control: Control) -> None:
        self._lists = PatternFiles(control, "badmailfrom")

    @classmethod
    def from_control(cls, control: Control) -> BadMailFrom:
        return cls(control)

    def connect(self, session: Session) -> Opinion:
        self._find(session, b"")  # a file that cannot be read shows now, not in the middle of a transaction
        return None

    def rcpt(self, session: Session, recipient: Address) -> Opinion:
        found = None if session.sender is None else self._find(session, session.sender.raw)
        if found is None:
            return None
        return refuse(553, b"mail from this sender is not taken here (#5.7.1)", found)

    def _find(self, session: Session, sender: bytes) -> str | None:
        return self._lists.find(sender, session.environment.get(b"BADMAILFROM"))


class BadRcptTo(Policy):
    """Refuses recipients that are listed in control/badrcptto or control/badmailto, as badmailfrom does senders.
    BADRCPTTO in a rule names another list, or none."""

    name = "badrcptto"
    idle_without = ("badrcptto", "badmailto", "BADRCPTTO")

    def __init__(self, control: Control) -> None:
        self._lists = PatternFiles(control, "badrcptto", "badmailto")

    @classmethod
    def from_control(cls, control: Control) -> BadRcptTo:
        return cls(control)

    def rcpt(self, session: Session, recipient: Address) -> Opinion:
        found = self._lists.find(recipient.raw, session.environment.get(b"BADRCPTTO"))
        if found is None:
            return None
        return refuse(553, b"mail to this recipient is not taken here (#5.7.1)", found)

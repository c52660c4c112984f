"""Who may do what: policies that the servers ask at each step of a session.

``from qtwist.policy import Policy, refuse`` is all that a policy of one's own needs; see ``doc/extending.md``.
"""

from __future__ import annotations

from qtwist.policy.base import Policy, accept, refuse
from qtwist.policy.session import ReceivedMessage, Session
from qtwist.wire.smtp_reply import Reply

__all__ = ["Policy", "ReceivedMessage", "Reply", "Session", "accept", "refuse"]

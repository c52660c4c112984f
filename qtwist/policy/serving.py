"""The factory of a protocol whose sessions ask the policies: SMTP and QMTP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReactorTime

from qtwist.interfaces import IQueueEntrance
from qtwist.mail.envelope import Origin
from qtwist.policy.badmailfrom import BadMailFrom
from qtwist.policy.base import HOOKS, Policy, hooks
from qtwist.policy.loader import load_policies
from qtwist.policy.rcpthosts import RcptHosts
from qtwist.policy.relay import LoginMayRelay, RelayClients
from qtwist.policy.session import Session
from qtwist.policy.tlsclients import TLSClients
from qtwist.serving import C, DrainingFactory

if TYPE_CHECKING:
    from qtwist.control import Control


class PolicyFactory(DrainingFactory[C]):
    """A factory with a queue to put messages in and policies to ask first.

    `control` is read per connection, as qmail does, but only files that have changed. `policies` are asked before the
    standard ones. `clock` times everything out; `now` tells the date.

    Made to be subclassed: :meth:`chain`, :meth:`make_session` and `protocol` are the joints. ControlError when
    control/policies is wrong.
    """

    def __init__(
        self,
        control: Control,
        queue: IQueueEntrance,
        policies: Sequence[Policy] = (),
        *,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        if clock is None:
            from twisted.internet import reactor

            clock = IReactorTime(reactor)
        self.control = control
        self.queue = queue
        self.clock = clock
        self.now = now
        chain = self.chain(policies)
        self.hooks = {name: hooks(chain, name) for name in HOOKS}

    @property
    def origin(self) -> Origin:
        """What the queue is told of a message's origin; made when it is needed, for privileges may be shed after us."""
        return Origin.network(os.getuid())

    def chain(self, policies: Sequence[Policy]) -> list[Policy]:
        """All policies in the order in which they are asked, `policies` being those given to the factory.

        Who may relay is settled first, so that the others can see it; badmailfrom and rcpthosts come last, so that
        an earlier policy can accept what they would refuse.
        """
        control = self.control
        return [
            RelayClients(control),
            TLSClients(control),
            LoginMayRelay(),
            *policies,
            *load_policies(control),
            BadMailFrom(control),
            RcptHosts(control),
        ]

    def make_session(self, transport: Any) -> Session:
        """The session of a new connection, its environment as tcpserver would set it (spec/qmail.md §4)."""
        return Session.of(transport)

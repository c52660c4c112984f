"""The factory of a protocol whose sessions ask the policies: SMTP and QMTP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from qtwist.control import ControlError
from qtwist.control_services import parse_service
from qtwist.interfaces import IIncomingMessage, IQueueEntrance
from qtwist.mail.envelope import Origin
from qtwist.policy.base import HOOKS, Answer, Policy, hooks
from qtwist.policy.connection import PolicyConnection
from qtwist.policy.limits import ClientLimits
from qtwist.policy.loader import load_policies
from qtwist.policy.presence import Presence
from qtwist.policy.relay import LoginMayRelay, RelayClients
from qtwist.policy.session import Session
from qtwist.policy.standard import STANDARD
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.tcprules import TCPRules, read_rules
from qtwist.policy.tlsclients import TLSClients
from qtwist.policy.trace import Traces
from qtwist.policy.watched import Watched
from qtwist.serving import DrainingFactory

if TYPE_CHECKING:
    from qtwist.control import Control


#: Control files whose lines are services that look at messages.
CONTENT_FILES = ("clamd", "rspamd", "milters")

_log = Logger(namespace="qtwist.trace")

C = TypeVar("C", bound="PolicyConnection")

Hooks = Mapping[str, tuple[Callable[..., Answer], ...]]

#: Sets of variables and files for which it is remembered who is asked.
_MOST_COMBINATIONS = 100


class PolicyFactory(DrainingFactory[C]):
    """A factory with a queue to put messages in and policies to ask first.

    `control` is read per connection, as qmail does, but only files that have changed. `policies` are asked before the
    standard ones. `clock` times everything out; `now` tells the date.

    `service` is what the files with its rules are called (``smtp``: control/tcp.smtp). `surroundings` is what policies
    may use; see there for what may be set.

    Made to be subclassed: :meth:`chain`, :meth:`make_session` and `protocol` are the joints. ControlError when
    control/policies is wrong.
    """

    service = "smtp"

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
        self.surroundings = Surroundings(control, clock, now, share=lambda: self.share)
        self._program = Watched(control, ("qmailqueue",), lambda: control.line("qmailqueue"))
        self.traces = Traces(control)
        self._chain = tuple(self.chain(policies))
        self._presence = Presence(control.directory)
        self._asked: dict[tuple[frozenset[str], frozenset[bytes] | None], Hooks] = {}
        self.hooks: Hooks = {name: hooks(self._chain, name) for name in HOOKS}

    @property
    def origin(self) -> Origin:
        """What the queue is told of a message's origin; made when it is needed, for privileges may be shed after us."""
        return Origin.network(os.getuid())

    def begin_message(self, session: Session, has_program: bool) -> IIncomingMessage:
        """A message of `session` on its way into the queue, or into the program that QMAILQUEUE in its rule or
        control/qmailqueue names, which there is if it `has_program` (spec/qmail.md §7). QueueError, OSError or
        ControlError when there is no way."""
        program = session.environment.get(b"QMAILQUEUE")
        if program is None and has_program:
            program = self._program.get()
        if not program:
            return self.queue.begin(self.origin)
        from qtwist.queue.filtering import ProgramMessage

        home = self.surroundings.home
        known = {name: os.environb[name] for name in (b"PATH", b"TZ", b"PYTHONPATH") if name in os.environb}
        environ = {**known, b"QTWISTHOME": os.fsencode(home), **session.environment}
        message: IIncomingMessage = ProgramMessage(self.surroundings.clock, home, program, environ)
        return message

    def chain(self, policies: Sequence[Policy]) -> list[Policy]:
        """All policies in the order in which they are asked, `policies` being those given to the factory.

        Who may connect and who may relay is settled first, so that the others can see it; the standard policies come
        last, so that an earlier one can accept what they would refuse, unless control/policies names them.
        """
        control = self.control
        standard = {name: make(self.surroundings) for name, make in STANDARD.items()}
        listed = load_policies(control, {name: one for name, one in standard.items() if name != "rcpthosts"})
        return [
            TCPRules(self.surroundings, self.service),
            RelayClients(control),
            TLSClients(control),
            LoginMayRelay(),
            ClientLimits(self.surroundings, self.service),
            *policies,
            *listed,
            *(policy for policy in standard.values() if policy not in listed),
        ]

    def hooks_for(self, present: frozenset[str], known: frozenset[bytes] | None) -> Hooks:
        """The hooks that are asked on a connection: not those of policies that are idle where these control files are
        `present` and these variables are `known`; None before the `connect` hooks were asked, which may set any."""
        asked = self._asked.get((present, known))
        if asked is None:
            if len(self._asked) >= _MOST_COMBINATIONS:
                self._asked.clear()
            chain = [policy for policy in self._chain if not _is_idle(policy, present, known)]
            asked = self._asked[present, known] = {name: hooks(chain, name) for name in HOOKS}
        return asked

    def hooks_after_connect(self, session: Session) -> Hooks:
        """The hooks that are asked once `connect` has set all variables."""
        return self.hooks_for(self._presence.get(), frozenset(session.environment))

    def make_session(self, transport: Any) -> Session:
        """The session of a new connection, its environment as tcpserver would set it (spec/qmail.md §4)."""
        return Session.of(transport)

    def connection_made(self, connection: C) -> int:
        self._session_begins(connection)
        return super().connection_made(connection)

    def connection_lost(self, connection: C) -> None:
        self._session_ends(connection)
        super().connection_lost(connection)

    def change_session(self, connection: C, session: Session) -> None:
        """From here on another client is on the connection."""
        self._session_ends(connection)
        connection.session = session
        self._session_begins(connection)

    def _session_begins(self, connection: C) -> None:
        session = connection.session
        present = self._presence.get()
        connection.hooks = self.hooks_for(present, None)
        connection.has_program = "qmailqueue" in present
        if "trace" in present:
            connection.tracer = self.traces.begin(session.id, session.remote_ip)

    def _session_ends(self, connection: C) -> None:
        if connection.tracer is not None:
            connection.tracer.end()
            connection.tracer = None
        for hook in self.hooks["end"]:
            try:
                hook(connection.session)
            except Exception:  # foreign code; the others are told all the same
                _log.failure("{id}: a policy has failed in end", id=connection.session.id)


def _is_idle(policy: Policy, present: frozenset[str], known: frozenset[bytes] | None) -> bool:
    if not policy.idle_without or not present.isdisjoint(policy.idle_without):
        return False
    variables = (name for name in policy.idle_without if name.isupper())
    return not any(known is None or name.encode("ascii") in known for name in variables)


def asks_network(control: Control) -> bool:
    """Whether the policies, as the files are now, have to ask other hosts: the DNS, or clients by IDENT. Files that are
    wrong may come to ask them once they are right."""
    if any(control.integer(name) for name in ("tcpremotehost", "tcpremoteinfo", "mfcheck")):
        return True
    if control.integer("helocheck") > 1 or control.list("dnsbllist"):
        return True
    for name in CONTENT_FILES:
        for line in control.list(name) or ():
            try:
                if parse_service(line.decode("utf-8", "surrogateescape"), 1).path is None:
                    return True
            except ValueError:
                return True
    for service in ("smtp", "qmtp", "submission", "qmqp", "pop3"):
        try:
            rules = read_rules(control, service)
        except ControlError:
            return True
        if rules is not None and (rules.asks_name or rules.asks_ident):
            return True
    return False

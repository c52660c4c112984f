"""The factory of connections on which our own users submit mail."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from qtwist.auth.addresses import Addresses
from qtwist.control import ControlError
from qtwist.files.cdb import CDB
from qtwist.inject import fields
from qtwist.inject.addresses import Completion
from qtwist.inject.submitted import Naming
from qtwist.inject.tokens import SyntaxTrouble
from qtwist.interfaces import IQueueEntrance
from qtwist.policy.base import Policy
from qtwist.policy.limits import ClientLimits
from qtwist.policy.loader import load_policies
from qtwist.policy.memory import MemoryFree
from qtwist.policy.rcpthosts import RcptHosts
from qtwist.policy.relay import LoginMayRelay
from qtwist.policy.room import QueueRoom
from qtwist.policy.session import Session
from qtwist.policy.standard import CONTENT
from qtwist.policy.tcprules import TCPRules
from qtwist.policy.watched import Watched
from qtwist.smtpd.factory import SMTPFactory
from qtwist.smtpd.settings import FILES, Settings, read_settings
from qtwist.submission.policies import LoginRequired, OwnSender, UserLimits
from qtwist.submission.protocol import SubmissionProtocol

if TYPE_CHECKING:
    from qtwist.auth.authenticator import Authenticator
    from qtwist.control import Control

_FILES = ("me", "idhost", "defaulthost", "defaultdomain", "plusdomain", "ofmipname.cdb")


@attrs.frozen
class Rules:
    """How headers and addresses are completed; `names` is the name database."""

    complete: Completion
    idhost: bytes
    names: CDB | None


class SubmissionFactory(SMTPFactory):
    """Makes the connections of ports that are for users: they have to log in, whatever the other control files say.

    `addresses` tells whose an address is; `run` calls what may block in a thread. The lists and rules about strangers
    are not asked: badmailfrom, relayclients, control/policies; those of control/submissionpolicies are, and
    control/tcp.submission, which can deny, but let nobody in without a login.
    """

    service = "submission"
    protocol: Callable[[], SubmissionProtocol] = SubmissionProtocol

    def __init__(
        self,
        control: Control,
        queue: IQueueEntrance,
        policies: Sequence[Policy] = (),
        *,
        authenticator: Authenticator,
        addresses: Addresses,
        run: Callable[..., Deferred[Any]],
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._addresses = addresses
        self._run = run
        self._seconds = clock.seconds
        self._numbers = itertools.count(1)
        super().__init__(control, queue, policies, clock=clock, now=now, authenticator=authenticator)
        self.settings: Watched[Settings] = Watched(
            control, FILES, lambda: attrs.evolve(read_settings(control), auth=True)
        )
        self.rules = Watched(control, _FILES, self._read)

    def chain(self, policies: Sequence[Policy]) -> list[Policy]:
        control = self.control
        return [
            TCPRules(self.surroundings, self.service),
            LoginMayRelay(),
            LoginRequired(),
            ClientLimits(self.surroundings, self.service),
            *policies,
            *load_policies(control, file="submissionpolicies"),
            OwnSender(control, self._addresses, self._run),
            UserLimits(control, self._seconds),
            MemoryFree(self.surroundings),
            QueueRoom(self.surroundings),
            *(make(self.surroundings) for make in CONTENT.values()),
            RcptHosts(control),  # which nobody meets who has logged in, and everybody else
        ]

    def naming(self, session: Session) -> Naming:
        """What the message that begins now is to have. CDBError, OSError."""
        rules = self.rules.get()
        assert session.sender is not None
        sender, name = session.sender.raw, None
        found = None if rules.names is None or not sender else rules.names.get(sender)
        if found is not None:
            name, _, sender = found.partition(b"\0")
        author = sender or session.user or b""
        seconds = self.now()
        identity = fields.message_id(seconds, os.getpid(), rules.idhost, next(self._numbers))
        return Naming(rules.complete, author, seconds, identity, name)

    def _read(self) -> Rules:
        control = self.control
        hosts = [control.line(name) or b"" for name in ("defaulthost", "defaultdomain", "plusdomain")]
        try:
            complete = Completion(*hosts)
        except SyntaxTrouble as error:
            raise ControlError(control.path("defaulthost"), None, repr(hosts)[1:-1], "host names") from error
        names = None if control.stamp("ofmipname.cdb") is None else CDB(control.path("ofmipname.cdb"))
        return Rules(complete, control.line("idhost") or b"", names)

"""The rules of submission: no mail without a login, none in the name of others, and not more than is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from qtwist.auth.addresses import Addresses
from qtwist.auth.mailboxes import MailboxError
from qtwist.control import ControlError
from qtwist.mail.address import Address
from qtwist.mail.domains import ascii_address
from qtwist.mail.relay_limits import Limits, Meter, parse_all, rates_of
from qtwist.policy.base import Answer, Opinion, Policy
from qtwist.policy.connection import show
from qtwist.policy.session import ReceivedMessage, Session
from qtwist.policy.watched import Watched
from qtwist.wire.smtp_reply import Reply

if TYPE_CHECKING:
    from qtwist.control import Control

log = Logger(namespace="qtwist.submission")

LOG_IN = Reply(530, b"log in first (#5.7.0)")
NOT_YOURS = Reply(553, b"that sender does not belong to your login (#5.7.1)")
NOT_YOUR_FROM = Reply(550, b"the From of the message does not belong to your login (#5.7.1)")
UNKNOWN = Reply(451, b"whose address that is cannot be found out now (#4.3.0)")
ENOUGH = Reply(450, b"you have sent to as many recipients as you may, try again later (#4.7.1)")


class LoginRequired(Policy):
    """530 for whoever has not logged in (RFC 4954 §6). It comes first, so that no other policy can let them in."""

    def mail(self, session: Session, sender: Address) -> Opinion:
        return LOG_IN if session.user is None else None

    def rcpt(self, session: Session, recipient: Address) -> Opinion:
        return LOG_IN if session.user is None else None


class OwnSender(Policy):
    """The sender has to belong to the login (control/forceauthmailfrom), as `addresses` and control/submissionsenders
    have it. `run` calls a function where it may block."""

    def __init__(self, control: Control, addresses: Addresses, run: Callable[..., Deferred[Any]]) -> None:
        self._control = control
        self._addresses = addresses
        self._run = run
        self._rules = Watched(control, ("forceauthmailfrom", "submissionsenders"), self._read)

    def _read(self) -> tuple[int, dict[bytes, set[bytes]]]:
        self._control.ensure("submissionsenders")
        allowed: dict[bytes, set[bytes]] = {}
        for line in self._control.list("submissionsenders") or ():
            login, _, address = line.partition(b":")
            allowed.setdefault(ascii_address(login), set()).add(ascii_address(address))
        return self._control.integer("forceauthmailfrom"), allowed

    def connect(self, session: Session) -> Opinion:
        self._rules.get()  # files that cannot be read show now, not in the middle of a transaction
        return None

    def mail(self, session: Session, sender: Address) -> Answer:
        force, _ = self._rules.get()
        if not force or not sender.raw:
            return None  # the empty one is for notices that a mail program sends
        return self._judge(session, [sender.raw], NOT_YOURS)

    def message(self, session: Session, message: ReceivedMessage) -> Answer:
        force, _ = self._rules.get()
        sender = b"" if session.sender is None else session.sender.raw
        others = [author for author in session.authors if author != sender]
        if force < 2 or not others:
            return None
        return self._judge(session, others, NOT_YOUR_FROM)

    async def _judge(self, session: Session, addresses: list[bytes], refusal: Reply) -> Opinion:
        login = session.user
        assert login is not None
        try:
            for address in addresses:
                if not (self._is_allowed(login, address) or await self._run(self._addresses.owns, login, address)):
                    log.warn(
                        "{id}: login {user} from {ip} may not send as <{address}>",
                        id=session.id,
                        user=show(login),
                        ip=session.remote_ip,
                        address=show(address),
                    )
                    return refusal
        except (MailboxError, ControlError, OSError) as error:
            log.error("{id}: the owner of an address is not known: {error}", id=session.id, error=str(error))
            return UNKNOWN
        return None

    def _is_allowed(self, login: bytes, address: bytes) -> bool:
        """Whether control/submissionsenders says so."""
        _, allowed = self._rules.get()
        address = ascii_address(address)
        domain = address[address.rfind(b"@") :] if b"@" in address else address
        listed = allowed.get(ascii_address(login), set()) | allowed.get(b"*", set())
        return not listed.isdisjoint((address, domain, b"*"))


class UserLimits(Policy):
    """control/relaylimits: the recipients of each login are counted, in the memory of this process."""

    def __init__(self, control: Control, now: Callable[[], float]) -> None:
        self._now = now
        self._meter = Meter()
        self._limits: Watched[Limits] = Watched(control, ("relaylimits",), lambda: self._read(control))

    def _read(self, control: Control) -> Limits:
        control.ensure("relaylimits")
        return parse_all(control.list("relaylimits") or ())

    def connect(self, session: Session) -> Opinion:
        self._limits.get()
        return None

    def rcpt(self, session: Session, recipient: Address) -> Opinion:
        limits = self._limits.get()
        if not limits or session.user is None:
            return None
        login = ascii_address(session.user)
        rate = self._meter.take(login, rates_of(limits, login), self._now())
        if rate is None:
            return None
        if self._meter.is_news(login):
            log.error(
                "{id}: login {user} from {ip} is stopped: more than {recipients} recipients in {seconds} seconds "
                "(control/relaylimits). Has somebody got that password?",
                id=session.id,
                user=show(session.user),
                ip=session.remote_ip,
                recipients=rate.recipients,
                seconds=rate.seconds,
            )
        return ENOUGH

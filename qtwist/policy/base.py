"""What a policy is, and how a chain of policies comes to one answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from twisted.internet.defer import Deferred

from qtwist.mail.address import Address
from qtwist.wire.smtp_reply import Reply

if TYPE_CHECKING:
    from qtwist.control import Control
    from qtwist.policy.content import Content
    from qtwist.policy.session import ReceivedMessage, Session

Opinion = Reply | None
Answer = Opinion | Awaitable[Opinion]
P = TypeVar("P", bound="Policy")

HOOKS = ("connect", "helo", "auth", "mail", "rcpt", "data", "message", "content", "end")


@attrs.frozen
class Refusal(Reply):
    """A refusal with what the log says of it: `rule` is the name of the policy that refused, `reason` what it went by
    (a line of a control file, a list), in words for the administrator; the client does not see them."""

    rule: str = ""
    reason: str = ""


def refuse(code: int, text: bytes, reason: str = "") -> Reply:
    """A refusal: 4xx (try later) or 5xx (never). 421 also ends the connection. ValueError for any other code.

    `reason` is for the log alone.
    """
    if not 400 <= code <= 599:
        raise ValueError(f"a refusal has a code from 400 to 599, not {code!r}")
    return Refusal(code, text, reason=reason) if reason else Reply(code, text)


@attrs.frozen
class Drop(Refusal):
    """An answer of `connect`: the connection is closed without a word, as tcpserver does it (related.md §4.1)."""


def drop(reason: str = "") -> Drop:
    """Close the connection without a word. For `connect` only; elsewhere it is a 421."""
    return Drop(421, b"closing the connection (#4.7.0)", reason=reason)


def accept(text: bytes = b"ok") -> Reply:
    """A final yes: the policies after this one are not asked about this step.

    An accepted `rcpt` also skips the relay rules, which come last: give it only for recipients that are yours.
    """
    return Reply(250, text)


class Policy:
    """Subclass this and override the hooks that matter to you.

    Each hook may be a plain function, a coroutine, or return a Deferred. None means no opinion: the next policy is
    asked. A :class:`Reply` is final for this step. A hook that raises, or takes longer than control/timeoutsmtpd,
    is logged and answered 451 (421 in `connect`); the connection goes on. One policy object serves all connections at
    once: what belongs to one connection goes into `session.notes`.

    `name` is what log lines call the policy; of a class without one, its own name.
    """

    name: str = ""

    #: Names of control files and (in capitals) of variables: on a connection where none of them is there, the policy is
    #: not asked. Empty: it is always asked.
    idle_without: tuple[str, ...] = ()

    @classmethod
    def from_control(cls: type[P], control: Control) -> P:
        """Make the policy for a line of control/policies. Override it to read control files of your own."""
        return cls()

    def connect(self, session: Session) -> Answer:
        """A client has connected; no greeting was sent yet. A refusal is the greeting and ends the connection."""

    def helo(self, session: Session, name: bytes) -> Answer:
        """HELO or EHLO (`session.extended`) with this name; the text of a positive reply is not used."""

    def auth(self, session: Session) -> Answer:
        """AUTH has been right: `session.user` is who has logged in. A refusal refuses the login."""

    def mail(self, session: Session, sender: Address) -> Answer:
        """MAIL; the address is empty for a bounce. `session.sender` is set once it is accepted."""

    def rcpt(self, session: Session, recipient: Address) -> Answer:
        """RCPT; `session.recipients` are those accepted before."""

    def data(self, session: Session) -> Answer:
        """DATA, with sender and recipients complete. The text of a positive reply is not used."""

    def message(self, session: Session, message: ReceivedMessage) -> Answer:
        """The whole message has come and is not yet committed. The text of a positive reply is not used."""

    def content(self, session: Session, content: Content) -> Answer:
        """The whole message is here to be read and changed, and not yet committed. A refusal refuses it, what
        :func:`~qtwist.policy.content.discard` gives throws it away; any other positive reply lets it pass without that
        others are asked. As long as somebody has this hook, messages are kept aside until they are complete."""

    def end(self, session: Session) -> None:
        """The connection is gone, whatever became of it. Nothing can be answered any more."""


def hooks(policies: Sequence[Policy], name: str) -> tuple[Callable[..., Answer], ...]:
    """The bound hooks called `name` of those policies that override it, in order."""
    default = getattr(Policy, name)
    bound = (getattr(policy, name) for policy in policies)
    return tuple(hook for hook in bound if getattr(hook, "__func__", None) is not default)


def consult(asked: Sequence[Callable[..., Answer]], *arguments: Any) -> Opinion | Deferred[Opinion]:
    """Ask hooks in turn; the first opinion counts. A Deferred comes back only when one of them has to wait.

    What a hook raises is raised here or errbacks; an answer that is no Reply is a TypeError.
    """
    for index, hook in enumerate(asked):
        answer = hook(*arguments)
        if answer is None:
            continue
        if isinstance(answer, Reply):
            return _signed(hook, answer)
        return Deferred.fromCoroutine(_consult_later(hook, answer, asked[index + 1 :], arguments))
    return None


async def _consult_later(
    hook: Callable[..., Answer], answer: Answer, rest: Sequence[Callable[..., Answer]], arguments: tuple[Any, ...]
) -> Opinion:
    opinion = await _opinion(hook, answer)
    for following in rest:
        if opinion is not None:
            break
        opinion = await _opinion(following, following(*arguments))
    return opinion


async def _opinion(hook: Callable[..., Answer], answer: Answer) -> Opinion:
    if isinstance(answer, Awaitable):
        answer = await answer
    if answer is not None and not isinstance(answer, Reply):
        raise TypeError(f"{hook!r} answered {answer!r}, which is neither None nor a Reply")
    return None if answer is None else _signed(hook, answer)


def _signed(hook: Callable[..., Answer], reply: Reply) -> Reply:
    """A refusal with the name of the policy that gave it."""
    policy = getattr(hook, "__self__", None)
    if not isinstance(policy, Policy) or (isinstance(reply, Refusal) and reply.rule):
        return reply
    if reply.positive and not isinstance(reply, Refusal):
        return reply
    name = policy.name or type(policy).__name__
    if isinstance(reply, Refusal):
        return attrs.evolve(reply, rule=name)
    return Refusal(reply.code, reply.text, rule=name)

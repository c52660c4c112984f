"""What somebody who has logged in gets: the realm of the mail system's portal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.cred.portal import IRealm
from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import Attribute, Interface, classImplements, implementer

from qtwist.auth.mailboxes import Account


class IAccount(Interface):
    """Who has logged in; all that a server needs that only wants to know whether somebody may send mail."""

    name = Attribute("bytes: the login name")
    home = Attribute("bytes: the home directory, an absolute path")
    maildir = Attribute("bytes | None: where the mail is, an absolute path; None when that is not known")
    uid = Attribute("int: user id")
    gid = Attribute("int: group id")
    environment = Attribute("Mapping[bytes, bytes]: USER, HOME, SHELL, and what else a checkpassword program set")


classImplements(Account, IAccount)

#: Makes the avatar of an account: the value itself, or a Deferred of it.
MakeAvatar = Callable[[Account], Any]


@implementer(IRealm)
class MailRealm:
    """`avatars` says for each interface how its avatar is made of an Account; IAccount is the Account itself."""

    def __init__(self, avatars: Mapping[type[Interface], MakeAvatar] | None = None) -> None:
        self._avatars: dict[type[Interface], MakeAvatar] = {IAccount: lambda account: account, **(avatars or {})}

    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: type[Interface]) -> Deferred[Any]:
        """The avatar for the first interface that this realm has, with what is to be called at its end.

        NotImplementedError when it has none of them.
        """
        for interface in interfaces:
            make = self._avatars.get(interface)
            if make is not None:
                return Deferred.fromCoroutine(_made(interface, make, avatarId))
        raise NotImplementedError("no such avatar")


async def _made(interface: type[Interface], make: MakeAvatar, account: Account) -> Any:
    return interface, await maybeDeferred(make, account), _nothing


def _nothing() -> None:
    """At the end of a session nothing is left to be done: a maildrop is updated by QUIT alone (RFC 1939 §6)."""

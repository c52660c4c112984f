"""Which addresses are a login's own: those whose mail it would get (spec/qmail.md §12).

Blocking. Standard library only, as all that finds out where mail goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from qtwist.auth.mailboxes import MailboxError, Mailboxes
from qtwist.files.assign import Assignment
from qtwist.local.dotqmail import MAXIMUM_SIZE, Forward, candidates, instructions
from qtwist.local.errors import NO_ALIAS, DeliveryError, is_temporary, reason
from qtwist.local.users import Account, Users, folder_account, system_account
from qtwist.mail.domains import ascii_address


class Addresses:
    """The addresses of the mail system at `home`."""

    def __init__(self, home: str, find_account: Callable[[bytes], Account | None] = system_account) -> None:
        self._mailboxes = Mailboxes(home, find_account)
        alias = os.fsencode(home) + b"/alias"
        self._alias_home = alias
        self._users = Users(
            os.fsencode(home) + b"/users/cdb",
            alias=partial(folder_account, alias),
            find_account=find_account,
        )

    def owns(self, login: bytes, address: bytes) -> bool:
        """Whether mail to `address` is mail to `login`: to its own address, to one with an extension, to another one
        that users/assign gives the same owner, or to an alias that sends it on to any of these.

        MailboxError or ControlError when that cannot be found out now.
        """
        login, address = ascii_address(login), ascii_address(address)
        if not address or address == login:
            return bool(address)
        try:
            mine = self._owner(login)
            return mine is not None and self._leads_to(mine, address, 1)
        except DeliveryError as error:
            text = error.text.decode("utf-8", "replace")
            raise MailboxError(f"{text or 'no owner can be found'} (code {error.code})") from error

    def _leads_to(self, mine: Assignment, address: bytes, aliases: int) -> bool:
        owner = self._owner(address)
        if owner is None:
            return False
        if _is_same(mine, owner):
            return True
        if not aliases or owner.home != self._alias_home:
            return False
        return any(self._leads_to(mine, target.lower(), aliases - 1) for target in _forwards(owner))

    def _owner(self, address: bytes) -> Assignment | None:
        """Who gets the mail for `address`, None when it is not delivered here."""
        local = self._mailboxes.local(address)
        if not local:
            return None
        try:
            owner = self._users.find(local)
        except DeliveryError as error:
            if error.code == NO_ALIAS:
                return None
            raise
        return None if owner.uid == 0 else owner


def _is_same(mine: Assignment, other: Assignment) -> bool:
    """Whether `other` is the same mailbox as `mine`, or an extension of it.

    People of a virtual domain may share a home directory; then the extension tells them apart.
    """
    if (mine.uid, mine.home) != (other.uid, other.home):
        return False
    if not mine.dash and not mine.ext:
        return True
    return other.ext == mine.ext or bool(mine.ext and other.ext.startswith(mine.ext + b"-"))


def _forwards(owner: Assignment) -> list[bytes]:
    """Where the .qmail file of an alias sends mail on to. MailboxError when it cannot be read now."""
    for candidate in candidates(owner.dash, owner.ext):
        try:
            fd = os.open(os.path.join(owner.home, candidate.name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if is_temporary(error):
                raise MailboxError(f"{os.fsdecode(owner.home)}: {reason(error).decode()}") from error
            continue
        with open(fd, "rb") as file:
            text = file.read(MAXIMUM_SIZE)
        return [one.address for one in instructions(text) if isinstance(one, Forward)]
    return []

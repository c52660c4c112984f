"""The accounts of the roles: qmail's names, or those that control/accounts gives (spec/qmail.md §1.2)."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtwist.roles import StartError

if TYPE_CHECKING:
    from qtwist.control import Control

#: Account names by qmail's names for them, with what each is for.
PURPOSES = {
    "qmaild": "the servers",
    "qmaill": "the supervisor and its logs",
    "qmailp": "looking up accounts of the system",
    "qmailq": "the queue and the queue manager",
    "qmailr": "remote deliveries",
}


@dataclass(frozen=True)
class RoleAccount:
    """An account as a process takes it on."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_accounts(control: Control) -> dict[str, RoleAccount]:
    """The accounts by qmail's names. StartError when one is missing, is root, or is used for two purposes."""
    given = control.map("accounts")
    found: dict[str, RoleAccount] = {}
    for role, purpose in PURPOSES.items():
        value = None if given is None else given.get(role.encode())
        name = role if value is None else os.fsdecode(value)
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise StartError(
                f"there is no account {name} for {purpose}; expected one: `qtwist install` makes them, "
                f"{control.path('accounts')} can name others"
            ) from None
        if entry.pw_uid == 0 or entry.pw_gid == 0:
            raise StartError(f"the account {name}, for {purpose}, is root's; expected one without privileges")
        for other in found.values():
            if other.uid == entry.pw_uid:
                raise StartError(f"the accounts {other.name} and {name} are the same; expected one for each purpose")
        groups = tuple(os.getgrouplist(name, entry.pw_gid))
        found[role] = RoleAccount(name, entry.pw_uid, entry.pw_gid, groups)
    return found

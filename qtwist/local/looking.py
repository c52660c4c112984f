"""Whether mail for a local part could be delivered, by the look-up of a delivery (spec/qmail.md §12, §13).

Blocking, standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from qtwist.local.deliver import find_mailbox
from qtwist.local.errors import AS_ROOT, DeliveryError
from qtwist.local.users import Account, Users, folder_account, system_account


class Lookup:
    """Looks local parts up for the mail system at `home`, as far as this process may. For several threads."""

    def __init__(self, home: str, find_account: Callable[[bytes], Account | None] = system_account) -> None:
        base = os.fsencode(home)
        alias = partial(folder_account, base + b"/alias")
        self._users = Users(base + b"/users/cdb", alias, find_account)

    def __call__(self, local: bytes) -> int:
        """The exit code that a delivery would begin with: 0 when there is a mailbox, 100 when there is none; others say
        that it cannot be known now (§11.3)."""
        try:
            owner = self._users.find(local)
        except DeliveryError as error:
            return error.code
        return find_mailbox(owner.user, owner.home, owner.dash, owner.ext) if owner.uid else AS_ROOT

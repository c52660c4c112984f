"""qmail-getpw: say which account a local address belongs to, users/assign left aside (spec/qmail.md §12.3)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import PERMANENT, answer_help, die, home
from qtwist.commands.streams import put
from qtwist.local.errors import NO_ALIAS, DeliveryError
from qtwist.local.users import Account, by_account, folder_account, system_account

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USAGE = """\
NAME
    qmail-getpw - say which account a local address belongs to

SYNOPSIS
    qmail-getpw LOCAL

DESCRIPTION
    Prints account, user id, group id, home directory, dash and extension for
    the part of an address before the @, each followed by a NUL, as it follows
    from the system's accounts. What belongs to no account belongs to the one
    that owns alias/ in the home. The daemon asks users/cdb first.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    printed
    100  wrong use
    115  a home directory cannot be looked at for now
    116  there is no alias/
"""

_PROG = "qmail-getpw"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    if not arguments:
        die(_PROG, PERMANENT, "usage: qmail-getpw local")
    folder = os.fsencode(os.path.join(os.path.abspath(home()), "alias"))
    try:
        put(_PROG, answer(os.fsencode(arguments[0]), folder, system_account))
    except DeliveryError as error:
        die(_PROG, error.code, error.text or b"fatal: unable to find the owner of " + folder)
    return 0


def answer(local: bytes, alias_folder: bytes, find: Callable[[bytes], Account | None]) -> bytes:
    """The six fields for a local part. DeliveryError with the exit code when they cannot be told."""
    found = by_account(local, find)
    if found is not None:
        fields = (found.user, b"%d" % found.uid, b"%d" % found.gid, found.home, found.dash, found.ext)
    else:
        alias = folder_account(alias_folder)
        if alias is None:
            raise DeliveryError(NO_ALIAS)
        fields = (alias.name, b"%d" % alias.uid, b"%d" % alias.gid, alias.home, b"-", local)
    return b"".join(field + b"\0" for field in fields)

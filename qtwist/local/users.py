"""Who owns a local part: users/cdb, then the system's accounts, then alias (spec/qmail.md §12.1, §12.3).

Blocking: it reads users/cdb, the account database and the home directories' owners.
"""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Callable

import attrs

from qtwist.local.errors import BAD_RECORD, CDB_TROUBLE, NFS_TROUBLE, NO_ALIAS, DeliveryError, is_temporary, reason

#: Account names are shorter than this (§12.3).
_NAME_SIZE = 32


@attrs.frozen
class Account:
    """An account of the system; `home` is an absolute path."""

    name: bytes
    uid: int
    gid: int
    home: bytes


@attrs.frozen
class Recipient:
    """Who gets the mail of an address: the account, its home directory, and which .qmail file there (dash and ext)."""

    user: bytes
    uid: int
    gid: int
    home: bytes
    dash: bytes
    ext: bytes


def system_account(name: bytes) -> Account | None:
    """The account `name` in the system's database, None when there is none.

    Python does not tell a failing database from a missing account, nor does the C library always; users/cdb is the
    way around that (§26.8).
    """
    try:
        entry = pwd.getpwnam(os.fsdecode(name))
    except (KeyError, ValueError):
        return None
    return Account(os.fsencode(entry.pw_name), entry.pw_uid, entry.pw_gid, os.fsencode(entry.pw_dir))


def folder_account(folder: bytes) -> Account:
    """The account that owns `folder`, with `folder` as its home: how a home without a system account "alias" gets one.

    OSError when there is no such folder. An owner that has no name is called by its number.
    """
    status = os.stat(folder)
    try:
        name = os.fsencode(pwd.getpwuid(status.st_uid).pw_name)
    except KeyError:
        name = b"%d" % status.st_uid
    return Account(name, status.st_uid, status.st_gid, folder)


def by_account(local: bytes, find: Callable[[bytes], Account | None], separator: bytes = b"-") -> Recipient | None:
    """The owner of `local` by the rules of qmail-getpw, alias left aside (§12.3)."""
    for end in range(min(len(local), _NAME_SIZE - 1), 0, -1):
        rest = local[end:]
        if rest and not (separator and rest.startswith(separator)):
            continue
        account = find(local[:end].lower())
        if account is None or account.uid == 0:
            continue
        try:
            owner = os.stat(account.home).st_uid
        except OSError as error:
            if is_temporary(error):
                text = b"Unable to look at the home directory of " + account.name + b": " + reason(error)
                raise DeliveryError(NFS_TROUBLE, text + b". (#4.3.0)") from error
            continue
        if owner == account.uid:
            dash = b"-" if rest else b""
            return Recipient(account.name, account.uid, account.gid, account.home, dash, rest[len(separator) :])
    return None

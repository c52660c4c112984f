"""Who owns a local part: users/cdb, then the system's accounts, then alias (spec/qmail.md §12.1, §12.3).

Blocking: it reads users/cdb, the account database and the home directories' owners.
"""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Callable
from dataclasses import dataclass

from qtwist.files.assign import Assignment, RecordError, find_assignment
from qtwist.files.cdb import CDB, CDBError
from qtwist.local.errors import BAD_RECORD, CDB_TROUBLE, NFS_TROUBLE, NO_ALIAS, DeliveryError, is_temporary, reason

#: Account names are shorter than this (§12.3).
_NAME_SIZE = 32


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the system; `home` is an absolute path."""

    name: bytes
    uid: int
    gid: int
    home: bytes


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


def folder_account(folder: bytes) -> Account | None:
    """The account that owns `folder`, with `folder` as its home: how a system without an account "alias" gets one.

    None when there is no such folder. An owner that has no name is called by its number.
    """
    try:
        status = os.stat(folder)
    except OSError as error:
        if is_temporary(error):
            raise DeliveryError(NFS_TROUBLE, b"Unable to look at " + folder + b": " + reason(error)) from error
        return None
    try:
        name = os.fsencode(pwd.getpwuid(status.st_uid).pw_name)
    except KeyError:
        name = b"%d" % status.st_uid
    return Account(name, status.st_uid, status.st_gid, folder)


def by_account(local: bytes, find: Callable[[bytes], Account | None], separator: bytes = b"-") -> Assignment | None:
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
            return Assignment(account.name, account.uid, account.gid, account.home, dash, rest[len(separator) :])
    return None


class Users:
    """Finds who owns a local part. May be used from several threads.

    users/cdb is opened anew when it was replaced; `alias` finds the account that gets what nobody else owns, None when
    there is none.
    """

    def __init__(
        self,
        cdb_path: bytes,
        alias: Callable[[], Account | None],
        find_account: Callable[[bytes], Account | None] = system_account,
        separator: bytes = b"-",
    ) -> None:
        self._path = cdb_path
        self._alias = alias
        self._find_account = find_account
        self._separator = separator
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._cdb: CDB | None = None

    def find(self, local: bytes) -> Assignment:
        """The owner of `local`, the part of the address before the last ``@``; DeliveryError with a code of §11.3."""
        assigned = self.assigned(local)
        if assigned is not None:
            return assigned
        return self.unassigned(local)

    def unassigned(self, local: bytes) -> Assignment:
        """The owner of a `local` that users/cdb does not know: an account of the system, else alias."""
        found = by_account(local, self._find_account, self._separator)
        if found is not None:
            return found
        alias = self._alias()
        if alias is None:
            raise DeliveryError(NO_ALIAS)
        return Assignment(alias.name, alias.uid, alias.gid, alias.home, b"-", local)

    def assigned(self, local: bytes) -> Assignment | None:
        """The owner by users/cdb alone, None when it does not know `local`; DeliveryError as for :meth:`find`."""
        try:
            with self._lock:
                # One reader for all threads: looking up takes microseconds.
                cdb = self._current()
                return None if cdb is None else find_assignment(cdb, local)
        except CDBError as error:
            raise DeliveryError(CDB_TROUBLE, b"Unable to use users/cdb: %s. (#4.3.0)" % str(error).encode()) from error
        except RecordError as error:
            raise DeliveryError(BAD_RECORD, b"Bad record in users/cdb: %s. (#4.3.5)" % str(error).encode()) from error
        except OSError as error:
            raise DeliveryError(CDB_TROUBLE, b"Unable to read users/cdb: " + reason(error) + b". (#4.3.0)") from error

    def _current(self) -> CDB | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._stamp = self._cdb = None
            return None
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._stamp = self._cdb = None
            self._cdb = CDB(self._path)
            self._stamp = stamp
        return self._cdb

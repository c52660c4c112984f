"""Whose mail a login reads: found as a delivery would find it, so that what is delivered is what is read.

The name goes through control/locals and control/virtualdomains like the recipient of a message (spec/qmail.md §9.3),
then through users/cdb and the system's accounts (§12.1, §12.3); the maildir is the first one in the .qmail file that
such a message would obey (§13.4), else in control/defaultdelivery.

Blocking; may be used from several threads. Standard library only for plain names; attrs for names with a domain.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qtwist.control_reading import first_line, read, split_lines
from qtwist.files.assign import Assignment
from qtwist.local import users
from qtwist.local.dotqmail import MAXIMUM_SIZE, BlankStart, Maildir, candidates, instructions
from qtwist.local.errors import DeliveryError, is_temporary, reason
from qtwist.local.users import Users, by_account
from qtwist.mail.domains import ascii_address, ascii_domain

#: Where mail goes when nobody says otherwise.
DEFAULT_MAILDIR = b"./Maildir/"
_SHELL = b"/bin/sh"


class MailboxError(Exception):
    """Where the mail of a login lives cannot be found out now; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who has logged in: `name` as it was said, absolute paths, and the environment that checkpassword sets.

    `maildir` is None when this process may not look for it, or the account has none.
    """

    name: bytes
    home: bytes
    maildir: bytes | None
    uid: int
    gid: int
    environment: Mapping[bytes, bytes]


class Mailboxes:
    """The mailboxes of the mail system at `home`; control files are read for each question."""

    def __init__(self, home: str, find_account: Callable[[bytes], users.Account | None] = users.system_account) -> None:
        self._home = home
        self._find_account = find_account
        self._users = Users(os.fsencode(home) + b"/users/cdb", alias=lambda: None, find_account=find_account)

    def names(self, name: bytes) -> tuple[bytes, ...]:
        """The names that a login may have in the credential store, in the order in which they count.

        That is the name in lower case, its domain in ASCII; for an address in a local domain also the part before the
        ``@``.
        """
        lowered = ascii_address(name)
        box, at, domain = lowered.rpartition(b"@")
        return (lowered, box) if at and box and domain in self._locals() else (lowered,)

    def local(self, name: bytes) -> bytes | None:
        """The local part that mail to `name` is delivered to, None when it is not delivered here. ControlError."""
        if b"@" not in name:
            return name
        from qtwist.mail.constmap import ConstantMap
        from qtwist.mail.rewriting import LOCAL, Rewriter

        domains = ConstantMap.colon(self._lines("virtualdomains") or ())
        channel, address = Rewriter(b"", ConstantMap.plain(self._locals()), virtualdomains=domains).route(name)
        return address.rpartition(b"@")[0] if channel == LOCAL else None

    def find(self, name: bytes) -> Account | None:
        """Whose mail `name` reads, None when no mail is delivered to that name. MailboxError, ControlError."""
        local = self.local(name)
        try:
            owner = self._owner(local) if local else None
            return None if owner is None else self._account(name, owner)
        except DeliveryError as error:
            text = error.text.decode("utf-8", "replace")
            raise MailboxError(f"{text or 'no account can be found'} (code {error.code})") from error

    def reported(self, name: bytes, home: bytes, uid: int, gid: int, environment: Mapping[bytes, bytes]) -> Account:
        """The account that a checkpassword program has told of. MailboxError."""
        assignment = Assignment(environment.get(b"USER", name), uid, gid, home, b"", b"")
        return Account(name, home, self.mailbox(assignment), uid, gid, environment)

    def _owner(self, local: bytes) -> Assignment | None:
        owner = self._users.assigned(local)
        if owner is None:
            owner = by_account(local, self._find_account)
            if owner is not None and owner.dash:
                return None  # joe-lists is an address of joe's, but no name of anybody
        return None if owner is None or owner.uid == 0 else owner

    def _account(self, name: bytes, owner: Assignment) -> Account:
        environment = {b"USER": owner.user, b"HOME": owner.home, b"SHELL": _shell(owner.user)}
        return Account(name, owner.home, self.mailbox(owner), owner.uid, owner.gid, environment)

    def maildir(self, owner: Assignment) -> bytes | None:
        """The first maildir that a delivery to `owner` would write to, None when it writes to none.

        PermissionError when this process may not look at the .qmail files; MailboxError, ControlError.
        """
        try:
            text = _instructions_of(owner)
        except PermissionError:
            raise
        except OSError as error:
            raise MailboxError(f"{os.fsdecode(owner.home)}: {reason(error).decode()}") from error
        if not text:
            if text is None and owner.dash:
                return None  # no mail is taken for it (§13.1)
            default = read(self._path("defaultdelivery"))
            text = DEFAULT_MAILDIR if default is None else default
        for instruction in instructions(text):
            if isinstance(instruction, Maildir):
                return _below(owner.home, instruction.path)
            if isinstance(instruction, BlankStart):
                break
        return None

    def mailbox(self, owner: Assignment) -> bytes | None:
        """The maildir that `owner` reads, None when there is none, or this process may not look for it."""
        try:
            found = self.maildir(owner)
        except PermissionError:
            return None
        return found or (None if owner.dash else _below(owner.home, DEFAULT_MAILDIR))

    def _locals(self) -> list[bytes]:
        lines = self._lines("locals")
        if lines is None:
            me = read(self._path("me"))
            lines = [] if me is None else [first_line(me)]
        return [ascii_domain(line) for line in lines]

    def _lines(self, control: str) -> list[bytes] | None:
        text = read(self._path(control))
        return None if text is None else [line for _, line in split_lines(text)]

    def _path(self, control: str) -> str:
        return f"{self._home}/control/{control}"


def _instructions_of(owner: Assignment) -> bytes | None:
    """The text of the .qmail file that decides (§13.4), None when there is none."""
    for candidate in candidates(owner.dash, owner.ext):
        try:
            fd = os.open(os.path.join(owner.home, candidate.name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            raise
        except OSError as error:
            if is_temporary(error):
                raise
            continue
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return file.read(MAXIMUM_SIZE)
    return None


def _below(home: bytes, path: bytes) -> bytes:
    return os.path.normpath(os.path.join(home, path))


def _shell(user: bytes) -> bytes:
    try:
        return os.fsencode(pwd.getpwnam(os.fsdecode(user)).pw_shell) or _SHELL
    except (KeyError, ValueError):
        return _SHELL

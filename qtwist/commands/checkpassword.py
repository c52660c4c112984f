"""checkpassword: check a name and a password from descriptor 3, and run a program as that user (spec/related.md §6)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import answer_help, home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qtwist.auth.mailboxes import Account

USAGE = """\
NAME
    checkpassword - check a password, then run a program as that user

SYNOPSIS
    checkpassword PROGRAM [ARGUMENT ...] 3<CREDENTIALS

DESCRIPTION
    Reads a name, a password and a timestamp from descriptor 3, a NUL after
    each, 512 octets at most. If the credential store HOME/users/credentials
    has that name with that password, PROGRAM is run: in the home directory of
    whoever gets the mail of that name, with USER, HOME and SHELL set, and with
    their user and group ids where checkpassword was started by root.

    With a timestamp, the password may also be what APOP sends for a user whose
    password is stored for APOP.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    1    the name or the password is wrong
    2    wrong use: no program, or less than a name and a password
    111  it cannot be found out now
    Else the exit code is that of PROGRAM.
"""

#: The most octets that are read (§6).
LONGEST_REQUEST = 512

_WRONG = 1
_MISUSED = 2
_TEMPORARY = 111


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code when no program is run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    answer_help(arguments, USAGE)
    if not arguments:
        return _MISUSED
    try:
        request = _read()
    except OSError:
        return _MISUSED
    if len(request) > LONGEST_REQUEST:
        return _WRONG
    fields = request.split(b"\0")
    if len(fields) < 3:  # a name and a password, each with its NUL
        return _MISUSED
    name, password, timestamp = fields[0], fields[1], fields[2] if len(fields) > 3 else b""
    account = _account(name, password, timestamp)
    if isinstance(account, int):
        return account
    return _run(account, arguments)


def _read() -> bytes:
    """All of descriptor 3, which is closed then; one octet too much is enough."""
    request = b""
    while len(request) <= LONGEST_REQUEST:
        block = os.read(3, LONGEST_REQUEST + 1 - len(request))
        if not block:
            break
        request += block
    os.close(3)
    return request


def _account(name: bytes, password: bytes, timestamp: bytes) -> Account | int:
    """Who that is, or the exit code."""
    from qtwist.auth.hashing import HashError
    from qtwist.auth.mailboxes import MailboxError, Mailboxes
    from qtwist.auth.passwords import Passwords
    from qtwist.auth.store import CredentialStore, StoreError
    from qtwist.control_reading import ControlError

    try:
        mailboxes = Mailboxes(home())
        passwords = Passwords(CredentialStore(f"{home()}/users/credentials"))
        names = mailboxes.names(name)
        found = _by_apop(passwords, names, password, timestamp) or passwords.check(names, password)
        if found is None:
            return _WRONG
        account = mailboxes.find(found)
    except (StoreError, HashError, MailboxError, ControlError, OSError) as error:
        sys.stderr.write(f"checkpassword: {error}\n")
        return _TEMPORARY
    if account is None:
        sys.stderr.write("checkpassword: no mail is delivered to that name\n")
        return _TEMPORARY
    return account


def _by_apop(passwords, names, digest: bytes, timestamp: bytes) -> bytes | None:  # type: ignore[no-untyped-def]
    """The name, if `digest` is the MD5 of the timestamp and the stored secret (RFC 1939 §7)."""
    if not timestamp or len(digest) != 32:
        return None
    import hashlib
    import hmac

    name, secret = passwords.secret(names) or (None, b"\xff")
    expected = hashlib.md5(timestamp + secret, usedforsecurity=False).hexdigest().encode("ascii")
    return name if hmac.compare_digest(expected, digest.lower()) else None


def _run(account: Account, arguments: list[str]) -> int:
    """Become that user, and the program."""
    try:
        if os.geteuid() == 0:
            _take_groups(account.uid, account.gid)
            os.setgid(account.gid)
            os.setuid(account.uid)
        os.chdir(account.home)
        os.execvpe(arguments[0], arguments, {**os.environb, **account.environment})
    except OSError as error:
        sys.stderr.write(f"checkpassword: {error.filename or arguments[0]!r}: {error.strerror}\n")
    return _TEMPORARY


def _take_groups(uid: int, gid: int) -> None:
    """The groups of the account that has this user id; its name in users/assign may be that of another one."""
    import pwd

    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        os.setgroups([gid])

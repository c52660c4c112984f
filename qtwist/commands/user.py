"""`qtwist user VERB NAME`: who may log in and receive mail here (doc/users.md)."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import grp
import os
import pwd
import sys
from collections.abc import Sequence

from qtwist.auth import hashing
from qtwist.auth.mailboxes import MailboxError
from qtwist.auth.passwords import Passwords
from qtwist.auth.people import People, Refusal
from qtwist.auth.scram import SALT_SIZE, ScramKeys
from qtwist.auth.store import CredentialStore, StoreError
from qtwist.commands.base import PERMANENT, TEMPORARY
from qtwist.commands.base import home as default_home
from qtwist.control_reading import ControlError, read, split_lines
from qtwist.files.assign import Assignment
from qtwist.mail import rewriting

# Loaded by others late, which may be too late: after root has become somebody who cannot read Python's files.
_LOADED = (rewriting,)

_WRONG = 1  # as checkpassword has it

_EPILOG = """\
NAME is a local part, or an address in a domain of control/virtualdomains.
A password is asked for at a terminal, or is the first line of standard input.
The home is --home, else $QTWISTHOME, else /var/qmail.
Exit codes: 0 done, 1 wrong password (verify), 100 wrong use or not possible,
111 try again later.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as end:
        return PERMANENT if end.code else 0
    try:
        return _Users(options).carry_out()
    except (Refusal, hashing.HashError) as error:
        prefix = "expected " if isinstance(error, hashing.HashError) else ""
        return _complain(prefix + str(error), PERMANENT)
    except (StoreError, ControlError, MailboxError) as error:
        return _complain(str(error), TEMPORARY)
    except (KeyboardInterrupt, EOFError):
        return _complain("nothing was changed", TEMPORARY)
    except OSError as error:
        return _complain(f"{error.filename or 'trouble'}: {error.strerror or error}", TEMPORARY)


def _complain(text: str, code: int) -> int:
    shown = "".join(character if character.isprintable() else "?" for character in text)
    sys.stderr.write(f"qtwist user: {shown}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="qtwist user", description=__doc__, epilog=_EPILOG, formatter_class=shape)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *, named: bool = True) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text, epilog=_EPILOG, formatter_class=shape)
        one.add_argument("--home", default=default_home(), metavar="DIR", help="the home of the mail system")
        if named:
            one.add_argument("name", metavar="NAME")
        return one

    def password(one: argparse.ArgumentParser) -> None:
        kind = one.add_mutually_exclusive_group()
        kind.add_argument("--hash", metavar="HASH", help="take this hash instead of a password ($6$..., $2b$..., ...)")
        kind.add_argument(
            "--apop", action="store_true", help="keep the password readable, for clients that use APOP or CRAM-MD5"
        )
        kind.add_argument("--scram", action="store_true", help="keep keys for SCRAM-SHA-256 beside the hash")

    add = verb("add", "give somebody an address that receives mail and can be read")
    add.add_argument("--directory", metavar="DIR", help="the user's home directory [HOME/mail/NAME]")
    add.add_argument("--uid", metavar="UID[:GID]", help="as root: whom the mail belongs to; numbers or names")
    password(add)
    password(verb("passwd", "give somebody another password"))
    delete = verb("del", "take address and password from somebody; the mail stays")
    delete.add_argument("--purge", action="store_true", help="remove the mail, too")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    verb("list", "show names, kinds of hashes, messages, and home directories", named=False)
    verb("verify", "say whether a password is right: exit code 0, or 1")
    return parser


def _hand_over(home: str, store: str) -> None:
    """In a home of root's, the store is for the role that checks passwords (doc/security.md)."""
    if os.geteuid() != 0 or os.stat(home).st_uid != 0:
        return
    account = b"qmailp"
    for _, line in split_lines(read(os.path.join(home, "control", "accounts")) or b""):
        role, _, name = line.partition(b":")
        if role == b"qmailp":
            account = name
    with contextlib.suppress(KeyError):  # without that account, no daemon can be started as root, either
        entry = pwd.getpwnam(os.fsdecode(account))
        os.chown(store, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


class _Users:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        home = os.path.abspath(options.home)
        if not os.path.isdir(os.path.join(home, "control")):
            raise Refusal(f"{home} is no home of a mail system: it has no control/")
        if os.geteuid() == 0:
            _become_owner(home)
        self.people = People(home, _tell)
        self.store = CredentialStore(os.path.join(home, "users", "credentials"))

    def carry_out(self) -> int:
        os.umask(0o022)
        code: int | None = getattr(self, f"do_{self.options.verb}")()
        return code or 0

    def do_add(self) -> None:
        options = self.options
        name = self.people.name(options.name)
        person = self.people.person(name, options.directory, _ids(options.uid))
        stored = self.store.get(name)
        given, keys = None, None
        if stored is None or options.hash:
            given, keys = self.new_hash()
        elif not hashing.matches(stored, _ask(f"Password of {options.name}, who has one already: ")):
            raise Refusal(f"{options.name} has another password; `qtwist user passwd` changes it")
        if stored is not None and given not in (None, stored):
            raise Refusal(f"{options.name} has another password; `qtwist user passwd` changes it")
        os.makedirs(os.path.dirname(self.store.path), mode=0o755, exist_ok=True)
        self.people.add(person)
        if stored is None:
            assert given is not None
            self.store.set(name, given, keys)
            _hand_over(self.people.home, self.store.path)
            _tell("wrote", f"{self.store.path} ({hashing.scheme(given)})")
        sys.stdout.write(f"{os.fsdecode(name)} receives mail and can log in.\n")

    def do_passwd(self) -> None:
        name = self.known_name()
        new, keys = self.new_hash()
        self.store.set(name, new, keys)
        _tell("wrote", f"{self.store.path} ({hashing.scheme(new)})")

    def do_del(self) -> None:
        options = self.options
        name = self.people.name(options.name)
        owner = self.people.known(name)
        known = self.store.get(name) is not None
        if not known and owner is None and not options.purge:
            raise Refusal(f"there is no user {options.name}")
        if not options.yes:
            mail = "with all mail" if options.purge else "but keep the mail"
            if not sys.stdin.isatty():
                raise Refusal("there is no terminal to ask at: give --yes")
            if input(f"Remove {options.name}, {mail}? [y/N] ").lower() not in ("y", "yes"):
                raise Refusal("nothing was changed")
        if known:
            self.store.delete(name)
            _tell("wrote", self.store.path)
        self.people.remove(name)
        if options.purge:
            self.people.purge(name, owner)

    def do_list(self) -> None:
        for name, stored in self.store.entries().items():
            owner = self.people.known(name)
            account = None if owner else self.people.mailboxes.find(name)
            home = owner.home if owner else account.home if account else b"no address"
            kinds = hashing.scheme(stored) + ("+scram" if self.store.scram(name) else "")
            row = (os.fsdecode(name), kinds, self.messages(owner), os.fsdecode(home))
            sys.stdout.write("\t".join(row) + "\n")

    def do_verify(self) -> int:
        names = self.people.mailboxes.names(os.fsencode(self.options.name))
        password = _ask("Password: ")
        if Passwords(self.store).check(names, password) is None:
            return _complain("wrong name or password", _WRONG)
        return 0

    def known_name(self) -> bytes:
        """The name of somebody who is in the store. Refusal."""
        name = self.people.name(self.options.name)
        if self.store.get(name) is None:
            raise Refusal(f"there is no user {self.options.name}")
        return name

    def new_hash(self) -> tuple[bytes, ScramKeys | None]:
        """What the store is to have: the hash that was given, or made of a password, and SCRAM's keys where they are
        wanted. Refusal, HashError."""
        options = self.options
        if options.hash:
            given = os.fsencode(options.hash)
            hashing.check_available(given)
            return given, None
        password = _ask(f"New password of {options.name}: ", twice=True)
        if not password or b"\0" in password or len(password) > hashing.LONGEST_PASSWORD:
            raise Refusal(f"a password has 1 to {hashing.LONGEST_PASSWORD} octets, and no NUL")
        if options.apop:
            return hashing.PLAIN + password, None
        keys = None
        if options.scram:
            try:
                keys = ScramKeys.make(password, os.urandom(SALT_SIZE))
            except ValueError as error:
                raise Refusal(f"SCRAM wants {error}, in UTF-8") from None
        return hashing.make(password), keys

    def messages(self, owner: Assignment | None) -> str:
        """How many there are, ``-`` where that cannot be found out."""
        try:
            maildir = None if owner is None else self.people.mailboxes.maildir(owner)
            if maildir is None:
                return "-"
            names = os.listdir(os.path.join(maildir, b"new")) + os.listdir(os.path.join(maildir, b"cur"))
        except OSError:
            return "-"
        return str(sum(not name.startswith(b".") for name in names))


def _tell(what: str, name: str) -> None:
    sys.stdout.write(f"  {what} {name}\n")
    sys.stdout.flush()


def _ask(prompt: str, twice: bool = False) -> bytes:
    """A password: asked for at a terminal, else a line of standard input. Refusal when both times are not the same."""
    if not sys.stdin.isatty():
        return sys.stdin.buffer.readline(hashing.LONGEST_PASSWORD + 2).removesuffix(b"\n")
    password = getpass.getpass(prompt)
    if twice and getpass.getpass("Once more: ") != password:
        raise Refusal("these were not the same; nothing was changed")
    return os.fsencode(password)


def _ids(text: str | None) -> tuple[int, int] | None:
    """User and group id from UID, UID:GID, or names. Refusal."""
    if text is None:
        return None
    user, colon, group = text.partition(":")
    try:
        if user.isdigit():
            uid = int(user)
            gid = None if colon else pwd.getpwuid(uid).pw_gid
        else:
            entry = pwd.getpwnam(user)
            uid, gid = entry.pw_uid, entry.pw_gid
        if colon:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise Refusal(f"--uid {text}: there is no such account or group (UID:GID, in numbers, needs none)") from None
    assert gid is not None
    return uid, gid


def _become_owner(home: str) -> None:
    """As root in the home of an ordinary user: be that user, so that no link of theirs can lead root astray."""
    status = os.stat(home)
    if status.st_uid:
        hashing.load()
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)

"""Giving a person an address that receives mail and can be read, and taking it back: what `qtwist user` does on disk.

The order is such that a crash leaves nothing that answers wrongly, and that doing it again completes it: the mailbox,
then the address, then the password; and the other way round to take it back.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from qtwist.auth import assignments
from qtwist.auth.mailboxes import DEFAULT_MAILDIR, Mailboxes
from qtwist.auth.store import is_name
from qtwist.files import replacing
from qtwist.files.assign import AssignError, Assignment, compile_assign
from qtwist.files.cdb import CDBError, write_cdb

#: Tells what was done: a verb, and a path or name. It is called in a forked child, too, and must keep nothing back.
Tell = Callable[[str, str], None]


class Refusal(Exception):
    """Why it is not done, in one line for the user."""


@dataclass(frozen=True, slots=True)
class Person:
    """`name` logs in; mail for `local`, a local part in users/assign, belongs to `owner`."""

    name: bytes
    local: bytes
    owner: Assignment

    @property
    def home(self) -> str:
        return os.fsdecode(self.owner.home)


class People:
    """The people of the mail system at `home`, an absolute path. `tell` hears of everything that is done."""

    def __init__(self, home: str, tell: Tell) -> None:
        self.home = home
        self.mailboxes = Mailboxes(home)
        self._tell = tell
        self._assign = os.path.join(home, "users", "assign")

    def name(self, text: str) -> bytes:
        """A login name as the store has it. Refusal when it can be none."""
        name = self.mailboxes.names(os.fsencode(text))[-1]
        if not is_name(name) or b"/" in name or name.startswith((b".", b"-")):
            raise Refusal(f"{text!r} cannot be the name of a user")
        return name

    def local(self, name: bytes) -> bytes:
        """The local part in users/assign that gets the mail of `name`. Refusal when that mail is not delivered here."""
        local = self.mailboxes.local(name)
        if not local:
            domain = os.fsdecode(name.rpartition(b"@")[2])
            raise Refusal(
                f"mail for {domain} is not delivered here: {self.home}/control/virtualdomains needs a line such as "
                f"{domain}:{domain.partition('.')[0]}"
            )
        return local

    def person(self, name: bytes, home: str | None, ids: tuple[int, int] | None) -> Person:
        """Whom to add: `home` and `ids` (user, group) are what the user asked for. Refusal."""
        known = None if home or ids else self._system_account(name)
        uid, gid = ids or (known and (known.pw_uid, known.pw_gid)) or self._ids()
        if uid == 0:
            raise Refusal("no mail is delivered as root: give --uid, the account that the mail is to belong to")
        if os.geteuid() not in (0, uid):
            raise Refusal(f"only root can make a mailbox for user id {uid}")
        place = home or (known.pw_dir if known else os.path.join(self.home, "mail", os.fsdecode(name)))
        if not os.path.isabs(place):
            place = os.path.abspath(place)
        try:
            user = pwd.getpwuid(uid).pw_name
        except KeyError:
            user = str(uid)
        owner = Assignment(os.fsencode(user), uid, gid, os.fsencode(place), b"", b"")
        try:
            assignments.lines_for(name, owner)
        except ValueError as error:
            raise Refusal(f"{place!r}: {error}") from None
        return Person(name, self.local(name), owner)

    def known(self, name: bytes) -> Assignment | None:
        """Who gets the mail of `name` by users/assign; None when the address has no line of its own there."""
        local = self.mailboxes.local(name)
        try:
            with open(self._assign, "rb") as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return None
        for line in lines:
            fields = line.split(b":")
            if local and len(fields) > 6 and fields[0] == b"=" + local.lower() and fields[2].isdigit():
                return Assignment(fields[1], int(fields[2]), int(fields[3]), fields[4], fields[5], fields[6])
        return None

    # Doing it.

    def add(self, person: Person) -> None:
        """The mailbox and the address. Refusal, OSError."""
        with replacing.locked(self._assign):
            self._make_home(person)
            _as_owner(person.owner, lambda: self._make_maildir(person))
            self._change_assign(lambda text: assignments.with_owner(text, person.local, person.owner))

    def remove(self, name: bytes) -> Assignment | None:
        """The address of `name`: its lines in users/assign. Who had it, None when nobody had. Refusal, OSError."""
        owner = self.known(name)
        local = self.mailboxes.local(name)
        if local:
            with replacing.locked(self._assign):
                self._change_assign(lambda text: assignments.without_owner(text, local))
        return owner

    def purge(self, name: bytes, owner: Assignment | None) -> None:
        """The mail of somebody who was removed. Only what is in HOME/mail is removed with its directory."""
        own = os.path.join(self.home, "mail", os.fsdecode(name))
        place = own if owner is None else os.fsdecode(owner.home)
        if place == own:
            if os.path.lexists(own):
                shutil.rmtree(own)
                self._tell("removed", own)
            return
        maildir = os.path.join(place, "Maildir")
        assert owner is not None
        if os.path.isdir(maildir):
            _as_owner(owner, lambda: shutil.rmtree(maildir))
            self._tell("removed", maildir)

    def _change_assign(self, change: Callable[[bytes], bytes]) -> None:
        try:
            with open(self._assign, "rb") as file:
                text = file.read()
        except FileNotFoundError:
            text = assignments.EMPTY
        try:
            changed = change(text)
            if changed != text:
                replacing.replace(self._assign, changed, 0o644)
                self._tell("wrote", self._assign)
            # In any case: a crash may have come between the two.
            database = os.path.join(self.home, "users", "cdb")
            write_cdb(database, compile_assign(changed))
            replacing.sync_directory(os.path.dirname(database))
        except assignments.AlreadyAssigned as error:
            raise Refusal(f"{self._assign}, line {error.line}: the address belongs to something else") from None
        except AssignError as error:
            raise Refusal(f"{self._assign}, {error}") from None
        except CDBError as error:
            raise Refusal(str(error)) from None

    def _ids(self) -> tuple[int, int]:
        """Whom mail belongs to when nobody says: the owner of the home; or of HOME/mail, where the home is root's."""
        for place in (self.home, os.path.join(self.home, "mail")):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(place)
                if status.st_uid:
                    return status.st_uid, status.st_gid
        return 0, 0

    def _system_account(self, name: bytes) -> pwd.struct_passwd | None:
        """The account of that name, where root gives people that have one their mail."""
        if os.geteuid() == 0 and os.stat(self.home).st_uid == 0 and b"@" not in name:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(os.fsdecode(name))
                if entry.pw_uid and os.path.isdir(entry.pw_dir) and os.stat(entry.pw_dir).st_uid == entry.pw_uid:
                    return entry
        return None

    def _make_home(self, person: Person) -> None:
        """The home directory, for its owner alone; its parents but for HOME/mail have to be there."""
        owner = person.owner
        if os.path.dirname(person.home) == os.path.join(self.home, "mail"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(person.home), 0o755)
                replacing.sync_directory(self.home)
        try:
            os.mkdir(person.home, 0o700)
        except FileExistsError:
            made = False
        else:
            made = True
            self._tell("made", person.home)
        fd = os.open(person.home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if status.st_uid != owner.uid:
                # An empty one of root's may be what a crash left.
                if not (made or (status.st_uid == 0 and not os.listdir(fd))):
                    raise Refusal(f"{person.home} belongs to user id {status.st_uid}, not to {owner.uid}")
                os.fchown(fd, owner.uid, owner.gid)
            elif status.st_mode & 0o002:
                raise Refusal(f"{person.home} can be written by others; no mail is delivered there (chmod o-w)")
            os.fsync(fd)
        finally:
            os.close(fd)
        if made:
            replacing.sync_directory(os.path.dirname(person.home))

    def _make_maildir(self, person: Person) -> None:
        """The maildir that .qmail or control/defaultdelivery names, else Maildir and a .qmail that names it."""
        maildir = self.mailboxes.maildir(person.owner)
        if maildir is None:
            maildir = os.path.join(person.owner.home, b"Maildir")
            dotqmail = os.path.join(person.home, ".qmail")
            try:
                fd = os.open(dotqmail, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            except FileExistsError:
                self._tell("kept", f"{dotqmail}, which stores no mail in a maildir")
            else:
                with open(fd, "wb") as file:
                    file.write(DEFAULT_MAILDIR + b"\n")
                    file.flush()
                    os.fsync(fd)
                self._tell("wrote", dotqmail)
        made = False
        for part in (b"", b"tmp", b"new", b"cur"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.join(maildir, part), 0o700)
                made = True
        for path in (maildir, os.path.dirname(maildir)):
            replacing.sync_directory(os.fsdecode(path))
        self._tell("made" if made else "kept", os.fsdecode(maildir))


def _as_owner(owner: Assignment, work: Callable[[], None]) -> None:
    """Do `work` with the rights of the owner, so that no link that a user places can lead root astray. OSError."""
    if os.geteuid() != 0:
        work()
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(owner.gid)
            os.setuid(owner.uid)
            os.umask(0o077)
            work()
            code = 0
        except OSError as error:
            os.write(
                writer, f"{error.errno or 0} {os.fsdecode(error.filename or '')}".encode("utf-8", "surrogateescape")
            )
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        number, _, words = os.fsdecode(pipe.read()).partition(" ")
    _, status = os.waitpid(child, 0)
    if status:
        code = int(number or 0)
        raise OSError(code, os.strerror(code), words) if code else Refusal(words or "the owner's part did not work")

"""qmail-pw2u: make users/assign from a list of accounts (spec/qmail.md §12.4)."""

from __future__ import annotations

import os
import sys

from qtwist.commands.base import TEMPORARY, answer_help, die, home, parse
from qtwist.commands.streams import emit, read_blocks
from qtwist.control_reading import ControlError, read, split_lines
from qtwist.mail.constmap import ConstantMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

OPTIONS = "/ohHuUc:C"

USAGE = """\
NAME
    qmail-pw2u - make users/assign from a list of accounts

SYNOPSIS
    qmail-pw2u [-/ohHuUC] [-c CHAR] < /etc/passwd > users/assign

DESCRIPTION
    Reads accounts in the form of /etc/passwd and prints lines for users/assign
    (which qmail-newu compiles): mail for an account's name, and for its name,
    a hyphen and anything, goes to the account. An account is left out if its
    user id is 0, its name has a capital letter, or its home directory is not
    there or not its own. The list has to have an account alias, which gets the
    mail of nobody else; without it there is an error.

OPTIONS
    -o       leave an account without home directory out (this is so anyway)
    -h       stop at an account without home directory
    -H       do not look at home directories
    -u       take names with capital letters, too
    -U       leave names with capital letters out (this is so anyway)
    -c CHAR  CHAR instead of a hyphen behind the name
    -C       no addresses with anything behind the name
    -/       look for .qmail-/EXT instead of .qmail-EXT

FILES
    users/include    accounts, one a line; no others are taken
    users/exclude    accounts that are left out
    users/mailnames  lines USER:NAME1:NAME2...; these names instead of USER
    users/subusers   lines SUB:USER:EXT: send mail for SUB to USER's .qmail-EXT
    users/append     lines for users/assign that are added as they are

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    done
    100  wrong use
    111  the list of accounts ends here: what is printed is not complete
"""

_PROG = "qmail-pw2u"
_ALIAS = b"alias"

SKIP = "o"
STOP = "h"
TRUST = "H"


class Trouble(Exception):
    """Why no complete list can be made."""


class Accounts:
    """The rules for one run: what the options and the files in users/ say. None of the files needs to be there."""

    def __init__(
        self,
        include: ConstantMap | None = None,
        exclude: ConstantMap | None = None,
        mailnames: ConstantMap | None = None,
        homes: str = SKIP,
        capitals: bool = False,
        separator: bytes = b"-",
        dash: bytes = b"-",
    ) -> None:
        self._include = include
        self._exclude = exclude
        self._mailnames = mailnames
        self._homes = homes
        self._capitals = capitals
        self._separator = separator
        self._dash = dash
        self._taken: dict[bytes, bytes] = {}

    def lines(self, passwd: Iterable[bytes], subusers: Iterable[bytes], append: bytes) -> Iterator[bytes]:
        """users/assign for the lines of passwd and of users/subusers, and the text of users/append. Trouble."""
        for line in passwd:
            yield from self._account(line)
        if _ALIAS not in self._taken:
            raise Trouble("there is no account alias")
        for line in subusers:
            yield from self._subuser(line)
        yield append if append.endswith(b"\n") or not append else append + b"\n"
        yield b".\n"

    def _account(self, line: bytes) -> Iterator[bytes]:
        fields = line.split(b":")
        if len(fields) < 7 or b"\0" in line:
            return
        user, _, uid, gid, _, directory = fields[:6]
        number = int(uid) if uid.isdigit() and len(uid) <= 10 else 0
        if number == 0 or not self._wanted(user, number, directory):
            return
        owner = b":%b:%b:%b:%b:" % (user, uid, gid, directory)
        self._taken[user.lower()] = owner
        if user == _ALIAS:
            yield b"+%b%b::\n" % (owner, self._dash)
        names = None if self._mailnames is None else self._mailnames.get(user)
        for name in (user if names is None else names).split(b":"):
            if name:
                yield b"=%b%b::\n" % (name, owner)
                if self._separator:
                    yield b"+%b%b%b%b::\n" % (name, self._separator, owner, self._dash)

    def _wanted(self, user: bytes, uid: int, directory: bytes) -> bool:
        if not self._capitals and user != user.lower():
            return False
        if self._include is not None and user not in self._include:
            return False
        if self._exclude is not None and user in self._exclude:
            return False
        if self._homes == TRUST:
            return True
        try:
            return os.stat(directory).st_uid == uid
        except OSError as error:
            if self._homes == STOP or not isinstance(error, FileNotFoundError):
                raise Trouble(f"unable to look at {os.fsdecode(directory)}: {error.strerror}") from error
            return False

    def _subuser(self, line: bytes) -> Iterator[bytes]:
        fields = line.split(b":")
        if len(fields) < 4:
            return
        sub, user, extension = fields[:3]
        owner = self._taken.get(user.lower())
        if owner is None:
            raise Trouble(f"there is no account {os.fsdecode(user)} for a subuser")
        yield b"=%b%b%b:%b:\n" % (sub, owner, self._dash, extension)
        if self._separator:
            yield b"+%b%b%b%b:%b-:\n" % (sub, self._separator, owner, self._dash, extension)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_help(arguments, USAGE)
    homes, capitals, separator, dash = SKIP, False, b"-", b"-"
    for letter, value in parse(_PROG, arguments, OPTIONS, USAGE)[0]:
        if letter in (SKIP, STOP, TRUST):
            homes = letter
        elif letter in "uU":
            capitals = letter == "u"
        elif letter in "cC":
            separator = os.fsencode(value)[:1]
        else:
            dash = b"-/"
    users = os.path.join(home(), "users")
    try:
        if not os.path.isdir(home()):
            raise Trouble(f"unable to enter {home()}: it is no directory")
        accounts = Accounts(
            _list(users, "include"),
            _list(users, "exclude"),
            _list(users, "mailnames", colon=True),
            homes,
            capitals,
            separator,
            dash,
        )
        subusers = (_text(users, "subusers") or b"").split(b"\n")
        passwd = b"".join(read_blocks(_PROG)).split(b"\n")
        emit(_PROG, accounts.lines(passwd, subusers, _text(users, "append") or b""))
    except (Trouble, ControlError) as error:
        die(_PROG, TEMPORARY, f"fatal: {error}")
    return 0


def _text(users: str, name: str) -> bytes | None:
    return read(os.path.join(users, name))


def _list(users: str, name: str, colon: bool = False) -> ConstantMap | None:
    text = _text(users, name)
    if text is None:
        return None
    lines = [line for _, line in split_lines(text)]
    return ConstantMap.colon(lines) if colon else ConstantMap.plain(lines)

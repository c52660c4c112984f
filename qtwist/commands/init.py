"""`qtwist init HOME --me NAME`: make a home that works at once for an unprivileged user.

What is written is what qmail's config-fast and *Life with qmail* have an administrator write (spec/qmail.md §24,
§12.2), and a first mailbox. Nothing that exists is overwritten, so a second run completes what an
interrupted one began.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

import attrs

from qtwist.control import Control
from qtwist.files.assign import AssignError, compile_assign
from qtwist.files.cdb import write_cdb
from qtwist.files.disk import RealDisk
from qtwist.queue.layout import LayoutError, create_queue, open_layout

DEFAULT_PORT = 2525
# Labels of letters, digits and inner hyphens; at least two, the last one not a number: no bare IP address passes.
LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{LABEL}\.)+(?!\d+\Z){LABEL}")


class Refusal(Exception):
    """Why no home is made, in one line for the user."""


@attrs.frozen
class Owner:
    """The account that the daemon will run as, and that the first mailbox belongs to."""

    name: str
    uid: int
    gid: int


@attrs.frozen
class Plan:
    """What home to make: `path` is absolute, `listen` are the lines of control/listen."""

    path: str
    me: str
    listen: tuple[str, ...]
    owner: Owner

    @property
    def mailbox_home(self) -> str:
        return os.path.join(self.path, "mail", self.owner.name)

    def directories(self) -> list[tuple[str, int]]:
        """(path below the home, mode), parents first. None may be writable by others (spec/qmail.md §13.1)."""
        mailbox = os.path.join("mail", self.owner.name)
        maildir = os.path.join(mailbox, "Maildir")
        return [
            ("control", 0o755),
            ("alias", 0o755),
            ("run", 0o755),
            ("users", 0o755),
            ("log", 0o755),
            ("mail", 0o755),
            (mailbox, 0o700),
            (maildir, 0o700),
            *((os.path.join(maildir, part), 0o700) for part in ("tmp", "new", "cur")),
        ]

    def files(self) -> list[tuple[str, str]]:
        """(path below the home, contents) of all text files."""
        name, uid, gid = self.owner.name, self.owner.uid, self.owner.gid
        assign = (
            f"={name}:{name}:{uid}:{gid}:{self.mailbox_home}:::\n"
            f"+{name}-:{name}:{uid}:{gid}:{self.mailbox_home}:-::\n"
            ".\n"
        )
        return [
            *control_files(self.me, self.listen),
            *alias_files(f"&{name}"),
            ("users/assign", assign),
        ]


def control_files(me: str, listen: Sequence[str]) -> list[tuple[str, str]]:
    """(path below the home, contents) of the control files that a home begins with, as config-fast has them."""
    labels = me.split(".")
    cut = len(labels) > 2  # config-fast leaves a name of two labels as it is
    return [
        ("control/me", f"{me}\n"),
        ("control/defaultdomain", ".".join(labels[1:] if cut else labels) + "\n"),
        ("control/plusdomain", ".".join(labels[-2:]) + "\n"),
        ("control/locals", f"{me}\n"),
        ("control/rcpthosts", f"{me}\n"),
        ("control/listen", "".join(f"{line}\n" for line in listen)),
        ("control/defaultdelivery", "./Maildir/\n"),
    ]


def alias_files(instruction: str) -> list[tuple[str, str]]:
    """The aliases that every home has (*Life with qmail* 2.8.4), all with the same line."""
    return [(f"alias/.qmail-{alias}", f"{instruction}\n") for alias in ("postmaster", "mailer-daemon", "root")]


def host_name(name: str) -> str:
    """`name` in lower case. Refusal when it is no fully qualified host name."""
    lowered = name.lower()
    if not HOST_NAME.fullmatch(lowered):
        raise Refusal(f"--me {name!r}: expected a fully qualified host name such as mail.example.org")
    return lowered


def choose_owner(user: str | None) -> Owner:
    """The account of the home: the current one, or as root the one that `--user` names. Refusal when it cannot be."""
    uid = os.geteuid()
    if uid == 0:
        if user is None:
            raise Refusal("you are root, and no mail is delivered as root: give --user NAME, the account to run as")
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise Refusal(f"--user {user}: there is no such account") from None
        if entry.pw_uid == 0:
            raise Refusal(f"--user {user}: that account is root; name an ordinary one")
        return Owner(entry.pw_name, entry.pw_uid, entry.pw_gid)
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        # Containers may run under a number that passwd does not know.
        if user is None or not re.fullmatch(r"[a-z_][a-z0-9_-]*", user):
            raise Refusal(f"user id {uid} has no name: give --user NAME, in small letters, for the mailbox") from None
        return Owner(user, uid, os.getegid())
    if user not in (None, name):
        raise Refusal(f"--user {user}: only root may make a home for another account than {name}")
    return Owner(name, uid, os.getegid())


def check_path(path: str) -> None:
    """Refusal when users/assign could not name a mailbox below `path` (spec/qmail.md §12.2)."""
    if any(character in path for character in ":\n\0"):
        raise Refusal(f"{path!r}: the path of a home may hold no colon and no line end, as users/assign cannot")


def hand_over(path: str, owner: Owner) -> None:
    """As root: make `path` a directory of `owner`, and become `owner` for good.

    All the rest is then done with the owner's rights, so that no link which the owner places can lead root astray.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        holder = os.fstat(descriptor).st_uid
        if holder == 0 and not os.listdir(descriptor):
            os.fchown(descriptor, owner.uid, owner.gid)
        elif holder != owner.uid:
            raise Refusal(f"{path} belongs to user id {holder}, not to {owner.name}")
    finally:
        os.close(descriptor)
    os.initgroups(owner.name, owner.gid)
    os.setgid(owner.gid)
    os.setuid(owner.uid)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise Refusal(f"{owner.name} cannot enter {path}: a folder above it is closed to that account")


def check_place(path: str, me: str) -> None:
    """Refusal unless `path` is free, empty, or already the home of the same name."""
    try:
        entries = os.listdir(path)
    except FileNotFoundError:
        return
    if entries and not os.path.isdir(os.path.join(path, "control")):
        raise Refusal(f"{path} holds other things and is no home (no control/ in it): name a new or an empty folder")
    with contextlib.suppress(FileNotFoundError), open(os.path.join(path, "control", "me"), "rb") as file:
        present = file.readline(1024).rstrip(b" \t\n")
        if present != me.encode():
            raise Refusal(f"{path}/control/me says {present.decode('ascii', 'replace')!r}, not {me!r}")


def write_new(path: str, contents: bytes) -> bool:
    """Write a file that must not exist yet. False, and nothing touched, when it does."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "wb") as file:
        file.write(contents)
    return True


def make_home(plan: Plan) -> list[tuple[str, str]]:
    """Make what is missing of the home; returns (what was done, path below the home) in order.

    What was done is ``wrote``, ``made``, ``kept`` or ``kept (it differs)``. Raises Refusal, LayoutError or OSError.
    """
    done = []
    os.makedirs(plan.path, exist_ok=True)
    for name, mode in plan.directories():
        path = os.path.join(plan.path, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode)
    for name, text in plan.files():
        done.append((write_once(os.path.join(plan.path, name), os.fsencode(text)), name))
    assign, database = (os.path.join(plan.path, "users", name) for name in ("assign", "cdb"))
    if os.path.lexists(database):
        done.append(("kept", "users/cdb"))
    else:
        with open(assign, "rb") as source:
            table = source.read()
        try:
            write_cdb(database, compile_assign(table))
        except AssignError as error:
            raise Refusal(f"{assign}: {error}") from None
        done.append(("wrote", "users/cdb"))
    done.append((make_queue(os.path.join(plan.path, "queue")), "queue/"))
    return done


def write_once(path: str, contents: bytes) -> str:
    """Write a file unless there is one: ``wrote``, ``kept``, or ``kept (it differs)``."""
    if write_new(path, contents):
        return "wrote"
    with open(path, "rb") as file:
        return "kept" if file.read(len(contents) + 1) == contents else "kept (it differs)"


def make_queue(path: str) -> str:
    """Make a queue unless there is one: ``made`` or ``kept``. LayoutError for what is there and is none."""
    # The trigger is the last thing that create_queue makes. A whole queue is left alone: it may be split otherwise.
    if os.path.lexists(os.path.join(path, "lock", "trigger")):
        open_layout(path, RealDisk())
        return "kept"
    create_queue(path)
    return "made"


def next_steps(plan: Plan, as_root: bool) -> str:
    """What to do with a new home."""
    home = shlex.quote(plan.path)
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "twistd")
    twistd = beside if shutil.which("twistd") != beside and os.access(beside, os.X_OK) else "twistd"
    start = f"{'runuser -u ' + shlex.quote(plan.owner.name) + ' -- ' if as_root else ''}{shlex.quote(twistd)}"
    return (
        f"\nMail for {plan.owner.name}@{plan.me} will arrive in {plan.mailbox_home}/Maildir/\n"
        "next:\n"
        f"  {start} -n qtwist --home {home}\n"
        "      starts it in the foreground; it listens as control/listen says\n"
        "  control/locals and control/rcpthosts take further domains, one a line\n"
        "  control/relayclients takes the addresses of clients that may send mail to everywhere (now: none)\n"
    )


class Parser(argparse.ArgumentParser):
    """argparse with qmail's exit code for wrong use."""

    def error(self, message: str) -> NoReturn:
        self.exit(100, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parse(argv: Sequence[str]) -> Plan:
    """The plan that the command line asks for. Refusal, or SystemExit from argparse."""
    parser = Parser(
        prog="qtwist init",
        description="Make a home: control files, queue, aliases, a first mailbox. What exists is not overwritten.",
    )
    parser.add_argument("home", metavar="HOME", help="the folder to make, or to complete")
    parser.add_argument("--me", required=True, metavar="NAME", help="this host's full name, such as mail.example.org")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--port", type=int, default=DEFAULT_PORT, metavar="N", help=f"SMTP port on 127.0.0.1 (default {DEFAULT_PORT})"
    )
    where.add_argument(
        "--listen",
        action="append",
        metavar="LINE",
        help="a line for control/listen instead, such as 'smtp tcp:25'; may be repeated",
    )
    parser.add_argument("--user", metavar="NAME", help="as root: the ordinary account that the home is for")
    options = parser.parse_args(argv)
    if not 0 < options.port < 65536:
        raise Refusal(f"--port {options.port}: expected 1 to 65535")
    listen = tuple(options.listen or (f"smtp tcp:{options.port}:interface=127.0.0.1",))
    if any("\n" in line for line in listen):
        raise Refusal("--listen takes one line; repeat the option for more")
    path = os.path.abspath(options.home)
    check_path(path)
    return Plan(path, host_name(options.me), listen, choose_owner(options.user))


def main(argv: Sequence[str]) -> int:
    """Run `qtwist init`; returns the exit code."""
    try:
        plan = parse(argv)
        as_root = os.geteuid() == 0
        os.umask(0o022)
        if as_root:
            hand_over(plan.path, plan.owner)
        check_place(plan.path, plan.me)
        done = make_home(plan)
        wrong = Control(os.path.join(plan.path, "control")).check()
    except (Refusal, LayoutError) as error:
        sys.stderr.write(f"qtwist init: {error}\n")
        return 100
    except OSError as error:
        sys.stderr.write(f"qtwist init: {error.filename or 'trouble'}: {error.strerror or error}\n")
        return 111
    sys.stdout.write(f"{plan.path} is a home for {plan.me}:\n")
    for what, name in done:
        sys.stdout.write(f"  {what} {name}\n")
    for mistake in wrong:
        sys.stderr.write(f"qtwist init: {mistake}\n")
    if wrong:
        return 100
    sys.stdout.write(next_steps(plan, as_root))
    return 0

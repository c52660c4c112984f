"""`qtwist install [HOME] --me NAME`: what a daemon that is started as root needs, in one go (spec/qmail.md §1.2-§1.4).

Accounts and groups, the home with qmail's owners and modes, control files as config-fast writes them, aliases, links,
and what starts the daemon: *Life with qmail* 2.5 to 2.8. What is there already is found and told, so that it can be run
again, and nothing that somebody wrote is overwritten.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence

import attrs

from qtwist.commands import install_links
from qtwist.commands.base import DEFAULT_HOME, home
from qtwist.commands.init import (
    Parser,
    Refusal,
    alias_files,
    check_path,
    check_place,
    control_files,
    host_name,
    make_queue,
    write_new,
    write_once,
)
from qtwist.commands.service_files import log_run_script, run_script, unit
from qtwist.commands.supervision import twistd_command
from qtwist.control import Control, ControlError
from qtwist.files.disk import RealDisk
from qtwist.queue.layout import LayoutError, open_layout

#: qmail's accounts and the group of each (§1.2).
GROUPS = {
    "alias": "nofiles",
    "qmaild": "nofiles",
    "qmaill": "nofiles",
    "qmailp": "nofiles",
    "qmailq": "qmail",
    "qmailr": "qmail",
    "qmails": "qmail",
}

_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_MAILDIR = ("Maildir", "Maildir/tmp", "Maildir/new", "Maildir/cur")


@attrs.frozen
class Plan:
    """What to install; `path` is absolute, `accounts` are names by qmail's names for them."""

    path: str
    me: str
    listen: tuple[str, ...]
    accounts: dict[str, str]
    postmaster: str | None = None
    links: str | None = None
    sendmail: tuple[str, ...] = ()
    systemd: str | None = None
    daemontools: str | None = None

    def at(self, *names: str) -> str:
        return os.path.join(self.path, *names)


class Work:
    """Does what is missing, or with `check` only says what it would be. `missing` counts that."""

    def __init__(self, check: bool) -> None:
        self.check = check
        self.missing = 0

    def found(self, what: str) -> None:
        sys.stdout.write(f"  found {what}\n")

    def do(self, what: str, action: Callable[[], object]) -> None:
        """Something is missing: `action` changes that, `what` names it, beginning with a verb."""
        self.missing += 1
        if not self.check:
            action()
        sys.stdout.write(f"  {'to do: ' if self.check else ''}{what}\n")


# --- accounts ---


def account_names(given: Sequence[str], control: Control) -> dict[str, str]:
    """The accounts by qmail's names: those of control/accounts, of `given` (``role:name``), else qmail's. Refusal."""
    names = {role: role for role in GROUPS}
    wanted = {}
    for word in given:
        role, colon, name = word.partition(":")
        if role not in GROUPS or not colon or not name:
            raise Refusal(f"--account {word}: expected one of {', '.join(GROUPS)}, a colon, and an account")
        wanted[role] = name
    present = control.map("accounts")
    if present is not None:
        for role in GROUPS:
            value = present.get(role.encode())
            if value is not None:
                names[role] = os.fsdecode(value)
        for role, name in wanted.items():
            if names[role] != name:
                raise Refusal(f"{control.path('accounts')} says {names[role]} for {role}, not {name}: change it there")
    names.update(wanted)
    return names


def make_accounts(plan: Plan, work: Work) -> None:
    """Groups and accounts, with the system's own commands. Refusal, with the commands, where there are none."""
    commands: list[tuple[str, list[str]]] = []
    groups = set()
    for role, name in plan.accounts.items():
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            group = GROUPS[role]
            if not _has_group(group) and group not in groups:
                commands.append((f"made group {group}", ["groupadd", "--system", group]))
                groups.add(group)
            folder = plan.at("alias") if role == "alias" else plan.path
            shell = "/usr/sbin/nologin" if os.path.exists("/usr/sbin/nologin") else "/bin/false"
            options = ["--system", "--no-create-home", "--home-dir", folder, "--shell", shell, "--gid", group]
            commands.append((f"made account {name} of group {group}", ["useradd", *options, name]))
        else:
            if entry.pw_uid == 0 or entry.pw_gid == 0:
                raise Refusal(f"the account {name}, for {role}, is root's; expected one without privileges")
            work.found(f"account {name} ({entry.pw_uid}:{entry.pw_gid})")
    if not work.check and any(shutil.which(words[0], path=_SYSTEM_PATH) is None for _, words in commands):
        lines = "".join(f"\n    {shlex.join(words)}" for _, words in commands)
        raise Refusal(f"groupadd and useradd are not here; make what these would make, and come back:{lines}")
    for what, words in commands:
        work.do(what, lambda words=words: _run(words))  # type: ignore[misc]


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _run(words: Sequence[str]) -> None:
    program = shutil.which(words[0], path=_SYSTEM_PATH)
    assert program is not None
    done = subprocess.run([program, *words[1:]], check=False, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise Refusal(f"{shlex.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")


# --- the home ---


def make_directory(work: Work, path: str, uid: int, gid: int, mode: int) -> None:
    """A directory with this owner; one that others than `uid` may write is mended. Refusal for anything else there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        work.do(f"made {path}", lambda: _new_directory(path, uid, gid, mode))
        return
    if not stat.S_ISDIR(status.st_mode):
        raise Refusal(f"{path} is no directory")
    if (status.st_uid, status.st_gid) == (uid, gid) and not status.st_mode & 0o022:
        work.found(path)
    else:
        work.do(f"gave {path} to {uid}:{gid}, mode {mode:04o}", lambda: _own(path, uid, gid, mode))


def _new_directory(path: str, uid: int, gid: int, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.mkdir(path, 0o700)
    _own(path, uid, gid, mode)


def _own(path: str, uid: int, gid: int, mode: int) -> None:
    """Owner and mode of a directory or file, never of what a link leads to."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def make_home(plan: Plan, work: Work) -> None:
    """Directories, control files, aliases and the queue, with their owners."""
    alias, queue = (pwd.getpwnam(plan.accounts[role]) for role in ("alias", "qmailq"))
    for name in ("", "control", "users"):
        make_directory(work, plan.at(name).rstrip("/"), 0, queue.pw_gid, 0o755)
    make_directory(work, plan.at("alias"), alias.pw_uid, queue.pw_gid, 0o2755)
    for name in ("control", "users"):
        trust_files(plan, work, name)
    for name, text in [*control_files(plan.me, plan.listen), *_accounts_file(plan)]:
        write(work, plan.at(name), text)
    if plan.postmaster is None:
        maildir(work, plan.at("alias"), alias.pw_uid, queue.pw_gid)
    for name, text in alias_files("./Maildir/" if plan.postmaster is None else f"&{plan.postmaster}"):
        write(work, plan.at(name), text)
    make_owned_queue(plan, work)


def _accounts_file(plan: Plan) -> list[tuple[str, str]]:
    lines = [f"{role}:{name}\n" for role, name in plan.accounts.items() if role != name]
    return [("control/accounts", "".join(lines))] if lines else []


def trust_files(plan: Plan, work: Work, folder: str) -> None:
    """What decides about user ids belongs to root alone: the control files, users/assign and users/cdb."""
    try:
        names = os.listdir(plan.at(folder))
    except FileNotFoundError:
        return
    for name in sorted(names):
        path = plan.at(folder, name)
        status = os.lstat(path)
        ours = folder == "control" or name in ("assign", "cdb")
        if ours and stat.S_ISREG(status.st_mode) and (status.st_uid != 0 or status.st_mode & 0o022):
            mode = stat.S_IMODE(status.st_mode) & ~0o022
            work.do(f"gave {path} to root", lambda path=path, mode=mode: _own(path, 0, 0, mode))  # type: ignore[misc]


def write(work: Work, path: str, text: str) -> None:
    """A file that is not there yet."""
    if not os.path.lexists(path):
        work.do(f"wrote {path}", lambda: write_new(path, os.fsencode(text)))
    elif os.path.isfile(path):
        work.found(f"{path}{write_once(path, os.fsencode(text)).removeprefix('kept')}")
    else:
        raise Refusal(f"{path} is no file")


def maildir(work: Work, folder: str, uid: int, gid: int) -> None:
    """A Maildir in somebody's directory, made with that account's rights: no link leads root astray."""
    if os.path.lexists(os.path.join(folder, "Maildir")):
        work.found(os.path.join(folder, "Maildir"))
        return

    def make() -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(gid)
                os.setuid(uid)
                for name in _MAILDIR:
                    os.mkdir(os.path.join(folder, name), 0o700)
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] != 0:
            raise Refusal(f"the account {uid} cannot make {folder}/Maildir: a folder above it is closed to it")

    work.do(f"made {folder}/Maildir", make)


def make_owned_queue(plan: Plan, work: Work) -> None:
    """The queue, its owners, and the directories of sockets and logs."""
    # Twisted comes with these: not before it is needed, as for all commands.
    from qtwist.home import Home
    from qtwist.processes.accounts import RoleAccount, find_accounts
    from qtwist.processes.ownership import claim, strays
    from qtwist.roles import StartError

    here = Home(plan.path)

    def accounts() -> dict[str, RoleAccount]:
        try:
            return find_accounts(here.control)
        except StartError as error:
            raise Refusal(str(error)) from error

    if os.path.lexists(plan.at("queue", "lock", "trigger")):
        make_queue(plan.at("queue"))
        wrong = sum(1 for _ in strays(open_layout(here.queue_path, here.disk), accounts()))
        missing = [name for name in ("run", "log") if not os.path.isdir(plan.at(name))]
        if not wrong and not missing:
            work.found(plan.at("queue"))
            return
        what = f"gave {plan.at('queue')} to its accounts ({wrong} files and directories)"
    else:
        what = f"made {plan.at('queue')}"

    def make() -> None:
        make_queue(plan.at("queue"))
        with _Lock(plan.at("queue", "lock", "sendmutex")):
            claim(here, accounts())

    work.do(what, make)


class _Lock:
    """The queue's lock, held for the time of a change. Refusal when a queue manager is at work."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Refusal(f"{self._path} is locked: stop qtwist or qmail-send first") from None

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


# --- links, and what starts the daemon ---


def make_links(plan: Plan, work: Work) -> None:
    """The commands in a directory, and sendmail alone where the system has its own (*Life with qmail* 2.8.3)."""
    wanted = [(plan.links, None, False)] if plan.links else []
    wanted += [(folder, "sendmail", True) for folder in plan.sendmail]  # type: ignore[misc]
    present = {command.name: command for command in install_links.installed()} if wanted else {}
    if wanted and "sendmail" not in present:
        raise Refusal("the commands of this installation are not to be found; install the package first")
    for folder, only, force in wanted:
        if not os.path.isdir(folder):
            work.do(f"made {folder}", lambda folder=folder: os.makedirs(folder))  # type: ignore[misc]
        for name in [only] if only else sorted(present):
            place = install_links.Place(os.path.join(folder, name), present[name])
            if place.is_filled():
                work.found(place.path)
            elif force or place.is_ours():
                work.do(f"put {place.path} in its place", lambda place=place: place.fill(True))  # type: ignore[misc]
            else:
                work.found(
                    f"{place.path}, which is something else: `qtwist install-links --force {folder}` replaces it"
                )


def make_starters(plan: Plan, work: Work) -> None:
    """The unit, the service directory."""
    twistd = twistd_command()
    if plan.systemd is not None:
        write(work, os.path.join(plan.systemd, "qtwist.service"), unit(twistd, plan.path))
    if plan.daemontools is not None:
        service = os.path.join(plan.daemontools, "qtwist")
        if os.path.lexists(service):
            work.found(service)
            return
        account, log = plan.accounts["qmaill"], plan.at("log", "main")

        def make() -> None:
            # svscan takes no notice of names that begin with a dot, and must find all of it or nothing.
            fresh = os.path.join(os.path.dirname(service), ".qtwist.new")
            shutil.rmtree(fresh, ignore_errors=True)
            os.makedirs(os.path.join(fresh, "log"), 0o755)
            for name, text in (("run", run_script(twistd, plan.path)), ("log/run", log_run_script(account, log))):
                path = os.path.join(fresh, name)
                write_new(path, os.fsencode(text))
                os.chmod(path, 0o755)
            os.rename(fresh, service)

        work.do(f"made {service}", make)


# --- and back ---


def back_to_qmail(path: str, names: dict[str, str]) -> None:
    """Give the queue of a stopped daemon to qmail's accounts. Refusal, LayoutError, OSError."""
    from qtwist.processes.ownership import give_back
    from qtwist.queue.journal import Journal, replay
    from qtwist.queue.recovery import journal_directory

    disk = RealDisk()
    layout = open_layout(os.path.join(path, "queue"), disk)
    try:
        queue, remote, send = (pwd.getpwnam(names[role]) for role in ("qmailq", "qmailr", "qmails"))
    except KeyError as error:
        raise Refusal(f"there is no such account: {error}") from None
    with _Lock(layout.lock("sendmutex")):
        journal = journal_directory(layout)
        if os.path.isdir(journal):
            left = len(replay(Journal(disk, journal).read()))
            if left:
                raise Refusal(f"{left} messages are in {journal}: start the daemon, and stop it in order")
        changed = give_back(layout, (queue.pw_uid, queue.pw_gid), remote.pw_uid, send.pw_uid)
    sys.stdout.write(f"{layout.directory} is qmail's now ({changed} files and directories changed hands)\n")


# --- the command ---


def parser() -> Parser:
    made = Parser(
        prog="qtwist install",
        description="As root: make the accounts, the home and what starts the daemon. What exists is not overwritten; "
        "it can be run again.",
    )
    made.add_argument("home", metavar="HOME", nargs="?", help=f"[$QTWISTHOME, else {DEFAULT_HOME}]")
    made.add_argument("--me", metavar="NAME", help="this host's full name, such as mail.example.org [as control/me]")
    made.add_argument(
        "--listen",
        action="append",
        metavar="LINE",
        help="a line for control/listen; may be repeated [smtp tcp:25]",
    )
    made.add_argument(
        "--account",
        action="append",
        default=[],
        metavar="ROLE:NAME",
        help="an account in place of one of qmail's, for control/accounts; may be repeated",
    )
    made.add_argument(
        "--postmaster", metavar="USER", help="who gets the mail of postmaster, mailer-daemon and root [alias/Maildir/]"
    )
    made.add_argument("--links", metavar="DIR", help="put all commands into DIR, such as HOME/bin")
    made.add_argument(
        "--sendmail",
        action="append",
        default=[],
        metavar="DIR",
        help="put our sendmail into DIR, such as /usr/sbin; what was there is kept as sendmail.before-qtwist",
    )
    made.add_argument(
        "--systemd",
        nargs="?",
        const="/etc/systemd/system",
        metavar="DIR",
        help="write qtwist.service into DIR [/etc/systemd/system]",
    )
    made.add_argument("--daemontools", metavar="DIR", help="make the service directory DIR/qtwist for supervise")
    made.add_argument("--check", action="store_true", help="only say what is there and what is to do (exit code 100)")
    made.add_argument(
        "--give-back", action="store_true", help="give the queue to qmail's accounts again, and do nothing else"
    )
    return made


def _present_name(control: Control) -> str:
    name = control.line("me")
    if name is None:
        raise Refusal("--me NAME is needed: this host's full name, such as mail.example.org")
    return os.fsdecode(name)


def _addressee(user: str | None) -> str | None:
    """Who gets the postmaster's mail, for a line of a .qmail file."""
    if user is not None and (not user.isprintable() or " " in user or not user):
        raise Refusal(f"--postmaster {user!r}: expected a user or an address")
    return user


def run(argv: Sequence[str]) -> int:
    """What :func:`main` does, errors left aside."""
    options = parser().parse_args(argv)
    path = os.path.abspath(options.home or home())
    check_path(path)
    if os.geteuid() != 0:
        raise Refusal("this is for root; `qtwist init` makes a home for an ordinary user")
    control = Control(os.path.join(path, "control"))
    names = account_names(options.account, control)
    if options.give_back:
        back_to_qmail(path, names)
        return 0
    listen = tuple(options.listen or ("smtp tcp:25",))
    if any("\n" in line for line in listen):
        raise Refusal("--listen takes one line; repeat the option for more")
    plan = Plan(
        path,
        host_name(options.me or _present_name(control)),
        listen,
        names,
        _addressee(options.postmaster),
        options.links and os.path.abspath(options.links),
        tuple(map(os.path.abspath, options.sendmail)),
        options.systemd and os.path.abspath(options.systemd),
        options.daemontools and os.path.abspath(options.daemontools),
    )
    check_place(path, plan.me)
    os.umask(0o022)
    work = Work(options.check)
    sys.stdout.write(f"{path}, for {plan.me}:\n")
    make_accounts(plan, work)
    if work.check and work.missing:
        sys.stdout.write("  to do: all that belongs to these accounts\n")
        return 100
    make_home(plan, work)
    make_links(plan, work)
    make_starters(plan, work)
    if work.check:
        return 100 if work.missing else 0
    wrong = control.check()
    for mistake in wrong:
        sys.stderr.write(f"qtwist install: {mistake}\n")
    if wrong:
        return 100
    sys.stdout.write(next_steps(plan))
    return 0


def next_steps(plan: Plan) -> str:
    """How to go on."""
    where = shlex.quote(plan.path)
    if plan.systemd is not None:
        start = "systemctl daemon-reload; systemctl enable --now qtwist"
    elif plan.daemontools is not None:
        start = f"svscan {shlex.quote(plan.daemontools)} starts it, or link {plan.daemontools}/qtwist into /service"
    else:
        start = f"QTWISTHOME={where} qmailctl start"
    return (
        f"\nnext:\n  {start}\n"
        "  control/locals and control/rcpthosts take further domains, one a line\n"
        "  control/relayclients takes the addresses of clients that may send mail to everywhere (now: none)\n"
    )


def main(argv: Sequence[str]) -> int:
    """Run `qtwist install`; returns the exit code."""
    try:
        return run(argv)
    except (Refusal, LayoutError, ControlError) as error:
        sys.stderr.write(f"qtwist install: {error}\n")
        return 100
    except OSError as error:
        sys.stderr.write(f"qtwist install: {error.filename or 'trouble'}: {error.strerror or error}\n")
        return 111

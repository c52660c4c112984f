"""Who owns what in a home whose daemon is started as root (spec/qmail.md §1.3, §1.4).

qmail parts the queue between qmailq, qmails and qmailr. Here one role works on it, so that all of it is qmailq's but
for lock/tcpto and lock/tlsseen, which are qmailr's. :func:`claim` takes over what a qmail-send has left, in an order
that a crash in between does not harm: the directories last, so that what is left to do is seen the next time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qtwist.queue.layout import Layout, open_layout
from qtwist.queue.recovery import journal_directory
from qtwist.roles import StartError

if TYPE_CHECKING:
    from qtwist.home import Home
    from qtwist.processes.accounts import RoleAccount

_FLAT = ("pid", "intd", "todo", "bounce", "lock")
_SPLIT = ("mess", "info", "local", "remote")
#: What is qmailr's in lock/.
_OF_REMOTE = ("tcpto", "tlsseen")
#: What is qmails' in qmail.
_OF_SEND = ("info", "local", "remote", "bounce")


def check_trusted(home: Home) -> None:
    """StartError unless what decides about user ids belongs to root, and to root alone."""
    for name in ("", "control", "users", "users/cdb"):
        path = os.path.join(home.path, name).rstrip("/")
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if status.st_uid != 0 or status.st_mode & 0o022:
            whose = f"belongs to user id {status.st_uid}" if status.st_uid else "may be written by others than root"
            raise StartError(
                f"{path} {whose}; expected it to be root's alone, as the daemon was started as root: "
                "`qtwist install` sees to that, and `twistd --uid … --gid …` runs everything as the owner"
            )


def claim(home: Home, accounts: dict[str, RoleAccount]) -> None:
    """Give queue/, run/, log/ and greylist/ of a home to their accounts, as far as they are not theirs. Needs root.

    OSError, LayoutError when that cannot be.
    """
    layout = open_layout(home.queue_path, home.disk)
    with contextlib.suppress(FileExistsError):
        # qmailr may make no file there.
        os.close(os.open(layout.lock("tlsseen"), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    _make_policies(layout, accounts["qmailr"])
    for path, uid, gid in strays(layout, accounts):
        os.chown(path, uid, gid, follow_symlinks=False)
    for name, role in (("run", "qmailq"), ("log", "qmaill"), ("greylist", "qmaild")):
        directory, account = os.path.join(home.path, name), accounts[role]
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755)
        if not _is(directory, account.uid, account.gid):
            os.chown(directory, account.uid, account.gid, follow_symlinks=False)


def strays(layout: Layout, accounts: dict[str, RoleAccount]) -> Iterator[tuple[str, int, int]]:
    """What is in a queue and belongs to somebody else than here: path, and the user and group id that it should have.

    In the order to give it away, each before the next is asked for. Links are not followed.
    """
    queue, remote = accounts["qmailq"], accounts["qmailr"]
    of_remote = [layout.lock(name) for name in _OF_REMOTE]
    for room in _rooms(layout):
        # In qmail, lock/ is qmailq's, and some of what is in it is not.
        if room == layout.room("lock") or not _is(room, queue.uid, queue.gid):
            for path in _files(room):
                if path not in of_remote and not _is(path, queue.uid, queue.gid):
                    yield path, queue.uid, queue.gid
            if not _is(room, queue.uid, queue.gid):
                yield room, queue.uid, queue.gid
    for path in of_remote:
        if os.path.lexists(path) and not _is(path, remote.uid, remote.gid):
            yield path, remote.uid, remote.gid


def give_back(layout: Layout, queue: tuple[int, int], remote: int, send: int) -> int:
    """Part the queue as qmail does (§1.4): qmailq's user and group id, the user ids of qmailr and qmails; without what
    qmail does not know.

    How many files and directories changed hands. The caller holds the queue's lock. OSError.
    """
    uid, gid = queue
    changed = 0
    with contextlib.suppress(FileNotFoundError):
        os.unlink(layout.lock("tlsseen"))
    shutil.rmtree(_policies(layout), ignore_errors=True)
    for room in _rooms(layout):
        holder = send if os.path.relpath(room, layout.directory).split("/")[0] in _OF_SEND else uid
        for path in (*_files(room), room):
            name = os.path.relpath(path, layout.directory)
            wanted = {"lock/tcpto": remote, "lock/sendmutex": send, "lock/trigger": send}.get(name, holder)
            if not _is(path, wanted, gid):
                os.chown(path, wanted, gid, follow_symlinks=False)
                changed += 1
    return changed


def _make_policies(layout: Layout, remote: RoleAccount) -> None:
    """The directory for MTA-STS policies: qmailr's, or made anew, as what is in it can be fetched again."""
    directory = _policies(layout)
    if not (os.path.lexists(directory) and _is(directory, remote.uid, remote.gid)):
        shutil.rmtree(directory, ignore_errors=True)  # follows no links
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        os.chown(directory, remote.uid, remote.gid, follow_symlinks=False)


def _policies(layout: Layout) -> str:
    """Where rspawn keeps MTA-STS policies."""
    return os.path.join(layout.directory, "mtasts")


def _rooms(layout: Layout) -> list[str]:
    """All directories of a queue, inner ones first."""
    rooms = [layout.room(room) for room in _FLAT]
    journal = journal_directory(layout)
    if os.path.isdir(journal):
        rooms.append(journal)
    rooms += [layout.room(room, part) for room in _SPLIT for part in range(layout.split)]
    return [*rooms, *(layout.room(room) for room in _SPLIT), layout.directory]


def _files(room: str) -> list[str]:
    """What is in a directory and is none itself."""
    paths = [os.path.join(room, name) for name in os.listdir(room)]
    return [path for path in paths if not stat.S_ISDIR(os.lstat(path).st_mode)]


def _is(path: str, uid: int, gid: int) -> bool:
    status = os.lstat(path)
    return (status.st_uid, status.st_gid) == (uid, gid)

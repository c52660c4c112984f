"""Who owns what in a home whose daemon is started as root (spec/qmail.md §1.3, §1.4).

qmail parts the queue between qmailq, qmails and qmailr. Here one role works on it, so that all of it is qmailq's but
for lock/tcpto, which is qmailr's. :func:`claim` takes over what a qmail-send has left, in an order that a crash in
between does not harm: the directories last, so that what is left to do is seen the next time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from qtwist.queue.layout import open_layout
from qtwist.roles import StartError

if TYPE_CHECKING:
    from qtwist.home import Home
    from qtwist.processes.accounts import RoleAccount

_FLAT = ("pid", "intd", "todo", "bounce", "lock")
_SPLIT = ("mess", "info", "local", "remote")


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
    """Give queue/, run/ and log/ of a home to their accounts, as far as they are not theirs. Needs root.

    OSError, LayoutError when that cannot be.
    """
    queue, remote, log = accounts["qmailq"], accounts["qmailr"], accounts["qmaill"]
    layout = open_layout(home.queue_path, home.disk)
    rooms = [layout.room(room) for room in _FLAT]
    rooms += [layout.room(room, part) for room in _SPLIT for part in range(layout.split)]
    for room in (*rooms, *(layout.room(room) for room in _SPLIT), layout.directory):
        if not _is(room, queue.uid, queue.gid):
            for name in os.listdir(room):
                path = os.path.join(room, name)
                if path != layout.lock("tcpto") and not stat.S_ISDIR(os.lstat(path).st_mode):
                    _give(path, queue.uid, queue.gid)
            _give(room, queue.uid, queue.gid)
    _give(layout.lock("tcpto"), remote.uid, remote.gid)
    for name, account in (("run", queue), ("log", log)):
        directory = os.path.join(home.path, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755)
        _give(directory, account.uid, account.gid)


def _is(path: str, uid: int, gid: int) -> bool:
    status = os.lstat(path)
    return (status.st_uid, status.st_gid) == (uid, gid)


def _give(path: str, uid: int, gid: int) -> None:
    """Never through a symbolic link; a file with other names elsewhere is not touched unless the queue made them."""
    if not _is(path, uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)

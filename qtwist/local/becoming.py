"""How a process of root's becomes somebody else for good. Standard library only; lspawn calls it after a fork."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS


def forget_signals() -> None:
    """Handle signals as a new program does."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def keep_only(fds: list[int]) -> None:
    """Make these the process's descriptors 0, 1, 2, …, and close all others."""
    high = [os.dup(fd) for fd in fds]
    while min(high) < len(fds):
        high = [os.dup(fd) for fd in high]
    for number, fd in enumerate(high):
        os.dup2(fd, number)
    os.closerange(len(fds), resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Be this user for good. PermissionError rather than root, or half of it."""
    if uid == 0:
        raise PermissionError("never as root")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PermissionError("the user id was not taken on")


def no_new_privileges() -> None:
    """No program that this process runs gets more rights than it has, setuid or not. Linux; elsewhere nothing."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)

"""Accounts for tests of a daemon that is started as root. Made once, they stay: other tests may be using them."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
from unittest import SkipTest

#: qmail's names, and those that stand for them in tests.
ROLES = {role: f"qtwtest-{role[-1]}" for role in ("qmaild", "qmaill", "qmailp", "qmailq", "qmailr", "qmails")}

#: An account of the system with a home directory.
PERSON = "qtwtest-joe"


def accounts() -> dict[str, pwd.struct_passwd]:
    """The accounts by qmail's names, and ``person``. SkipTest where nobody may make them."""
    names = {**ROLES, "person": PERSON}
    try:
        return {role: pwd.getpwnam(name) for role, name in names.items()}
    except KeyError:
        pass
    if os.geteuid() != 0:
        raise SkipTest("only root can make accounts")
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin")
    if useradd is None:
        raise SkipTest("useradd is not installed (Debian package passwd)")
    with open(os.path.join(tempfile.gettempdir(), "qtwist-test-accounts.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names.values():
            try:
                pwd.getpwnam(name)
            except KeyError:
                home = f"/var/tmp/{name}" if name == PERSON else "/"
                subprocess.run(
                    [useradd, "--system", "--no-create-home", "--user-group", "--home-dir", home, name],
                    check=True,
                    capture_output=True,
                )
    return {role: pwd.getpwnam(name) for role, name in names.items()}

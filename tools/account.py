"""The unprivileged account that a daemon is tried out under when the person who does it is root."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import attrs


@attrs.frozen
class Account:
    """Who a child process runs as; `switch` says that we are root and must change to it."""

    name: str
    uid: int
    gid: int
    switch: bool

    def identity(self) -> dict[str, Any]:
        """The keyword arguments of subprocess that make a child run as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}


def ordinary_account() -> Account:
    """The current user; for root the user behind sudo, or else ``nobody``."""
    uid = os.geteuid()
    if uid != 0:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = "postman"
        return Account(name, uid, os.getegid(), switch=False)
    behind = os.environ.get("SUDO_USER", "")
    for name in (behind, "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)
    raise SystemExit("you are root, and there is no account `nobody` to run the daemon under")


def environment() -> dict[str, str]:
    """A small environment for children: what belongs to the caller's account or shell stays out."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TZ", "TMPDIR")}
    return {"PATH": os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin", "HOME": "/", **kept}


def can_run(account: Account, command: Sequence[str], extra: Mapping[str, str] | None = None) -> bool:
    """Whether `account` can run `command` with success; what it prints is thrown away."""
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd="/",
            env={**environment(), **(extra or {})},
            capture_output=True,
            timeout=60,
            **account.identity(),
        )
    except OSError:
        return False
    return done.returncode == 0

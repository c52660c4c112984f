"""What the tests of logins share: a home with people in it, cheap hashes, a count of the hashes that are computed."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth import hashing
from qtwist.auth.mailboxes import Mailboxes
from qtwist.auth.store import CredentialStore
from qtwist.files.assign import compile_assign
from qtwist.files.cdb import write_cdb
from qtwist.local.users import Account as SystemAccount
from tests.unprivileged import ORDINARY

#: As cheap as argon2id gets.
CHEAP = hashing.Parameters(8, 1, 1)

#: Hashes of "secret": the first three by `openssl passwd`, the others by libxcrypt 4.4's crypt(3).
IMPORTED = {
    "md5": b"$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1",
    "sha256": b"$5$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM.",
    "sha512": b"$6$rounds=1000$abcdefgh$nhYjN017qxiYztzyUpZtPnUQcnLy62KsunSLHNeLahp2EHPlAKmFFlrjEwSXGo2kgY5hR2."
    b"peKEg2VGUqIJJu1",
    "bcrypt": b"$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
    "yescrypt": b"$y$j8T$abcdefghijkl$r3Z0gOZQcrqmE3tSdQHKL6VwPL2h5Kwxy6lL8t0GEs4",
}


def cheap(password: bytes) -> bytes:
    return hashing.make(password, CHEAP)


class Counter:
    """Counts the hashes that are computed from now on in `test`."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.methods: list[str] = []
        derive, crypt = hashing._derive, hashing._crypt

        def counted_derive(argon: Any, password: bytes) -> bytes:
            self.methods.append(f"argon2id {argon.parameters.memory}")
            return derive(argon, password)

        def counted_crypt(password: bytes, setting: bytes) -> bytes:
            self.methods.append(hashing.scheme(setting))
            return crypt(password, setting)

        test.patch(hashing, "_derive", counted_derive)
        test.patch(hashing, "_crypt", counted_crypt)

    def take(self) -> list[str]:
        methods, self.methods = self.methods, []
        return methods


class AtOnce:
    """Stands for Threads: everything is done at once, in this thread."""

    def quick(self, function: Any, *arguments: Any) -> Deferred[Any]:
        return maybeDeferred(function, *arguments)

    slow = quick


class MailHome:
    """A home in a directory of its own, with control files and users/assign, and accounts of a system to go with it."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.path = tempfile.mkdtemp(prefix="qtwist-auth-")
        test.addCleanup(shutil.rmtree, self.path, ignore_errors=True)
        for name in ("control", "users", "mail"):
            os.mkdir(os.path.join(self.path, name))
        self.write("control/me", b"mail.example.org\n")
        self.accounts: dict[bytes, SystemAccount] = {}
        self.mailboxes = Mailboxes(self.path, self.accounts.get)
        self.store = CredentialStore(self.join("users/credentials"))

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def write(self, name: str, contents: bytes) -> None:
        os.makedirs(os.path.dirname(self.join(name)), exist_ok=True)
        with open(self.join(name), "wb") as file:
            file.write(contents)
        if name == "users/credentials":
            os.chmod(self.join(name), 0o600)

    def read(self, name: str) -> bytes:
        with open(self.join(name), "rb") as file:
            return file.read()

    def assign(self, *lines: str) -> None:
        """users/assign and users/cdb; ``HOME`` in a line stands for the path of the home."""
        text = "".join(line.replace("HOME", self.path) + "\n" for line in lines).encode() + b".\n"
        self.write("users/assign", text)
        write_cdb(self.join("users/cdb"), compile_assign(text))

    def account(self, name: bytes) -> bytes:
        """An ordinary account of the system that owns its home directory; the path of that."""
        home = self.join("homes/" + name.decode())
        os.makedirs(home)
        if os.geteuid() == 0:
            os.chown(home, ORDINARY, ORDINARY)
        status = os.stat(home)
        self.accounts[name] = SystemAccount(name, status.st_uid, status.st_gid, home.encode())
        return home.encode()

"""Checkpassword-compatible programs behind twisted.cred (spec/related.md §6, spec/qmail.md §18.1)."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.cred.credentials import CramMD5Credentials, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.auth import program
from qtwist.auth.authenticator import Authenticator
from qtwist.auth.checkers import Threads
from qtwist.auth.credentials import APOPCredentials
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.program import LONGEST_REQUEST, ProgramChecker, request_for
from tests.auth_tools import MailHome
from tests.command_tools import PYTHONPATH

# Accepts joe with "secret", and notes what it was given. In Python, for no shell reads NULs.
CHECKER = f"""#!{sys.executable} -IS
import os, sys
request = b""
while block := os.read(3, 1000):
    request += block
os.close(3)
with open(os.path.join(os.environ["NOTES"], "request"), "wb") as file:
    file.write(request)
with open(os.path.join(os.environ["NOTES"], "environment"), "w") as file:
    file.write(repr(dict(os.environ)))
name, password, timestamp = request.split(b"\\0")[:3]
if (name, password) != (b"joe", b"secret"):
    sys.exit(1)
print("chatter that is none of our business")
home = os.path.join(os.environ["NOTES"], "mail")
os.chdir(home)
os.environ.update(USER="joe", HOME=home, SHELL="/bin/sh", EXTRA="two\\nlines=x")
sys.stdout.flush()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class RequestTests(SynchronousTestCase):
    """§18.1: what the program reads on descriptor 3."""

    def test_forms(self) -> None:
        cram = CramMD5Credentials()
        cram.username, cram.challenge, cram.response = b"joe", b"<1.2@x>", b"0f" * 16
        for credentials, expected in (
            (UsernamePassword(b"joe", b"se cret"), b"joe\0se cret\0\0"),
            (APOPCredentials(b"joe", b"<1.2@x>", b"ab" * 16), b"joe\0" + b"ab" * 16 + b"\0<1.2@x>\0"),
            (cram, b"joe\0" + b"0f" * 16 + b"\0<1.2@x>\0"),
        ):
            self.assertEqual(request_for(credentials), expected)

    def test_bounds(self) -> None:
        """512 octets at most; a NUL would move the fields."""
        room = LONGEST_REQUEST - len(b"joe\0\0\0")
        self.assertEqual(len(request_for(UsernamePassword(b"joe", b"x" * room))), 512)
        for credentials in (
            UsernamePassword(b"joe", b"x" * (room + 1)),
            UsernamePassword(b"joe\0secret", b"x"),
            UsernamePassword(b"joe", b"secret\0"),
            CramMD5Credentials(),
            object(),
        ):
            self.assertRaises(UnauthorizedLogin, request_for, credentials)


class ProgramTests(TestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)
        self.clock = Clock()
        os.mkdir(self.home.join("mail/Maildir"))
        os.chmod(self.home.path, 0o755)

    def checker(self, text: str, *arguments: bytes) -> ProgramChecker:
        path = self.home.join("checker")
        self.home.write("checker", text.encode())
        os.chmod(path, 0o755)
        environment = {b"PATH": b"/usr/bin:/bin", b"NOTES": os.fsencode(self.home.path)}
        threads = Threads(reactor)
        return ProgramChecker([os.fsencode(path), *arguments], self.home.mailboxes, threads, reactor, environment)

    def check(self, checker: ProgramChecker, password: bytes = b"secret", name: bytes = b"joe") -> Deferred[Any]:
        return checker.requestAvatarId(UsernamePassword(name, password))

    async def test_success(self) -> None:
        """The account is what the program behind the checker finds: ids, directory, environment."""
        if os.geteuid() != 0:
            uid, gid = os.getuid(), os.getgid()
        else:
            uid = gid = 65534
        account = await self.check(self.checker(CHECKER, b"argument"))
        home = os.fsencode(self.home.join("mail"))
        self.assertEqual((account.name, account.home, account.uid, account.gid), (b"joe", home, uid, gid))
        self.assertEqual(account.maildir, home + b"/Maildir")
        self.assertEqual(account.environment[b"EXTRA"], b"two\nlines=x")
        self.assertEqual(account.environment[b"USER"], b"joe")
        self.assertEqual(self.home.read("request"), b"joe\0secret\0\0")

    async def test_wrong(self) -> None:
        checker = self.checker(CHECKER, b"argument")
        await self.assertFailure(self.check(checker, b"guess"), UnauthorizedLogin)
        await self.assertFailure(self.check(checker, b"secret", b"ann"), UnauthorizedLogin)

    async def test_exit_codes(self) -> None:
        """§6: 1 is unacceptable (Dovecot's 3, too), 2 misuse, 111 temporary; others are no wrong password."""
        for code, expected in ((1, UnauthorizedLogin), (3, UnauthorizedLogin), (2, None), (111, None), (100, None)):
            checker = self.checker(f"#!/bin/sh\nexit {code}\n")
            failed = await self.assertFailure(self.check(checker), expected or LoginUnavailable)
            if expected is None:
                self.assertIn(str(code), str(failed))

    async def test_signal(self) -> None:
        failed = await self.assertFailure(self.check(self.checker("#!/bin/sh\nkill -9 $$\n")), LoginUnavailable)
        self.assertIn("signal 9", str(failed))

    async def test_exit_0_alone_is_no_login(self) -> None:
        """A program that does not run the one behind it has not said who that is."""
        for text in ("exit 0", "echo 0; echo 0; echo /; env -0"):
            failed = await self.assertFailure(self.check(self.checker(f"#!/bin/sh\n{text}\n")), LoginUnavailable)
            self.assertIn("did not run", str(failed))

    async def test_not_as_root(self) -> None:
        text = '#!/bin/sh\nfor marker do :; done\necho "$marker"; echo 0; echo 0; echo /; env -0\n'
        failed = await self.assertFailure(self.check(self.checker(text)), LoginUnavailable)
        self.assertIn("root", str(failed))

    async def test_no_program(self) -> None:
        checker = ProgramChecker([b"/nonexistent/checker"], self.home.mailboxes, Threads(reactor), reactor)
        failed = await self.assertFailure(self.check(checker), LoginUnavailable)
        self.assertIn("/nonexistent/checker", str(failed))

    async def test_too_slow(self) -> None:
        """It is ended, and its descriptors with it, when it takes too long."""
        self.patch(program, "TIMEOUT", 0.05)
        failed = await self.assertFailure(self.check(self.checker("#!/bin/sh\nexec sleep 600\n")), LoginUnavailable)
        self.assertIn("too long", str(failed))
        self.flushLoggedErrors()

    async def test_too_much(self) -> None:
        failed = await self.assertFailure(self.check(self.checker("#!/bin/sh\nexec yes\n")), LoginUnavailable)
        self.assertIn("too much", str(failed))

    async def test_cancelled(self) -> None:
        """A client that goes takes the program with it."""
        answer = self.check(self.checker("#!/bin/sh\nexec sleep 600\n"))
        answer.cancel()
        await self.assertFailure(answer, CancelledError)

    async def test_not_too_many(self) -> None:
        self.patch(program, "MOST_WAITING", 1)
        self.patch(program, "MOST_RUNNING", 1)
        checker = self.checker("#!/bin/sh\nexit 1\n")
        answers = [self.check(checker) for _ in range(3)]
        await self.assertFailure(answers[2], LoginUnavailable)
        await self.assertFailure(answers[0], UnauthorizedLogin)
        await self.assertFailure(answers[1], UnauthorizedLogin)

    async def test_environment(self) -> None:
        """Programs such as vchkpw look at TCPLOCALPORT to see which service is meant, and nothing of ours leaks."""
        from twisted.cred.portal import Portal

        from qtwist.auth.realm import IAccount, MailRealm

        portal = Portal(MailRealm(), [self.checker(CHECKER, b"argument")])
        login = Authenticator(portal, reactor).login(  # type: ignore[arg-type]
            UsernamePassword(b"joe", b"secret"), "192.0.2.1", "pop3s", IAccount
        )
        await login
        seen = self.home.read("environment")
        self.assertIn(b"'TCPREMOTEIP': '192.0.2.1'", seen)
        self.assertIn(b"'TCPLOCALPORT': '995'", seen)
        self.assertNotIn(b"PYTHONPATH", seen)

    async def test_our_own_program(self) -> None:
        """qtwist's checkpassword is one of these programs."""
        from tests.auth_tools import cheap

        self.home.assign(f"=joe:someone:{os.getuid() or 65534}:{os.getgid() or 65534}:HOME/mail:::")
        self.home.store.set(b"joe", cheap(b"secret"))
        text = (
            f"#!/bin/sh\nPYTHONPATH={PYTHONPATH} QTWISTHOME={self.home.path} exec {sys.executable} -c "
            "'import sys; from qtwist.commands.checkpassword import main; sys.exit(main())' \"$@\"\n"
        )
        checker = self.checker(text)
        account = await self.check(checker)
        self.assertEqual(account.home, os.fsencode(self.home.join("mail")))
        self.assertEqual(account.uid, os.getuid() or 65534)
        await self.assertFailure(self.check(checker, b"guess"), UnauthorizedLogin)

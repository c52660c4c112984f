"""Logging in: the Authenticator, the realm and the checkers of the store and of the system (issue 4, item 2)."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import CramMD5Credentials, IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import Interface, implementer
from zope.interface.verify import verifyObject

from qtwist.auth import checkers, hashing, system
from qtwist.auth.authenticator import Authenticator
from qtwist.auth.checkers import EachChecker, StoreChecker, SystemChecker, Threads
from qtwist.auth.credentials import APOPCredentials
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.making import HomeChecker, make_authenticator
from qtwist.auth.origin import current_origin
from qtwist.auth.passwords import Passwords
from qtwist.auth.proofs import Proofs
from qtwist.auth.realm import IAccount, MailRealm
from qtwist.auth.system import SystemPasswords
from qtwist.control import Control
from tests.auth_tools import IMPORTED, AtOnce, Counter, MailHome, cheap

HERE, THERE = "192.0.2.1", "198.51.100.7"


class APOPTests(SynchronousTestCase):
    # RFC 1939 §7.
    TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"
    DIGEST = b"c4c9334bac560ecc979e58001b3e22fb"

    def test_rfc_1939(self) -> None:
        credentials = APOPCredentials(b"mrose", self.TIMESTAMP, self.DIGEST)
        self.assertTrue(credentials.checkPassword(b"tanstaaf"))
        self.assertFalse(credentials.checkPassword(b"tanstaag"))
        self.assertTrue(APOPCredentials(b"mrose", self.TIMESTAMP, self.DIGEST.upper()).checkPassword(b"tanstaaf"))
        for digest in (b"", self.DIGEST[:-1], self.DIGEST + b"0", b"\xff" * 32):
            self.assertFalse(APOPCredentials(b"mrose", self.TIMESTAMP, digest).checkPassword(b"tanstaaf"))


class Events:
    """The log events of a test."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        test.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def text(self) -> str:
        return repr(self.events)


@implementer(IRealm)
class AnyRealm:
    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: Any) -> Any:
        return interfaces[0], avatarId, lambda: None


class _Checker:
    """Answers as it is told to; counts how often it is asked."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer
        self.asked = 0

    def requestAvatarId(self, credentials: Any) -> Any:
        self.asked += 1
        return self.answer(credentials)


class AuthenticatorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.events = Events(self)
        database = InMemoryUsernamePasswordDatabaseDontUse(joe=b"secret", ann=b"geheim")
        self.checker = _Checker(database.requestAvatarId)
        self.authenticator = Authenticator(Portal(AnyRealm(), [self.checker]), self.clock)  # type: ignore[list-item]

    def login(self, name: bytes, password: bytes, ip: str = HERE) -> Deferred[Any]:
        return self.authenticator.login(UsernamePassword(name, password), ip, "pop3", IAccount)

    def test_success(self) -> None:
        avatar, logout = self.successResultOf(self.login(b"joe", b"secret"))
        self.assertEqual(avatar, b"joe")
        logout()

    def test_failure_takes_its_time(self) -> None:
        for seconds in (1, 2, 4):
            answer = self.login(b"joe", b"guess")
            self.clock.advance(seconds - 0.01)
            self.assertNoResult(answer)
            self.clock.advance(0.01)
            self.failureResultOf(answer, UnauthorizedLogin)

    def test_unknown_users_look_the_same(self) -> None:
        """By text and by time."""
        answers = []
        for name in (b"joe", b"nobody"):
            self.setUp()
            answer = self.login(name, b"guess")
            self.clock.advance(0.99)
            self.assertNoResult(answer)
            self.clock.advance(0.01)
            answers.append(str(self.failureResultOf(answer, UnauthorizedLogin).value))
        self.assertEqual(answers[0], answers[1])

    def test_work_counts_into_the_time(self) -> None:
        """However long the checker works, the answer comes at the same time."""
        pending: Deferred[Any] = Deferred()
        self.checker.answer = lambda _: pending
        answer = self.login(b"joe", b"guess")
        self.clock.advance(0.8)
        pending.errback(UnauthorizedLogin())
        self.clock.advance(0.19)
        self.assertNoResult(answer)
        self.clock.advance(0.01)
        self.failureResultOf(answer, UnauthorizedLogin)

    def test_work_that_takes_longer(self) -> None:
        """Then the answer comes at once."""
        pending: Deferred[Any] = Deferred()
        self.checker.answer = lambda _: pending
        answer = self.login(b"joe", b"guess")
        self.clock.advance(5)
        pending.errback(UnauthorizedLogin())
        self.failureResultOf(answer, UnauthorizedLogin)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_has_logged_in_does_not_wait_for_neighbours(self) -> None:
        self.successResultOf(self.login(b"joe", b"secret"))
        for _ in range(3):
            self.login(b"ann", b"guess").addErrback(lambda _: None)
        self.successResultOf(self.login(b"joe", b"secret"))
        self.clock.advance(60)

    def test_hanging_up(self) -> None:
        """Who does not wait for the answer waits before the next try, also with the right password."""
        gone = self.login(b"joe", b"guess")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        answer = self.login(b"joe", b"secret")
        self.assertEqual(self.checker.asked, 1)
        self.clock.advance(1)
        self.successResultOf(answer)
        self.flushLoggedErrors()

    def test_strangers_do_not_slow_anybody(self) -> None:
        for number in range(40):
            self.login(b"joe", b"guess", f"10.0.{number}.1").addErrback(lambda _: None)
        self.successResultOf(self.login(b"joe", b"secret", THERE))
        self.clock.advance(60)

    def test_too_many(self) -> None:
        """What would have to wait for too long is not even looked at."""
        answers = [self.login(b"joe", b"guess") for _ in range(100)]
        refused = [answer for answer in answers if answer.called]
        self.assertEqual(self.checker.asked, 1)
        self.assertGreater(len(refused), 60)
        for answer in refused:
            self.failureResultOf(answer, LoginUnavailable)
        self.clock.pump([1] * 200)
        self.assertEqual(self.checker.asked, 100 - len(refused))
        for answer in answers:
            if answer not in refused:
                self.failureResultOf(answer, UnauthorizedLogin)

    def test_letter_case_gains_nothing(self) -> None:
        for number, name in enumerate((b"joe", b"JOE", b"Joe")):
            self.login(name, b"guess", f"10.0.{number}.1").addErrback(lambda _: None)
        self.assertEqual([event["delay"] for event in self.events.events if "delay" in event], [1, 2, 4])
        self.clock.advance(60)

    def test_unavailable(self) -> None:
        """What is nobody's fault is not counted as a guess, and comes at once."""
        for error, logged in ((LoginUnavailable("disk"), 0), (ZeroDivisionError("oops"), 1)):
            self.checker.answer = lambda _, error=error: fail(error)
            self.failureResultOf(self.login(b"joe", b"secret"), LoginUnavailable)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), logged)
        self.checker.answer = lambda _: succeed(b"joe")
        self.successResultOf(self.login(b"joe", b"secret"))

    def test_other_credentials(self) -> None:
        """Credentials that no checker takes are wrong ones."""
        answer = self.authenticator.login(APOPCredentials(b"joe", b"<1@x>", b"0" * 32), HERE, "pop3", IAccount)
        self.clock.advance(1)
        self.failureResultOf(answer, UnauthorizedLogin)

    def test_log(self) -> None:
        """Who failed, from where, with what service; never the password, and no line that a client made."""
        answer = self.login(b"joe\r\nforged: \x1b[31m", b"sesame")
        self.clock.advance(1)
        self.failureResultOf(answer)
        (event,) = self.events.events
        self.assertEqual((event["ip"], event["service"]), (HERE, "pop3"))
        self.assertEqual(event["user"], "'joe\\r\\nforged: \\x1b[31m'")
        self.assertNotIn("sesame", self.events.text())

    def test_origin(self) -> None:
        """Checkers that want to know who asks can."""
        found = []
        self.checker.answer = lambda _: (found.append(current_origin.get()), b"joe")[1]
        self.successResultOf(self.login(b"joe", b"secret"))
        self.assertEqual(found[0].environment(), {b"TCPREMOTEIP": HERE.encode(), b"TCPLOCALPORT": b"110"})
        self.assertEqual(current_origin.get().environment(), {})


class RealmTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)
        self.home.assign("=joe:someone:1234:2345:HOME/mail/joe:::")
        account = self.home.mailboxes.find(b"joe")
        assert account is not None
        self.account = account

    def test_interfaces(self) -> None:
        verifyObject(IAccount, self.account)
        verifyObject(IRealm, MailRealm())

    def test_avatars(self) -> None:
        class IOther(Interface):
            pass

        class IBox(Interface):
            pass

        realm = MailRealm({IBox: lambda account: succeed(("box", account.maildir))})
        kind, avatar, logout = self.successResultOf(realm.requestAvatar(self.account, None, IOther, IBox))
        self.assertEqual((kind, avatar), (IBox, ("box", self.account.maildir)))
        self.assertIsNone(logout())
        _, avatar, _ = self.successResultOf(realm.requestAvatar(self.account, None, IAccount))
        self.assertIs(avatar, self.account)
        self.assertRaises(NotImplementedError, realm.requestAvatar, self.account, None, IOther)


class StoreCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)
        self.home.assign(
            "=joe:someone:1234:2345:HOME/mail/joe:::",
            "=old:someone:1234:2345:HOME/mail/old:::",
            "=pat:someone:1234:2345:HOME/mail/pat:::",
        )
        self.current = hashing.make(b"secret")
        lines = (b"joe:" + self.current, b"old:" + IMPORTED["sha512"], b"pat:{PLAIN}tanstaaf", b"lost:" + self.current)
        self.home.write("users/credentials", b"\n".join(lines) + b"\n")
        self.clock = Clock()
        self.passwords = Passwords(self.home.store, Proofs(self.clock.seconds))
        self.counter = Counter(self)


class PasswordsTests(StoreCase):
    def test_one_hash_each(self) -> None:
        """Whoever is asked for: there, not there, without a hash. That is what "not told apart by time" rests on."""
        for names in ([b"joe"], [b"nobody"], [b"pat"], [b"x@mail.example.org", b"x"]):
            self.assertIsNone(self.passwords.check(names, b"guess"), names)
            self.assertEqual(self.counter.take(), ["argon2id 19456"], names)
        self.assertIsNone(self.passwords.check([b"old"], b"guess"))
        self.assertEqual(self.counter.take(), ["sha512"])

    def test_odd_passwords_cost_the_same(self) -> None:
        for password in (b"", b"\0", b"x" * 3000):
            for names in ([b"joe"], [b"nobody"]):
                self.assertIsNone(self.passwords.check(names, password))
                self.assertEqual(self.counter.take(), ["argon2id 19456"])

    def test_upgrade(self) -> None:
        """A hash of an old kind becomes an argon2id one with the login that proves the password."""
        self.assertEqual(self.passwords.check([b"old"], b"secret"), b"old")
        stored = self.home.store.get(b"old")
        assert stored is not None
        self.assertTrue(stored.startswith(b"$argon2id$"))
        self.assertTrue(hashing.matches(stored, b"secret"))
        self.assertEqual(self.passwords.proven([b"old"], b"secret"), b"old")
        self.assertEqual(self.home.store.get(b"joe"), self.current)

    def test_upgrade_where_nothing_can_be_written(self) -> None:
        """It still logs in, and no second hash is computed in vain."""
        self.patch(os, "access", lambda *_: False)
        self.assertEqual(self.passwords.check([b"old"], b"secret"), b"old")
        self.assertEqual(self.counter.take(), ["sha512"])
        self.assertEqual(self.home.store.get(b"old"), IMPORTED["sha512"])
        self.patch(os, "access", lambda *_: True)
        self.patch(self.home.store, "upgrade", mock.Mock(side_effect=PermissionError(13, "no")))
        self.assertEqual(self.passwords.check([b"old"], b"secret"), b"old")

    def test_wrong_password_upgrades_nothing(self) -> None:
        before = self.home.read("users/credentials")
        self.passwords.check([b"old"], b"guess")
        self.assertEqual(self.home.read("users/credentials"), before)

    def test_proofs(self) -> None:
        """Who polls costs one hash in a while; a changed password ends it at once."""
        self.assertIsNone(self.passwords.proven([b"joe"], b"secret"))
        self.passwords.check([b"joe"], b"secret")
        self.counter.take()
        for _ in range(50):
            self.assertEqual(self.passwords.proven([b"joe"], b"secret"), b"joe")
            self.assertIsNone(self.passwords.proven([b"joe"], b"guess"))
        self.assertEqual(self.counter.take(), [])
        self.home.store.set(b"joe", cheap(b"other"))
        self.assertIsNone(self.passwords.proven([b"joe"], b"secret"))
        self.home.store.delete(b"joe")
        self.assertIsNone(self.passwords.proven([b"joe"], b"secret"))

    def test_failures_prove_nothing(self) -> None:
        self.passwords.check([b"joe"], b"guess")
        self.assertIsNone(self.passwords.proven([b"joe"], b"guess"))


class StoreCheckerTests(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.checker = StoreChecker(self.passwords, self.home.mailboxes, AtOnce())  # type: ignore[arg-type]

    def check(self, name: bytes, password: bytes) -> Deferred[Any]:
        return self.checker.requestAvatarId(UsernamePassword(name, password))

    def test_account(self) -> None:
        for name in (b"joe", b"Joe", b"joe@mail.example.org"):
            account = self.successResultOf(self.check(name, b"secret"))
            self.assertEqual((account.name, account.uid), (b"joe", 1234))
        self.assertEqual(len(self.counter.take()), 1)

    def test_wrong(self) -> None:
        for name, password in ((b"joe", b"guess"), (b"nobody", b"secret"), (b"joe@elsewhere.example", b"secret")):
            self.failureResultOf(self.check(name, password), UnauthorizedLogin)

    def test_apop(self) -> None:
        """RFC 1939 §7, for those whose secret is stored; no hash is computed, whoever is asked for."""

        def apop(name: bytes, digest: bytes) -> Deferred[Any]:
            return self.checker.requestAvatarId(APOPCredentials(name, APOPTests.TIMESTAMP, digest))

        self.assertEqual(self.successResultOf(apop(b"Pat", APOPTests.DIGEST)).name, b"pat")
        for name, digest in ((b"pat", b"0" * 32), (b"joe", APOPTests.DIGEST), (b"nobody", APOPTests.DIGEST)):
            self.failureResultOf(apop(name, digest), UnauthorizedLogin)
        self.assertEqual(self.counter.take(), [])

    def test_apop_has_no_default_secret(self) -> None:
        """What is compared in place of a missing secret opens nothing."""
        import hashlib

        digest = hashlib.md5(APOPTests.TIMESTAMP + b"\xff").hexdigest().encode()
        for name in (b"joe", b"nobody"):
            credentials = APOPCredentials(name, APOPTests.TIMESTAMP, digest)
            self.failureResultOf(self.checker.requestAvatarId(credentials), UnauthorizedLogin)

    def test_cram_md5(self) -> None:
        """RFC 2195 §2, with the credentials that Twisted has."""
        credentials = CramMD5Credentials()
        credentials.challenge = b"<1896.697170952@postoffice.reston.mci.net>"
        credentials.username, credentials.response = b"pat", b"b913a602c7eda7a495b4e6e7334d3890"
        self.home.write("users/credentials", b"pat:{PLAIN}tanstaaftanstaaf\n")
        self.assertEqual(self.successResultOf(self.checker.requestAvatarId(credentials)).name, b"pat")

    def test_unavailable(self) -> None:
        """A store or a users/cdb that is wrong is nobody's fault."""
        self.failureResultOf(self.check(b"lost", b"secret"), LoginUnavailable)
        self.home.write("users/credentials", b"joe:nonsense\n")
        error = self.failureResultOf(self.check(b"joe", b"secret"), LoginUnavailable)
        self.assertIn("credentials, line 1", str(error.value))
        self.home.write("users/credentials", b"joe:" + self.current + b"\n")
        self.home.write("users/cdb", b"x")
        self.failureResultOf(self.check(b"joe", b"secret"), LoginUnavailable)


class SystemTests(StoreCase):
    """The system's accounts, with a shadow file of our own."""

    def setUp(self) -> None:
        super().setUp()
        old = IMPORTED["sha512"].decode()
        people = {
            "sys": (4711, old, ""),
            "locked": (4712, "!" + old, ""),
            "gone": (4713, old, "19000"),
            "joe": (4714, old, ""),
        }
        people.update(
            {"none": (4715, "", ""), "zero": (0, old, ""), "later": (4716, old, "99999"), "bad": (4717, "*", "")}
        )
        text = "".join(f"{name}:{stored}:19000:0:99999:7::{end}:\n" for name, (_, stored, end) in people.items())
        self.home.write("shadow", text.encode())

        def getpwnam(name: str) -> Any:
            if name not in people:
                raise KeyError(name)
            return pwd.struct_passwd((name, "x", people[name][0], 100, "", self.home.path, "/bin/sh"))

        self.patch(system.pwd, "getpwnam", getpwnam)
        self.home.assign(
            "=joe:joe:1234:100:HOME:::",
            "=pat:pat:1234:100:HOME:::",
            *(f"={name}:{name}:{uid}:100:HOME:::" for name, (uid, _, _) in people.items() if name != "joe"),
        )
        self.system = SystemPasswords(self.home.join("shadow"), lambda: 19500 * 86400)
        self.checker = SystemChecker(self.system, self.home.mailboxes, AtOnce())  # type: ignore[arg-type]

    def check(self, name: bytes, password: bytes) -> Deferred[Any]:
        return self.checker.requestAvatarId(UsernamePassword(name, password))

    def test_right(self) -> None:
        self.assertEqual(self.successResultOf(self.check(b"sys", b"secret")).uid, 4711)
        self.assertEqual(self.successResultOf(self.check(b"sys@mail.example.org", b"secret")).uid, 4711)
        self.assertEqual(self.successResultOf(self.check(b"later", b"secret")).uid, 4716)

    def test_wrong(self) -> None:
        """One hash each. Neither root, nor who is locked, has expired, or has no password."""
        for name in (b"sys", b"nobody", b"locked", b"gone", b"none", b"zero", b"bad"):
            self.counter.take()
            password = b"guess" if name == b"sys" else b"secret"
            self.failureResultOf(self.check(name, password), UnauthorizedLogin)
            self.assertEqual(self.counter.take(), ["sha512"], name)

    def test_never_root(self) -> None:
        self.assertIsNone(self.system.check(b"zero", b"secret"))
        self.assertEqual(self.system.check(b"sys", b"secret"), 4711)

    def test_mail_of_somebody_else(self) -> None:
        """users/assign gives joe's address to another user id: joe's system password does not open that."""
        self.failureResultOf(self.check(b"joe", b"secret"), UnauthorizedLogin)

    def test_no_hashes_at_all(self) -> None:
        self.home.write("shadow", b"root:*:19000:0:99999:7:::\n")
        self.failureResultOf(self.check(b"sys", b"secret"), UnauthorizedLogin)
        self.assertEqual(self.counter.take(), ["sha512"])

    def test_no_shadow(self) -> None:
        os.unlink(self.home.join("shadow"))
        self.failureResultOf(self.check(b"sys", b"secret"), LoginUnavailable)

    def test_behind_the_store(self) -> None:
        """Both are asked about whom neither knows; the store's word is the first."""
        store = StoreChecker(self.passwords, self.home.mailboxes, AtOnce())  # type: ignore[arg-type]
        both = EachChecker([store, self.checker])
        for name, password, expected in (
            (b"sys", b"secret", ["argon2id 19456", "sha512"]),
            (b"sys", b"guess", ["argon2id 19456", "sha512"]),
            (b"nobody", b"guess", ["argon2id 19456", "sha512"]),
            (b"joe", b"guess", ["argon2id 19456", "sha512"]),
            (b"joe", b"secret", ["argon2id 19456"]),
        ):
            self.counter.take()
            both.requestAvatarId(UsernamePassword(name, password)).addErrback(
                lambda failure: failure.trap(UnauthorizedLogin)
            )
            self.assertEqual(self.counter.take(), expected, (name, password))
        apop = APOPCredentials(b"pat", APOPTests.TIMESTAMP, APOPTests.DIGEST)
        self.assertEqual(self.successResultOf(both.requestAvatarId(apop)).name, b"pat")
        for wrong in (APOPCredentials(b"pat", b"<other@here>", APOPTests.DIGEST), APOPCredentials(b"sys", b"<>", b"0")):
            self.failureResultOf(both.requestAvatarId(wrong), UnauthorizedLogin)


class ThreadsTests(TestCase):
    async def test_hashes_are_bounded(self) -> None:
        """No more at a time than it was told, and none of them in the reactor's thread."""
        import threading

        from twisted.internet import reactor

        threads = Threads(reactor, hashes=2)
        running: list[int] = []
        lock = threading.Lock()
        most = 0
        both = threading.Barrier(2, timeout=20)

        def work() -> threading.Thread:
            nonlocal most
            with lock:
                running.append(1)
                most = max(most, len(running))
            both.wait()  # two do run side by side
            with lock:
                running.pop()
            return threading.current_thread()

        used = [await answer for answer in [threads.slow(work) for _ in range(6)]]
        self.assertEqual(most, 2)
        self.assertNotIn(threading.current_thread(), used)

    async def test_not_too_many_wait(self) -> None:
        from twisted.internet import reactor

        self.patch(checkers, "MOST_WAITING", 1)
        threads = Threads(reactor, hashes=1)
        answers = [threads.slow(str) for _ in range(3)]
        await self.assertFailure(answers[2], LoginUnavailable)
        await answers[0]
        await answers[1]


class HomeTests(TestCase):
    """The whole of it, by the control files of a home, with the reactor and its threads."""

    def setUp(self) -> None:
        self.home = MailHome(self)
        self.home.assign("=joe:someone:1234:2345:HOME/mail/joe:::")
        self.home.store.set(b"joe", cheap(b"secret"))

    def authenticator(self) -> Authenticator:
        from twisted.internet import reactor

        return make_authenticator(Control(self.home.join("control")), self.home.path, reactor)

    async def test_store(self) -> None:
        authenticator = self.authenticator()
        for _ in range(2):
            login = authenticator.login(UsernamePassword(b"joe", b"secret"), HERE, "pop3", IAccount)
            account, _ = await login
            self.assertEqual(account.uid, 1234)

    async def test_maildrops(self) -> None:
        """A maildrop is made of a maildir; an account without one can send mail, but has none to read."""
        from twisted.internet import reactor

        from qtwist.pop3d.interfaces import IMaildrop

        self.home.assign("=joe:someone:1234:2345:HOME/mail/joe:::", "+ann:someone:1234:2345:HOME/mail/ann:-::")
        self.home.store.set(b"ann", cheap(b"secret"))
        control = Control(self.home.join("control"))
        authenticator = make_authenticator(control, self.home.path, reactor, lambda account: ("drop", account.maildir))
        joe, ann = UsernamePassword(b"joe", b"secret"), UsernamePassword(b"ann", b"secret")
        avatar, logout = await authenticator.login(joe, HERE, "pop3", IMaildrop)
        self.assertEqual(avatar, ("drop", os.fsencode(self.home.join("mail/joe/Maildir"))))
        logout()
        await self.assertFailure(authenticator.login(ann, HERE, "pop3", IMaildrop), LoginUnavailable)
        account, _ = await authenticator.login(ann, HERE, "smtp", IAccount)
        self.assertIsNone(account.maildir)

    async def test_control_files(self) -> None:
        """control/checkpassword counts from the next login on."""
        from twisted.internet import reactor

        checker = HomeChecker(Control(self.home.join("control")), self.home.path, reactor)
        credentials = UsernamePassword(b"joe", b"secret")
        self.assertEqual((await checker.requestAvatarId(credentials)).uid, 1234)
        self.home.write("bin/no", b"#!/bin/sh\nexit 1\n")
        os.chmod(self.home.join("bin/no"), 0o755)
        self.home.write("control/checkpassword", self.home.join("bin/no").encode() + b" some arguments\n")
        await self.assertFailure(checker.requestAvatarId(credentials), UnauthorizedLogin)
        self.home.write("control/checkpassword", b"relative\n")
        await self.assertFailure(checker.requestAvatarId(credentials), LoginUnavailable)
        os.unlink(self.home.join("control/checkpassword"))
        self.assertEqual((await checker.requestAvatarId(credentials)).uid, 1234)

    async def test_system_accounts(self) -> None:
        """Off, unless control/systemaccounts says otherwise; where the shadow file cannot be read, off all the same."""
        from twisted.internet import reactor

        from qtwist.auth import making

        checker = HomeChecker(Control(self.home.join("control")), self.home.path, reactor)
        self.patch(making, "_SHADOW", self.home.join("shadow"))
        self.home.write("shadow", b"")
        self.assertIsInstance(checker._chosen.get(), StoreChecker)
        self.home.write("control/systemaccounts", b"1\n")
        self.assertIsInstance(checker._chosen.get(), EachChecker)
        os.unlink(self.home.join("shadow"))
        self.home.write("control/systemaccounts", b"2\n")
        os.utime(self.home.join("control/systemaccounts"), (1, 1))
        self.assertIsInstance(checker._chosen.get(), StoreChecker)

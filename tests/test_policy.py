"""Policies: how a chain comes to its answer, and the standard ones (spec/qmail.md §16.4, §16.5; issue 2 item 3)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import Control, ControlError
from qtwist.files.cdb import CDBError, write_cdb
from qtwist.mail.address import Address, parse_path
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.rewriting import REMOTE, Rewriter
from qtwist.policy import Policy, Reply, Session, accept, refuse
from qtwist.policy.badmailfrom import BadMailFrom
from qtwist.policy.base import consult, hooks
from qtwist.policy.loader import load_policies
from qtwist.policy.rcpthosts import RcptHosts
from qtwist.policy.relay import RelayClients, network
from qtwist.policy.session import plain_ip
from qtwist.policy.watched import Watched

NO = refuse(550, b"no")


class WithControl(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.control = Control(self.directory)

    def put(self, name: str, text: str) -> None:
        """Write a control file; a stamp is new in any case, as the file is another one."""
        path = os.path.join(self.directory, name)
        with open(path + ".new", "w", encoding="latin-1") as file:
            file.write(text)
        os.rename(path + ".new", path)


class Chain(SynchronousTestCase):
    def ask(self, *answers: Any) -> Any:
        asked: list[int] = []

        def hook(number: int, answer: Any) -> Callable[[str], Any]:
            def asked_one(argument: str) -> Any:
                self.assertEqual(argument, "argument")
                asked.append(number)
                return answer() if callable(answer) else answer

            return asked_one

        result = consult([hook(number, answer) for number, answer in enumerate(answers)], "argument")
        return result, asked

    def test_first_opinion_counts(self) -> None:
        yes = accept(b"fine")
        self.assertEqual(self.ask(), (None, []))
        self.assertEqual(self.ask(None, None), (None, [0, 1]))
        self.assertEqual(self.ask(None, NO, yes), (NO, [0, 1]))
        self.assertEqual(self.ask(yes, NO), (yes, [0]))

    def test_deferreds_and_coroutines(self) -> None:
        async def none() -> None:
            return None

        async def no() -> Reply:
            return NO

        for answers, wanted, count in (
            ([succeed(None), None, no, NO], NO, 3),
            ([none, succeed(NO), none], NO, 2),
            ([none, none], None, 2),
            ([None, succeed(NO), NO], NO, 2),
        ):
            result, asked = self.ask(*answers)
            self.assertEqual(self.successResultOf(result), wanted)
            self.assertEqual(len(asked), count)

    def test_order_is_kept_while_waiting(self) -> None:
        late: Deferred[Reply | None] = Deferred()
        result, asked = self.ask(late, NO)
        self.assertEqual(asked, [0])
        self.assertNoResult(result)
        late.callback(None)
        self.assertEqual(self.successResultOf(result), NO)
        self.assertEqual(asked, [0, 1])

    def test_failures_come_out(self) -> None:
        result, _ = self.ask(succeed(None), fail(KeyError()))
        self.failureResultOf(result, KeyError)
        result, _ = self.ask(True)
        self.failureResultOf(result, TypeError)
        result, _ = self.ask(succeed(b"550 no"))
        self.failureResultOf(result, TypeError)

    def test_only_overridden_hooks_are_asked(self) -> None:
        class One(Policy):
            def rcpt(self, session: Session, recipient: Address) -> Reply | None:
                return NO

        one, other = One(), One()
        other.helo = lambda session, name: NO  # type: ignore[method-assign]
        chain: Sequence[Policy] = (Policy(), one, other)
        self.assertEqual(hooks(chain, "rcpt"), (one.rcpt, other.rcpt))
        self.assertEqual(hooks(chain, "helo"), (other.helo,))
        self.assertEqual(hooks(chain, "mail"), ())

    def test_refuse_and_accept(self) -> None:
        self.assertEqual(refuse(450, b"x"), Reply(450, b"x"))
        self.assertEqual(accept().code, 250)
        self.assertEqual([refuse(code, b"x").code for code in (400, 599)], [400, 599])
        for code in (250, 399, 600):
            self.assertRaises(ValueError, refuse, code, b"")


class WatchedFiles(WithControl):
    def test_read_again_when_changed(self) -> None:
        reads: list[bytes | None] = []

        def read() -> bytes | None:
            reads.append(self.control.line("smtpgreeting"))
            return reads[-1]

        watched = Watched(self.control, ("smtpgreeting",), read)
        self.assertEqual((watched.get(), watched.get(), len(reads)), (None, None, 1))
        self.put("me", "one\n")
        self.assertEqual((watched.get(), watched.get(), len(reads)), (b"one", b"one", 2))
        self.put("smtpgreeting", "two\n")
        self.assertEqual((watched.get(), len(reads)), (b"two", 3))
        os.remove(self.control.path("smtpgreeting"))
        os.mkdir(self.control.path("smtpgreeting"))
        self.assertRaises(ControlError, watched.get)
        self.assertRaises(ControlError, watched.get)


class Senders(WithControl):
    def verdict(self, sender: bytes) -> Reply | None:
        policy = BadMailFrom.from_control(self.control)
        session = Session("x", sender=Address(sender))
        self.assertIsNone(policy.connect(session))
        return policy.rcpt(session, Address(b"a@b"))

    def test_badmailfrom(self) -> None:
        """Spec §16.4: whole address or @domain from the last @, case ignored; no wildcards, no subdomains."""
        self.assertIsNone(self.verdict(b"joe@spam.test"))
        self.put("badmailfrom", "Joe@Bad.test  \n# comment\n@SPAM.test\nspam2.test\nnobody\n")
        for sender in (b"joe@bad.TEST", b"x@spam.test", b'"a@b"@Spam.Test', b"@spam.test", b"NOBODY"):
            reply = self.verdict(sender)
            assert reply is not None, sender
            self.assertEqual(reply.code, 553)
            self.assertIn(b"(#5.7.1)", reply.text)
        for sender in (b"", b"ann@bad.test", b"x@sub.spam.test", b"x@spam2.test", b"@spam.test@ok.test", b"x@y"):
            self.assertIsNone(self.verdict(sender), sender)

    def test_a_file_that_cannot_be_read(self) -> None:
        os.mkdir(self.control.path("badmailfrom"))
        self.assertRaises(ControlError, BadMailFrom(self.control).connect, Session("x"))


class Relay(WithControl):
    def may_relay(self, ip: str) -> bool:
        session = Session("x", remote_ip=plain_ip(ip))
        self.assertIsNone(RelayClients.from_control(self.control).connect(session))
        if session.may_relay:
            self.assertEqual(session.environment[b"RELAYCLIENT"], b"")
        return session.may_relay

    def test_nobody_by_default(self) -> None:
        """Issue 2 item 3: loopback does not relay unless configured."""
        for ip in ("127.0.0.1", "::1", "192.0.2.1", ""):
            self.assertFalse(self.may_relay(ip))
        self.put("relayclients", "# nobody\n\n")
        self.assertFalse(self.may_relay("127.0.0.1"))

    def test_listed(self) -> None:
        self.put("relayclients", "192.0.2.1\n198.51.100.0/24\n2001:db8::/32\n::ffff:203.0.113.0/120\n::ffff:10.0.0.1\n")
        for ip in (
            "192.0.2.1",
            "::ffff:192.0.2.1",
            "198.51.100.77",
            "2001:db8:1::1",
            "203.0.113.9",
            "::ffff:203.0.113.9",
            "10.0.0.1",
        ):
            self.assertTrue(self.may_relay(ip), ip)
        for ip in (
            "192.0.2.2",
            "198.51.101.1",
            "2001:db9::1",
            "::1",
            "::192.0.2.1",
            "203.0.112.1",
            "203.0.114.1",
            "10.0.0.2",
            "",
        ):
            self.assertFalse(self.may_relay(ip), ip)

    def test_a_wrong_line_is_no_permission(self) -> None:
        for line in ("localhost", "192.0.2.1/33", "::ffff:10.0.0.0/8", "10.0.0", "\xe9"):
            self.put("relayclients", f"127.0.0.1\n{line}\n")
            error = self.assertRaises(ControlError, self.may_relay, "127.0.0.1")
            self.assertEqual(error.line, 2)

    @given(st.binary(max_size=20))
    def test_any_line(self, line: bytes) -> None:
        with contextlib.suppress(ValueError):
            network(line)

    def test_what_was_set_before_stays(self) -> None:
        self.put("relayclients", "127.0.0.1\n")
        session = Session("x", remote_ip="127.0.0.1", environment={b"RELAYCLIENT": b"@fix.test"})
        RelayClients(self.control).connect(session)
        self.assertEqual(session.environment[b"RELAYCLIENT"], b"@fix.test")


# Ways to write an address that have made other servers relay.
TRICKS = [
    b"victim@evil.test",
    b"<victim@evil.test>",
    b"TO:<@mine.test:victim@evil.test>",
    b"TO:<@mine.test,@evil.test:victim@evil.test>",
    b'TO:<"victim@evil.test"@evil.test>',
    b'TO:<"a@mine.test"@evil.test>',
    b"TO:<victim\\@mine.test@evil.test>",
    b'TO:<victim@"evil.test">',
    b"TO:<victim%evil.test@pct.test>",
    b"TO:<victim%evil.test@PCT.test>",
    b"TO:<victim%evil.test%pct.test@pct.test>",
    b"TO:<victim%evil.test%mine.test@evil.test>",
    b"TO:<victim%evil.test>",
    b'TO:<"victim@evil.test%x"@pct.test>',
    b'TO:<"victim%evil.test@mine.test%evil.test"@pct.test>',
    b"TO:<victim%[192.0.2.1]@pct.test>",
    b"TO:<victim@[192.0.2.1]>",
    b"TO:<victim@mine.test.>",
    b"TO:<victim@mine.test.evil.test>",
    b"TO:<victim@xmine.test>",
    b"TO:<victim@sub.mine.test>",
    b"TO:<victim@mine.test@evil.test>",
    b"TO:<victim@mine.test >",
    b"TO:<victim@>",
    b"TO:<@>",
    b"TO:victim@evil.test",
    b"TO: <victim@evil.test> mine.test",
    b"TO:<victim@evil.test\t@mine.test\0>",
    b"TO:<evil.test!victim@evil.test>",
]


class Recipients(WithControl):
    def setUp(self) -> None:
        super().setUp()
        self.put("me", "mine.test\n")

    def takes(self, recipient: bytes, **environment: bytes) -> bool:
        session = Session("x", environment={name.encode(): value for name, value in environment.items()})
        policy = RcptHosts.from_control(self.control)
        self.assertIsNone(policy.connect(session))
        reply = policy.rcpt(session, Address(recipient))
        if reply is not None:
            self.assertEqual((reply.code, b"(#5.7.1)" in reply.text), (553, True))
        return reply is None

    def test_rcpthosts(self) -> None:
        """Spec §16.5: domain, then .suffix entries, case ignored; no domain is taken, too."""
        self.put("rcpthosts", "Mine.test\n# x\n.wild.test  \n")
        for taken in (
            b"a@mine.test",
            b"a@MINE.Test",
            b"a@x.wild.test",
            b"a@y.x.Wild.test",
            b'"a@b"@mine.test',
            b"root",
        ):
            self.assertTrue(self.takes(taken), taken)
        for refused in (
            b"a@wild.test",
            b"a@sub.mine.test",
            b"a@other.test",
            b"a@",
            b"a@mine.test@other.test",
            b"a@test",
        ):
            self.assertFalse(self.takes(refused), refused)

    def test_morercpthosts(self) -> None:
        """Spec §3, §16.5: the same keys in morercpthosts.cdb, which counts only if rcpthosts exists."""
        write_cdb(self.control.path("morercpthosts.cdb"), [(b"more.test", b""), (b".deep.test", b"")])
        self.assertFalse(self.takes(b"a@more.test"))
        self.put("rcpthosts", "")
        for taken in (b"a@more.test", b"a@MORE.test", b"a@x.deep.test"):
            self.assertTrue(self.takes(taken), taken)
        for refused in (b"a@deep.test", b"a@mine.test", b"a@"):
            self.assertFalse(self.takes(refused), refused)

    def test_a_damaged_cdb(self) -> None:
        """A cdb that cannot be opened ends the connection at once, one that turns out damaged later gives 421."""
        self.put("rcpthosts", "mine.test\n")
        self.put("morercpthosts.cdb", "short")
        self.assertRaises(CDBError, RcptHosts(self.control).connect, Session("x"))
        self.put("morercpthosts.cdb", "\xff" * 2048)
        policy = RcptHosts(self.control)
        policy.connect(Session("x"))
        reply = policy.rcpt(Session("x"), Address(b"a@other.test"))
        assert isinstance(reply, Reply)
        self.assertEqual(reply.code, 421)
        self.assertIn(b"(#4.3.0)", reply.text)

    def test_relayclient(self) -> None:
        self.put("rcpthosts", "mine.test\n")
        self.assertFalse(self.takes(b"a@other.test"))
        self.assertTrue(self.takes(b"a@other.test", RELAYCLIENT=b""))

    def test_without_rcpthosts(self) -> None:
        """Our deviation: the local and virtual domains are the list, not all domains."""
        self.assertTrue(self.takes(b"a@mine.test"))
        self.assertFalse(self.takes(b"a@other.test"))
        self.put("locals", "local.test\n")
        self.put("virtualdomains", "v.test:joe\n.w.test:joe\nno.w.test:\none@r.test:joe\n:catchall\n")
        for taken in (b"a@local.test", b"A@LOCAL.test", b"a@V.test", b"a@x.w.test", b"One@R.test", b"root"):
            self.assertTrue(self.takes(taken), taken)
        for refused in (b"a@mine.test", b"a@other.test", b"a@no.w.test", b"two@r.test", b"a@w.test", b"a@"):
            self.assertFalse(self.takes(refused), refused)
        os.remove(self.control.path("virtualdomains"))
        self.put("locals", "")
        self.assertFalse(self.takes(b"a@mine.test"))

    def test_changes_are_seen(self) -> None:
        policy = RcptHosts(self.control)
        for domain in (b"one.test", b"two.test"):
            self.put("rcpthosts", domain.decode() + "\n")
            self.assertIsNone(policy.rcpt(Session("x"), Address(b"a@" + domain)))
        self.assertIsNotNone(policy.rcpt(Session("x"), Address(b"a@one.test")))

    def test_percenthack(self) -> None:
        """Our deviation: what an address is rewritten to (§9.3, §28.16) must be taken here, too."""
        self.put("rcpthosts", "mine.test\npct.test\n")
        self.assertTrue(self.takes(b"a%evil.test@pct.test"))
        self.put("percenthack", "pct.test\nmine.test\n")
        for taken in (b"a@pct.test", b"a%mine.test@pct.test", b"a%mine.test", b"a%mine.test%pct.test@mine.test"):
            self.assertTrue(self.takes(taken), taken)
        for refused in (
            b"a%evil.test@pct.test",
            b"a%evil.test",
            b"a%evil.test%mine.test@pct.test",
            b"a%evil.test%mine.test",
        ):
            self.assertFalse(self.takes(refused), refused)

    def test_no_open_relay(self) -> None:
        """Issue: no combination of files makes an open relay. What is taken never goes to a foreign host."""
        rewriter = Rewriter(
            b"mine.test",
            ConstantMap.plain([b"mine.test"]),
            ConstantMap.plain([b"pct.test", b"mine.test"]),
            ConstantMap.colon([b"v.test:joe"]),
        )
        self.put("locals", "mine.test\n")
        self.put("percenthack", "pct.test\nmine.test\n")
        self.put("virtualdomains", "v.test:joe\n")
        for rcpthosts in (None, "", "mine.test\npct.test\nv.test\n"):
            if rcpthosts is not None:
                self.put("rcpthosts", rcpthosts)
            for trick in TRICKS:
                address = parse_path(trick)[0]
                if self.takes(address):
                    channel, final = rewriter.route(address)
                    ours = channel != REMOTE or final.rpartition(b"@")[2].lower() in (b"pct.test",)
                    self.assertTrue(ours, (rcpthosts, trick, address, final))
        self.assertTrue(self.takes(b"a@pct.test"))

    @given(
        st.lists(
            st.sampled_from([b"@", b"%", b"mine.test", b"pct.test", b"evil.test", b"a", b".", b"v.test"]), max_size=9
        ).map(b"".join)
    )
    def test_no_open_relay_at_all(self, address: bytes) -> None:
        self.put("rcpthosts", "mine.test\npct.test\nv.test\n")
        self.put("percenthack", "pct.test\nmine.test\n")
        if self.takes(address):
            hack = ConstantMap.plain([b"pct.test", b"mine.test"])
            final = Rewriter(b"mine.test", ConstantMap(), hack).route(address)[1]
            self.assertIn(final.rpartition(b"@")[2], (b"mine.test", b"pct.test", b"v.test"))


class FromControl(Policy):
    """For test_loader."""

    def __init__(self, control: Control) -> None:
        self.control = control

    @classmethod
    def from_control(cls, control: Control) -> FromControl:
        return cls(control)


class Broken(Policy):
    """For test_loader."""

    @classmethod
    def from_control(cls, control: Control) -> Broken:
        raise RuntimeError("not today")


class Loader(WithControl):
    def test_loader(self) -> None:
        self.assertEqual(load_policies(self.control), [])
        self.put("policies", "# ours\nqtwist.policy.Policy\n\ntests.test_policy.FromControl \n")
        first, second = load_policies(self.control)
        self.assertIs(type(first), Policy)
        assert isinstance(second, FromControl)
        self.assertIs(second.control, self.control)

    def test_errors_name_file_and_line(self) -> None:
        for line, words in (
            ("nosuchmodule.Policy", "nosuchmodule"),
            ("qtwist.policy.NoSuch", "NoSuch"),
            ("Policy", "package.module.Class"),
            ("qtwist.policy.Session", "a subclass of"),
            ("qtwist.policy.refuse", "a subclass of"),
            ("tests.test_policy.Broken", "not today"),
        ):
            self.put("policies", f"# one\n{line}\n")
            error = self.assertRaises(ControlError, load_policies, self.control)
            self.assertTrue(str(error).startswith(f"{self.control.path('policies')}, line 2: "), str(error))
            self.assertIn(words, str(error))
            self.assertNotIn("\n", str(error))

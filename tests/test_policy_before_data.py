"""What is asked before DATA: early talkers, names, senders, recipients (spec/qmail.md §12, §13, §16; issue 8)."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import ControlError
from qtwist.files.assign import compile_assign
from qtwist.files.cdb import write_cdb
from qtwist.local.errors import AS_ROOT, CDB_TROUBLE, PERMANENT
from qtwist.local.looking import Lookup
from qtwist.local.users import Account
from qtwist.policy.greeting import LONGEST
from qtwist.policy.patterns import PatternFiles, Patterns, trouble
from qtwist.policy.recipients import PATIENCE, InThread
from tests.policy_tools import SILENT, TROUBLE, PolicyCase, codes
from tests.unprivileged import ORDINARY

OWNER = os.geteuid() or ORDINARY


class PatternLists(SynchronousTestCase):
    def test_lines(self) -> None:
        """§16.4, and patterns with * and ?, and exceptions, wherever they stand."""
        patterns = Patterns.parse(
            [
                b"joe@spam.test",
                b"@bad.test",
                b"*@*.dialup.test",
                b"promo-?@*",
                b"!promo-x@*",
                b"!good@bad.test",
                b"[1.2.3.4]",
            ]
        )
        for text, line in (
            (b"JOE@spam.test", b"joe@spam.test"),
            (b"x@BAD.test", b"@bad.test"),
            (b"a@b@bad.test", b"@bad.test"),
            (b"x@sub.bad.test", None),
            (b"good@bad.test", None),
            (b"a@p7.dialup.test", b"*@*.dialup.test"),
            (b"a@dialup.test", None),
            (b"promo-7@any.test", b"promo-?@*"),
            (b"promo-x@any.test", None),
            (b"promo-77@any.test", None),
            (b"[1.2.3.4]", b"[1.2.3.4]"),
            (b"", None),
        ):
            self.assertEqual(patterns.find(text), line, text)

    def test_ends(self) -> None:
        """A dot in front: what is below a domain, not the domain."""
        patterns = Patterns.parse([b".Spam.test", b"@.bad.test", b"!.good.spam.test"])
        for text, line in (
            (b"joe@x.SPAM.test", b".spam.test"),
            (b"joe@a.b.spam.test", b".spam.test"),
            (b"joe@spam.test", None),
            (b"joe@nospam.test", None),
            (b"x.spam.test@ok.test", None),
            (b"joe@x.bad.test", b"@.bad.test"),
            (b"joe@a.good.spam.test", None),
            (b"p1.spam.test", b".spam.test"),
            (b".spam.test", b".spam.test"),
        ):
            self.assertEqual(patterns.find(text), line, text)

    def test_brackets(self) -> None:
        """One character of several, as in INN's patterns; but an address literal is what it looks like."""
        patterns = Patterns.parse([b"[0-9][0-9]@*.test", b"[^a-y]@one.other", b"*@[192.0.2.*]", b"[198.51.100.7]",
                                   b"*@[ipv6:2001:db8::*]"])  # fmt: skip
        for text, line in (
            (b"17@x.test", b"[0-9][0-9]@*.test"),
            (b"1a@x.test", None),
            (b"z@one.other", b"[^a-y]@one.other"),
            (b"b@one.other", None),
            (b"b@[192.0.2.9]", b"*@[192.0.2.*]"),
            (b"b@2", None),
            (b"b@[IPv6:2001:db8::1]", b"*@[ipv6:2001:db8::*]"),
            (b"[198.51.100.7]", b"[198.51.100.7]"),
            (b"1", None),
        ):
            self.assertEqual(patterns.find(text), line, text)

    def test_lines_of_other_servers(self) -> None:
        """Forms that only others know (spec/related.md §14.4, regular expressions) are wrong, not without a meaning."""
        for line in (b"^joe@.*$", b".*@spam.test", b"@spam\\.test$", b"(a|b)@x.test", b"joe|ann@x.test", b"@spam.test-",
                     b"joe@spam.test=", b"*@own.test+", b"~@mx.test", b"!~dial", b"-@spam.test", b"+.spam.test",
                     b"joe@spam.test go away", b"a\tb@c"):  # fmt: skip
            self.assertIsNotNone(trouble(line), line)
        for line in (b"joe@spam.test", b"@spam.test", b".spam.test", b"@.spam.test", b"nobody", b"*@*.test", b"!*@x",
                     b"a+b@c.test", b"-x@spam.test", b"joe-@x.test", b"[0-9]*@x", b"[192.0.2.1]", b"*-*", b"a-b.test",
                     b'"a b"@c.test', b"$me@x.test", b"localhost-", b"caf\xc3\xa9.test", b"*"):  # fmt: skip
            self.assertIsNone(trouble(line), line)

    @given(st.binary(max_size=60), st.lists(st.binary(max_size=12), max_size=5))
    def test_any_bytes(self, text: bytes, lines: list[bytes]) -> None:
        Patterns.parse(lines).find(text)

    @given(st.from_regex(rb"[a-z]{1,8}@[a-z]{1,8}\.test", fullmatch=True))
    def test_plain_lines_find_themselves(self, address: bytes) -> None:
        self.assertEqual(Patterns.parse([address]).find(address.upper()), address)
        self.assertIsNone(Patterns.parse([address, b"!" + address]).find(address))

    def test_no_pattern_takes_long(self) -> None:
        """What a stranger sends cannot keep the server busy, whatever the administrator has written."""
        self.assertIsNone(Patterns.parse([b"*a*a*a*a*a*a*a*a*a*a*a*b"]).find(b"a" * 800))


class ListsAtWork(PolicyCase):
    mail = (b"EHLO c.test", b"MAIL FROM:<joe@spam.test>", b"RCPT TO:<a@mx.test>")

    def test_badmailfrom_and_its_variable(self) -> None:
        self.put("badmailfrom", "@spam.test\n")
        self.assertEqual(codes(self.dialogue(*self.mail))[-1], 553)
        for rule, code in (('BADMAILFROM=""', 250), ('BADMAILFROM="badforus"', 553), ('BADMAILFROM="empty"', 250)):
            self.put("badforus", "joe@*\n")
            self.put("empty", "")
            self.put("tcp.smtp", f":allow,{rule}\n")
            self.assertEqual(codes(self.dialogue(*self.mail))[-1], code, rule)

    def test_a_line_that_is_none(self) -> None:
        """Nobody gets past a list that cannot be understood, and the log says which line it is."""
        self.put("badmailfrom", "@ok.test\n^.*@spam\n")
        self.assertEqual(codes(self.dialogue(*self.mail))[0], 421)
        [failure] = self.flushLoggedErrors(ControlError)
        self.assertIn("badmailfrom, line 2", str(failure.value))
        self.assertIn("regular expression", str(failure.value))

    def test_a_variable_names_no_file_elsewhere(self) -> None:
        lists = PatternFiles(self.control, "badmailfrom")
        for name in (b"../secret", b"/etc/passwd", b"missing", b".hidden"):
            self.assertRaises(ControlError, lists.find, b"x", name)

    def test_badrcptto(self) -> None:
        """Both names that the file has had."""
        self.put("badrcptto", "old-*@mx.test\n!old-friend@mx.test\n")
        self.put("badmailto", "nobody@mx.test\n")
        answers = self.dialogue(
            b"MAIL FROM:<a@b.test>", b"RCPT TO:<old-joe@mx.test>", b"RCPT TO:<old-friend@mx.test>",
            b"RCPT TO:<Nobody@mx.test>", b"RCPT TO:<joe@mx.test>",
        )  # fmt: skip
        self.assertEqual(codes(answers)[2:], [553, 250, 553, 250])

    def test_badhelo(self) -> None:
        """Said at MAIL, for a client that was refused at EHLO goes on all the same."""
        self.put("badhelo", "*.dyn.test\nlocalhost\n!mail.dyn.test\n")
        for helo, code in ((b"EHLO p1.dyn.test", 553), (b"HELO LOCALHOST", 553), (b"EHLO mail.dyn.test", 250)):
            self.assertEqual(codes(self.dialogue(helo, b"MAIL FROM:<>"))[-1], code, helo)
        self.put("relayclients", "192.0.2.9\n")
        self.assertEqual(codes(self.dialogue(b"HELO localhost", b"MAIL FROM:<>"))[-1], 250)

    def test_helocheck(self) -> None:
        self.names.table = {("a", b"here.test"): ["192.0.2.9"], ("mx", b"mail.test"): [(10, b"mx.mail.test")],
                            ("mx", b"slow.test"): TROUBLE}  # fmt: skip
        for level, answers in (
            ("0", {b"x": 250}),
            ("1", {b"x": 550, b"gone.test": 250, b"[192.0.2.9]": 250, b"[nonsense]": 550, b"a_b.test": 250,
                   b"[192.0.2.99": 550, b"-.test": 550, b"[IPv6:2001:db8::1]": 250, b"192.0.2.9": 250,
                   b"a..test": 550, b"a" * 63 + b".test": 250, b"a" * 64 + b".test": 550}),
            ("2", {b"here.test": 250, b"mail.test": 250, b"gone.test": 550, b"slow.test": 451}),
        ):  # fmt: skip
            self.put("helocheck", level)
            for name, code in answers.items():
                found = codes(self.dialogue(b"HELO " + name, b"MAIL FROM:<>"))[-1]
                self.assertEqual(found, code, (level, name))
        self.assertEqual(codes(self.dialogue(b"MAIL FROM:<>"))[-1], 503)
        self.put("tcp.smtp", ':allow,HELOCHECK="."\n')
        self.assertEqual(codes(self.dialogue(b"HELO gone.test", b"MAIL FROM:<>"))[-1], 250)

    def test_mfcheck(self) -> None:
        """A domain that takes mail: an MX, or an address; no null MX (RFC 7505); 451 when the DNS is in trouble."""
        self.names.table = {
            ("mx", b"mail.test"): [(10, b"mx.mail.test")],
            ("a", b"host.test"): ["192.0.2.1"],
            ("mx", b"null.test"): [(0, b"")],
            ("a", b"null.test"): ["192.0.2.1"],
            ("mx", b"slow.test"): TROUBLE,
        }
        self.assertEqual(codes(self.dialogue(b"MAIL FROM:<a@gone.test>"))[-1], 250)
        self.put("mfcheck", "1\n")
        for sender, code in (
            (b"", 250), (b"a@mail.test", 250), (b"a@Host.test", 250), (b"a@null.test", 550), (b"a@gone.test", 550),
            (b"a@slow.test", 451), (b"a", 553), (b"a@[192.0.2.1]", 553),
        ):  # fmt: skip
            self.assertEqual(codes(self.dialogue(b"MAIL FROM:<" + sender + b">"))[-1], code, sender)
        self.put("tcp.smtp", ':allow,MFDNSCHECK="0"\n')
        self.assertEqual(codes(self.dialogue(b"MAIL FROM:<a@gone.test>"))[-1], 250)


class TimeAsked(PolicyCase):
    def test_greetdelay(self) -> None:
        self.put("greetdelay", "20\n")
        factory = self.factory()
        patient, hasty = self.connect(factory=factory), self.connect(factory=factory)
        self.assertEqual(hasty.say(b"EHLO spam.test"), [])
        self.clock.advance(19)
        self.assertEqual(patient.replies(), [])
        self.clock.advance(1)
        self.assertEqual(codes(patient.replies()), [220])
        self.assertEqual(hasty.replies(), [b"554 a client waits for the greeting before it speaks (#5.5.1)"])
        self.assertTrue(hasty.transport.disconnecting)

    def test_greetdelay_by_variable_and_for_relays(self) -> None:
        """§4: GREETDELAY; who may relay does not wait."""
        self.put("greetdelay", "20\n")
        self.put("tcp.smtp", '192.0.2.1:allow,GREETDELAY="0"\n192.0.2.2:allow,RELAYCLIENT=""\n:allow,GREETDELAY="3"\n')
        factory = self.factory()
        self.assertEqual(codes(self.connect("192.0.2.1", factory).replies()), [220])
        self.assertEqual(codes(self.connect("192.0.2.2", factory).replies()), [220])
        other = self.connect("192.0.2.3", factory)
        self.assertEqual(other.replies(), [])
        self.clock.advance(3)
        self.assertEqual(codes(other.replies()), [220])

    def test_a_client_that_leaves_while_it_waits(self) -> None:
        self.put("greetdelay", "20\n")
        client = self.connect()
        client.hang_up()
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.active()], [])

    def test_tarpit(self) -> None:
        """§14.4: after so many recipients each answer takes its time; pipelined ones wait in line."""
        self.put("tarpitcount", "2\n")
        self.put("tarpitdelay", "10\n")
        client = self.connect()
        client.replies()
        rcpt = b"RCPT TO:<a@mx.test>"
        self.assertEqual(codes(client.say(b"MAIL FROM:<>", rcpt, rcpt, rcpt, rcpt)), [250, 250, 250])
        self.clock.advance(10)
        self.assertEqual(codes(client.replies()), [250])
        self.clock.advance(10)
        self.assertEqual(codes(client.replies()), [250])
        for rule in ('TARPITCOUNT="0"', 'TARPITDELAY="0"', 'RELAYCLIENT=""'):
            self.put("tcp.smtp", f":allow,{rule}\n")
            answers = self.dialogue(b"MAIL FROM:<>", rcpt, rcpt, rcpt, rcpt)
            self.assertEqual(codes(answers), [220, 250, 250, 250, 250, 250], rule)
            self.assertEqual([call for call in self.clock.getDelayedCalls() if call.time <= LONGEST], [], rule)
        self.put("tcp.smtp", ':allow,TARPITDELAY="3"\n')
        client = self.connect()
        client.replies()
        self.assertEqual(codes(client.say(b"MAIL FROM:<>", rcpt, rcpt, rcpt)), [250, 250, 250])
        self.clock.advance(3)
        self.assertEqual(codes(client.replies()), [250])


class RecipientsChecked(PolicyCase):
    """§12, §13: who owns the address, then which .qmail file."""

    def setUp(self) -> None:
        super().setUp()
        self.put("rcptcheck", "1\n")
        self.put("locals", "mx.test\n")
        self.put("virtualdomains", "list.test:joe-list\nbox.test:nobody\n")
        self.put("rcpthosts", "mx.test\nlist.test\nbox.test\nelsewhere.test\n")
        self.homes = {}
        for name in ("alias", "home/joe", "home/ann"):
            path = os.path.abspath(os.path.join(self.home, name))
            os.makedirs(path)
            os.chown(path, OWNER, OWNER)
            self.homes[name] = path
        self.touch("alias", ".qmail-postmaster", ".qmail-nobody-default")
        self.touch("home/joe", ".qmail-list-default", ".qmail-shop")
        self.accounts = {
            name: Account(name, OWNER, OWNER, os.path.abspath(os.path.join(self.home, "home", name.decode())).encode())
            for name in (b"joe", b"ann", b"gone")
        }

    def touch(self, home: str, *names: str) -> None:
        for name in names:
            with open(os.path.join(self.homes[home], name), "w", encoding="ascii"):
                pass

    def rcpt(self, *recipients: bytes) -> list[int]:
        factory = self.factory()
        factory.surroundings.lookup = InThread(
            factory.surroundings, Lookup(os.path.abspath(self.home), self.accounts.get)
        )
        lines = [b"RCPT TO:<" + one + b">" for one in recipients]
        return codes(self.dialogue(b"MAIL FROM:<a@b.test>", *lines, factory=factory))[2:]

    def test_who_exists(self) -> None:
        self.assertEqual(
            self.rcpt(
                b"joe@mx.test", b"Joe@MX.test", b"joe-shop@mx.test", b"joe-other@mx.test", b"joe-list-x@mx.test",
                b"ann-x@mx.test", b"postmaster@mx.test", b"PostMaster@mx.test", b"webmaster@mx.test",
            ),
            [250, 250, 250, 550, 250, 550, 250, 250, 550],
        )  # fmt: skip

    def test_virtual_domains(self) -> None:
        """§9.3: by the prefix; a domain of nobody's goes to alias; a domain that is not ours is not looked at."""
        self.assertEqual(self.rcpt(b"anything@list.test", b"x@box.test", b"y@elsewhere.test"), [250, 250, 250])
        os.remove(os.path.join(self.homes["home/joe"], ".qmail-list-default"))
        self.assertEqual(self.rcpt(b"anything@list.test"), [550])

    def test_users_assign(self) -> None:
        """§12.1: users/cdb goes before the accounts, its wildcards too."""
        os.mkdir(os.path.join(self.home, "users"))
        folder = self.homes["home/ann"]
        text = f"=mary:ann:{OWNER}:{OWNER}:{folder}:::\n+shop-:ann:{OWNER}:{OWNER}:{folder}:-:shop-:\n.\n".encode()
        write_cdb(os.path.join(self.home, "users", "cdb"), compile_assign(text))
        self.touch("home/ann", ".qmail-shop-a")
        self.assertEqual(self.rcpt(b"mary@mx.test", b"shop-a@mx.test", b"shop-b@mx.test"), [250, 250, 550])

    def test_broken_homes_are_temporary(self) -> None:
        """§13.1: nothing is refused for good because of a home that cannot be read now."""
        os.chmod(self.homes["home/ann"], 0o777)
        self.touch("home/joe", ".qmail-open")
        os.chmod(os.path.join(self.homes["home/joe"], ".qmail-open"), 0o666)
        self.accounts[b"lost"] = Account(b"lost", OWNER, OWNER, b"/nonexistent/lost")
        self.assertEqual(self.rcpt(b"ann@mx.test", b"joe-open@mx.test"), [451, 451])
        os.chmod(self.homes["home/ann"], 0o1755)
        self.assertEqual(self.rcpt(b"ann@mx.test"), [250])
        os.mkdir(os.path.join(self.home, "users"))
        with open(os.path.join(self.home, "users", "cdb"), "wb") as file:
            file.write(b"torn")
        self.assertEqual(self.rcpt(b"joe@mx.test"), [451])

    def test_an_assigned_home_that_is_missing(self) -> None:
        os.mkdir(os.path.join(self.home, "users"))
        text = f"=lost:lost:{OWNER}:{OWNER}:/nonexistent/lost:::\n=root:root:0:0:/root:::\n.\n".encode()
        write_cdb(os.path.join(self.home, "users", "cdb"), compile_assign(text))
        self.assertEqual(self.rcpt(b"lost@mx.test", b"root@mx.test"), [451, 451])
        lookup = Lookup(os.path.abspath(self.home), self.accounts.get)
        self.assertEqual([lookup(name) for name in (b"joe", b"joe-x", b"root")], [0, PERMANENT, AS_ROOT])
        with open(os.path.join(self.home, "users", "cdb"), "wb") as file:
            file.write(b"torn")
        self.assertEqual(lookup(b"joe"), CDB_TROUBLE)

    def test_remembered_for_a_while(self) -> None:
        asked: list[bytes] = []

        def lookup(local: bytes) -> Deferred[int]:
            asked.append(local)
            return succeed(100 if local == b"no" else 118 if local == b"ill" else 0)

        factory = self.factory()
        factory.surroundings.lookup = lookup
        lines = (b"MAIL FROM:<>", b"RCPT TO:<yes@mx.test>", b"RCPT TO:<no@mx.test>", b"RCPT TO:<ill@mx.test>")
        for _ in range(2):
            self.assertEqual(codes(self.dialogue(*lines, factory=factory))[2:], [250, 550, 451])
        self.assertEqual(asked, [b"yes", b"no", b"ill", b"ill"])
        self.clock.advance(16)
        self.dialogue(*lines, factory=factory)
        self.assertEqual(asked[4:], [b"no", b"ill"])

    def test_a_look_up_that_does_not_end(self) -> None:
        factory = self.factory()
        factory.surroundings.lookup = lambda local: Deferred()
        client = self.connect(factory=factory)
        client.replies()
        self.assertEqual(codes(client.say(b"MAIL FROM:<>", b"RCPT TO:<a@mx.test>")), [250])
        self.clock.advance(PATIENCE)
        self.assertEqual(codes(client.replies()), [451])

    def test_brtlimit(self) -> None:
        """§14.3: after so many that do not exist, 421 and the end; the log has the rule and the reason."""
        self.put("brtlimit", "3\n")
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.assertEqual(self.rcpt(*[b"x%d@mx.test" % number for number in range(5)])[:3], [550, 550, 421])
        told = [(event["rule"], event["recipient"], event["reason"]) for event in events if event.get("rule")]
        self.assertEqual(
            told,
            [("rcptcheck", "x0@mx.test", "no such recipient"), ("rcptcheck", "x1@mx.test", "no such recipient"),
             ("rcptcheck", "x2@mx.test", "3 recipients that do not exist (control/brtlimit)")],
        )  # fmt: skip

    def test_off(self) -> None:
        self.put("rcptcheck", "0\n")
        self.assertEqual(self.rcpt(b"nobody-at-all@mx.test"), [250])


class SilentNames(PolicyCase):
    def test_a_silent_dns_ends_in_451(self) -> None:
        """The hook's own limit, control/timeoutsmtpd, holds for policies that ask the DNS."""
        self.put("mfcheck", "1\n")
        self.put("timeoutsmtpd", "60\n")
        self.names.table[("mx", b"slow.test")] = SILENT
        client = self.connect()
        client.replies()
        self.assertEqual(client.say(b"MAIL FROM:<a@slow.test>"), [])
        self.clock.advance(60)
        self.assertEqual(codes(client.replies()), [451])
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

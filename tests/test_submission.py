"""Submission on a transport: its rules, the envelope and the header (RFC 6409, spec/related.md §9.1, §14.3)."""

from __future__ import annotations

import os
import re

from qtwist.auth.addresses import Addresses
from qtwist.control import ControlError
from qtwist.files.cdb import write_cdb
from qtwist.policy import Policy, Reply, Session, accept
from qtwist.submission.factory import SubmissionFactory
from tests.auth_tools import AtOnce
from tests.test_policy_attacks import ELSEWHERE, SOURCE_ROUTES
from tests.test_policy_attacks import HERE as HERE_TOO
from tests.test_smtpd import NOW, Client
from tests.test_smtpd_auth import HERE, TIM, AuthCase

FAR = b"RCPT TO:<joe@far.test>"


class SubmissionCase(AuthCase):
    def setUp(self) -> None:
        super().setUp()
        self.put("locals", "mx.test\n")
        self.put("defaultdomain", "test\n")
        os.rename(self.home.join("control"), self.home.join("nothing"))
        os.symlink(os.path.abspath(self.directory), self.home.join("control"))

    def factory(self, *policies: Policy, kind: object = None) -> SubmissionFactory:  # type: ignore[override]
        return SubmissionFactory(
            self.control,
            self.queue,  # type: ignore[arg-type]
            policies,
            authenticator=self.authenticator,
            addresses=Addresses(self.home.path, self.home.accounts.get),
            run=AtOnce().quick,
            clock=self.clock,
            now=lambda: NOW,
        )

    def logged_in(self, *policies: Policy) -> Client:
        client = self.greeted(*policies)
        self.assertEqual(client.codes(b"AUTH PLAIN " + TIM), [235])
        return client

    def send(self, client: Client, message: bytes, sender: bytes = b"tim@mx.test") -> bytes:
        """Send a message; what was queued of it, without the Received line."""
        lines = message.replace(b"\n", b"\r\n") + b".\r\n"
        replies = client.say(b"MAIL FROM:<" + sender + b">", FAR, b"DATA")
        self.assertEqual([reply[:3] for reply in replies], [b"250", b"250", b"354"], replies)
        client.protocol.dataReceived(lines)
        self.assertEqual([reply[:3] for reply in client.replies()], [b"250"])
        data = self.queue.messages[-1].data
        found = re.match(rb"Received: from .*\n  by .*\n", data)
        assert found is not None
        return data[found.end() :]


class Rules(SubmissionCase):
    def test_login_first(self) -> None:
        """530, whatever else lets the client in."""
        self.put("relayclients", "127.0.0.1\n")
        self.put("smtpauth", "0\n")

        class Generous(Policy):
            def mail(self, session: Session, sender: object) -> Reply:
                return accept()

            rcpt = mail

        client = self.greeted(Generous())
        self.assertEqual(client.say(b"MAIL FROM:<tim@mx.test>"), [b"530 5.7.0 log in first"])
        self.assertEqual(client.codes(FAR, b"DATA"), [503, 503])
        self.assertEqual(client.codes(b"AUTH PLAIN " + TIM, b"MAIL FROM:<x@y.test>", FAR), [235, 250, 250])

    def test_no_odd_address_without_a_login(self) -> None:
        """Issue 8: relay attempts with every odd address form; here not even our own."""
        self.put("relayclients", "0.0.0.0/0\n")
        self.put("tcp.submission", ':allow,RELAYCLIENT=""\n')
        for address in (*ELSEWHERE, *SOURCE_ROUTES, *HERE_TOO):
            client = self.greeted()
            codes = client.codes(b"MAIL FROM:<a@b.test>", b"RCPT TO:<" + address + b">", b"DATA")
            self.assertEqual(codes, [530, 503, 503], address)

    def test_rules_about_clients(self) -> None:
        """control/tcp.submission can deny; RELAYCLIENT in it is no login (spec/related.md §4.2)."""
        self.put("tcp.smtp", ":deny\n")
        self.put("tcp.submission", '198.51.100.:deny\n:allow,RELAYCLIENT=""\n')
        client = self.greeted()
        self.assertEqual(client.codes(b"MAIL FROM:<tim@mx.test>"), [530])
        denied = Client(self.factory(), host="198.51.100.7")
        self.assertEqual((denied.replies(), denied.transport.disconnecting), ([], True))

    def test_own_sender(self) -> None:
        """control/forceauthmailfrom: his own addresses, none of others; the empty one is for notices."""
        self.home.account(b"eve")
        client = self.logged_in()
        for sender, code in (
            *((b"tim@mx.test", 250), (b"TIM@mx.test", 250), (b"tim", 250), (b"tim-x@mx.test", 250), (b"", 250)),
            *((b"eve@mx.test", 553), (b"tim@far.test", 553), (b"eve", 553)),
        ):
            self.assertEqual(client.codes(b"MAIL FROM:<" + sender + b">", b"RSET"), [code, 250], sender)
        self.assertIn("may not send as", self.events.text())
        self.put("forceauthmailfrom", "0\n")
        self.assertEqual(client.codes(b"MAIL FROM:<eve@mx.test>"), [250])

    def test_further_senders(self) -> None:
        """control/submissionsenders."""
        client = self.logged_in()
        boss, other, stranger = b"Boss@far.test", b"x@far.test", b"x@y.test"
        for line, codes in (
            ("tim:boss@far.test", [250, 553, 553]),
            ("TIM:@far.test", [250, 250, 553]),
            ("tim:*", [250, 250, 250]),
            ("*:@y.test", [553, 553, 250]),
            ("eve:*", [553, 553, 553]),
        ):
            self.put("submissionsenders", line + "\n")
            got = [client.codes(b"RSET", b"MAIL FROM:<" + sender + b">")[1] for sender in (boss, other, stranger)]
            self.assertEqual(got, codes, line)

    def test_own_from(self) -> None:
        """forceauthmailfrom 2: From, too."""
        self.put("forceauthmailfrom", "2\n")
        client = self.logged_in()
        self.send(client, b"From: Tim <tim@mx.test>\n\nx\n")
        self.send(client, b"Subject: x\n\nx\n")
        client.say(b"MAIL FROM:<tim@mx.test>", FAR, b"DATA")
        self.assertEqual(client.codes(b"From: Eve <eve@mx.test>", b"", b"x", b"."), [550])
        self.assertTrue(self.queue.messages[-1].aborted)
        self.put("forceauthmailfrom", "1\n")
        self.send(client, b"From: Eve <eve@mx.test>\n\nx\n")

    def test_trouble(self) -> None:
        client = self.logged_in()
        self.home.write("users/cdb", b"no database")
        self.assertEqual(client.codes(b"MAIL FROM:<tim-x@mx.test>"), [451])
        self.put("submissionsenders", "tim\n")
        self.assertEqual(client.codes(b"MAIL FROM:<tim-x@mx.test>"), [451])
        self.assertEqual(Client(self.factory(), host=HERE).replies()[0][:3], b"421")
        self.assertEqual(len(self.flushLoggedErrors(ControlError)), 2)

    def test_limits(self) -> None:
        """control/relaylimits, over all connections of a login; the log says it once."""
        self.put("relaylimits", ":3/30\n")
        factory = self.factory()
        clients = [Client(factory, host=HERE) for _ in range(2)]
        codes = []
        for client in clients:
            client.say(b"EHLO c", b"AUTH PLAIN " + TIM, b"MAIL FROM:<tim@mx.test>")
            codes.append(client.codes(FAR, FAR))
        self.assertEqual(codes, [[250, 250], [250, 450]])
        self.assertEqual(client.codes(FAR), [450])
        stopped = [event for event in self.events.events if "is stopped" in event.get("log_format", "")]
        self.assertEqual([event["user"] for event in stopped], ["tim"])
        self.clock.advance(10)
        self.assertEqual(client.codes(FAR, FAR), [250, 450])

    def test_not_for_strangers(self) -> None:
        """The lists about strangers are not asked."""
        self.put("badmailfrom", "tim@mx.test\n")
        self.put("policies", "no.such.Policy\n")
        self.assertEqual(self.logged_in().codes(b"MAIL FROM:<tim@mx.test>", FAR), [250, 250])


class Messages(SubmissionCase):
    def test_header(self) -> None:
        """What is missing is added, Bcc goes, addresses are completed, also in the envelope."""
        client = self.logged_in()
        queued = self.send(client, b"Subject: x\nTo: joe@far, ann\nBcc: eve\n\nhello\n..\n", b"tim")
        host = os.getpid()
        self.assertEqual(
            queued,
            b"Date: 26 Oct 2026 03:04:05 -0000\nMessage-ID: <20261026030405.1.%d.qmail@mx.test>\n"
            b"From: <tim@mx.test>\nSubject: x\nTo: joe@far.test, ann@mx.test\n\nhello\n.\n" % host,
        )
        envelope = self.queue.messages[-1].envelope
        assert envelope is not None
        self.assertEqual((envelope.sender, envelope.recipients), (b"tim@mx.test", (b"joe@far.test",)))
        again = self.send(client, b"Subject: x\n\n")
        self.assertIn(b"Message-ID: <20261026030405.2.", again)

    def test_name_database(self) -> None:
        write_cdb(self.control.path("ofmipname.cdb"), [(b"tim@mx.test", b"Tim T.\0t@far.test")])
        client = self.logged_in()
        queued = self.send(client, b"From: x@y.test\nSubject: x\n\n")
        self.assertIn(b'\nFrom: "Tim T." <t@far.test>\nCc: recipient list not shown: ;\nSubject: x\n\n', queued)
        self.assertNotIn(b"x@y.test", queued)
        envelope = self.queue.messages[-1].envelope
        assert envelope is not None
        self.assertEqual(envelope.sender, b"t@far.test")

    def test_header_by_bdat(self) -> None:
        """RFC 3030: a header that comes in chunks; nothing of a message that was given up is in the next."""
        client = self.logged_in()
        envelope = (b"MAIL FROM:<tim@mx.test>", b"RCPT TO:<joe@far.test>")
        client.say(*envelope, b"BDAT 5\r\nX: ", b"RSET")
        self.assertEqual(client.codes(*envelope, b"BDAT 6\r\nTo: ", b"BDAT 8 LAST\r\n ann\r\n"), [250, 250, 250, 250])
        queued = self.queue.messages[-1].data
        self.assertTrue(queued.endswith(b"\nTo: ann@mx.test\n\n"), queued)
        self.assertNotIn(b"X:", queued)

    def test_no_body(self) -> None:
        client = self.logged_in()
        self.assertTrue(self.send(client, b"").endswith(b"Cc: recipient list not shown: ;\n"))
        self.assertTrue(self.send(client, b"X: y\n").endswith(b"X: y\n"))

    def test_too_long(self) -> None:
        """A header without an end is refused, and the connection goes on."""
        client = self.logged_in()
        client.say(b"MAIL FROM:<tim@mx.test>", FAR, b"DATA")
        for _ in range(20):
            client.protocol.dataReceived(b"X-Y: " + b"z" * 60000 + b"\r\n")
        self.assertEqual(client.codes(b".", b"NOOP"), [554, 250])
        self.assertTrue(self.queue.messages[-1].aborted)
        self.send(client, b"Subject: x\n\nhello\n")

    def test_large(self) -> None:
        client = self.logged_in()
        body = b"x" * 70 + b"\n"
        self.assertTrue(self.send(client, b"Subject: x\n\n" + body * 20000).endswith(b"\n\n" + body * 20000))

"""What senders are told who have asked for it: RFC 3461 §4.1, §5.2, §6; RFC 3464, read with Python's email package."""

from __future__ import annotations

from email import message_from_bytes
from email.message import Message

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail import dsn
from qtwist.mail.asked import PASSED_ON, Asked
from qtwist.mail.dsn import About, ReportFacts
from qtwist.mail.envelope import Envelope, Origin, Report
from qtwist.send.bounces import BounceSettings
from qtwist.send.steering import FAIL, Steering
from tests.test_send_manager import BOUNCES, ManagerCase

SENT_ON = Report.success(b"192.0.2.7 accepted message.\nRemote host said: 250 2.0.0 ok\n")
REFUSED = Report.failure(
    b"192.0.2.7 does not like recipient.\nRemote host said: 550 5.1.1 no such user\nGiving up on 192.0.2.7.\n"
)
LATER = Report.deferral(b"Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n")
MESSAGE = b"Subject: hello\nX-Note: \xe2\x82\xac\n\nthe body\n"


def fields(part: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in part.items()}


@attrs.frozen
class Parsed:
    """A report as a program reads it."""

    subject: str
    text: str
    message: dict[str, str]
    recipients: list[dict[str, str]]
    copy_type: str
    copy: str

    @classmethod
    def read(cls, data: bytes) -> Parsed:
        whole = message_from_bytes(data)
        assert whole.get_content_type() == "multipart/report", whole.get_content_type()
        assert whole.get_param("report-type") == "delivery-status"
        assert not whole.defects, whole.defects
        parts = whole.get_payload()
        assert isinstance(parts, list)
        text, status, copy = parts
        assert status.get_content_type() == "message/delivery-status"
        blocks = status.get_payload()
        about, *recipients = (fields(block) for block in blocks)
        payload = copy.get_payload()
        copied = payload[0].as_string() if isinstance(payload, list) else payload
        return cls(
            whole["Subject"], text.get_payload(decode=True).decode(), about, recipients, copy.get_content_type(), copied
        )


class DSNCase(ManagerCase):
    settings = attrs.evolve(BOUNCES, delaywarn=14400)

    def build(self):  # type: ignore[no-untyped-def]  # as in ManagerCase, with other settings of notices
        manager = super().build()
        manager.reporter._settings = self.settings
        return manager

    def send(
        self,
        *recipients: tuple[bytes, bytes],
        mail: bytes = b"",
        sender: bytes = b"ann@far.test",
        data: bytes = MESSAGE,
    ) -> int:
        asked = Asked(mail, tuple(pair[1] for pair in recipients))
        envelope = Envelope(sender, tuple(pair[0] for pair in recipients), asked)
        number = self.queue.put(data, envelope, Origin.network(1000)).number
        del self.queue.accepted[:]
        self.go()
        return number

    def notices(self) -> list[tuple[Envelope, bytes]]:
        """What was queued since the last message; its own delivery stays open."""
        found = list(self.queue.accepted)
        del self.queue.accepted[:]
        return found

    def reports(self) -> list[Parsed]:
        return [Parsed.read(data) for _, data in self.notices()]

    def actions(self, *recipients: tuple[bytes, bytes], sender: bytes = b"ann@far.test") -> list[str]:
        self.send(*recipients, sender=sender)
        return [recipient["action"] for report in self.reports() for recipient in report.recipients]


class Notifying(DSNCase):
    def setUp(self) -> None:
        super().setUp()
        self.remote.answers[b"gone@far.test"] = REFUSED
        self.remote.answers[b"ok@far.test"] = SENT_ON
        self.remote.answers[b"dsn@far.test"] = Report.success(SENT_ON.text + PASSED_ON)
        self.local.answers[b"box@here.test"] = Report.success(b"did 1+0+0\n")
        self.local.answers[b"on@here.test"] = Report.success(b"did 0+1+0\nqp 7\n")
        self.local.answers[b"further@here.test"] = Report.success(b"did 0+1+0\nqp 7\n" + PASSED_ON)
        self.local.answers[b"prog@here.test"] = Report.success(b"secret\ndid 0+0+1\n")
        self.local.answers[b"list@here.test"] = Report.success(b"did 1+5+0\nqp 7\n")
        self.start()

    def test_failure(self) -> None:
        """RFC 3464 §2.2, §2.3: the fields; RFC 3461 §6.3: envelope id and original recipient without encoding."""
        number = self.send((b"gone@far.test", b"ORCPT=rfc822;g+2Bone@old.test"), mail=b"ENVID=QQ+2B1")
        [(envelope, data)] = self.notices()
        self.assertEqual(envelope, Envelope(b"", (b"ann@far.test",)))
        for action in dsn._ORDER:
            self.assertEqual(dsn._INTRODUCTIONS[action] in data, action == dsn.FAILED)
        report = Parsed.read(data)
        self.assertEqual(report.subject, "failure notice")
        self.assertEqual(
            report.message,
            {
                "reporting-mta": "dns; mx.test",
                "original-envelope-id": "QQ+1",
                "arrival-date": "9 Sep 2001 01:46:40 -0000",
            },
        )
        self.assertEqual(
            report.recipients,
            [
                {
                    "original-recipient": "rfc822; g+one@old.test",
                    "final-recipient": "rfc822; gone@far.test",
                    "action": "failed",
                    "status": "5.1.1",
                    "remote-mta": "dns; [192.0.2.7]",
                    "diagnostic-code": "smtp; 550 5.1.1 no such user",
                }
            ],
        )
        self.assertIn("<gone@far.test>:\n192.0.2.7 does not like recipient.\n", report.text)
        self.assertNotIn("=failed", report.text)
        self.assertEqual(report.copy_type, "message/rfc822")
        self.assertIn("the body", report.copy)
        self.assertIn(f"bounce msg {number} qp {number + 1}", self.log())

    def test_headers_only(self) -> None:
        """§4.3: RET=HDRS; and only the header goes with what is no failure."""
        for mail, recipient in (
            (b"RET=HDRS", (b"gone@far.test", b"")),
            (b"RET=FULL", (b"ok@far.test", b"NOTIFY=SUCCESS")),
        ):
            self.send(recipient, mail=mail)
            [report] = self.reports()
            self.assertEqual(report.copy_type, "text/rfc822-headers")
            self.assertIn("Subject: hello", report.copy)
            self.assertNotIn("the body", report.copy)

    def test_who_is_told(self) -> None:
        """§4.1, §5.2: what NOTIFY makes of each end of a delivery."""
        for recipient, notify, expected in [
            (b"gone@far.test", b"NOTIFY=NEVER", []),
            (b"gone@far.test", b"NOTIFY=SUCCESS", []),
            (b"gone@far.test", b"NOTIFY=SUCCESS,FAILURE", ["failed"]),
            (b"gone@far.test", b"ORCPT=rfc822;x@y", ["failed"]),
            (b"ok@far.test", b"NOTIFY=SUCCESS", ["relayed"]),
            (b"ok@far.test", b"NOTIFY=FAILURE", []),
            (b"ok@far.test", b"ORCPT=rfc822;x@y", []),
            (b"dsn@far.test", b"NOTIFY=SUCCESS", []),
            (b"box@here.test", b"NOTIFY=SUCCESS", ["delivered"]),
            (b"box@here.test", b"NOTIFY=DELAY,FAILURE", []),
            (b"on@here.test", b"NOTIFY=SUCCESS", ["relayed"]),
            (b"further@here.test", b"NOTIFY=SUCCESS", []),
            (b"list@here.test", b"NOTIFY=SUCCESS", ["expanded"]),
        ]:
            self.assertEqual(self.actions((recipient, notify)), expected, (recipient, notify))
            self.assertEqual(self.queue.bounces, {})

    def test_together(self) -> None:
        """One report of all; that it is about success alone is told in the log."""
        self.send(
            (b"gone@far.test", b""),
            (b"box@here.test", b"NOTIFY=SUCCESS"),
            (b"ok@far.test", b"NOTIFY=NEVER"),
            mail=b"ENVID=x",
        )
        [report] = self.reports()
        self.assertEqual(
            {one["final-recipient"] for one in report.recipients}, {"rfc822; gone@far.test", "rfc822; box@here.test"}
        )
        self.log()
        number = self.send((b"box@here.test", b"NOTIFY=SUCCESS"))
        [report] = self.reports()
        self.assertEqual((report.subject, report.recipients[0]["status"]), ("delivery notice", "2.0.0"))
        self.assertIn(f"report msg {number} qp {number + 1}", self.log())

    def test_programs_say_nothing(self) -> None:
        """What a program prints when all is well stays here."""
        self.send((b"prog@here.test", b"NOTIFY=SUCCESS"))
        [(_, data)] = self.notices()
        self.assertNotIn(b"secret", data)
        self.assertEqual(Parsed.read(data).recipients[0]["action"], "delivered")

    def test_failed_by_hand(self) -> None:
        """qtwist queue fail: as it was asked for, too."""
        number = self.send((b"slow@far.test", b"ORCPT=rfc822;s@old.test"), (b"mute@far.test", b"NOTIFY=NEVER"))
        steering = Steering(self.manager)
        settled = Deferred.fromCoroutine(steering.settle(number, self.queue.infos[number].birth, FAIL, 7))
        for _, answer in list(self.remote.open):
            answer.callback(LATER)
        self.go(1)
        self.assertEqual(self.successResultOf(settled), 2)
        [report] = self.reports()
        [recipient] = report.recipients
        self.assertEqual((recipient["original-recipient"], recipient["action"]), ("rfc822; s@old.test", "failed"))

    def test_tried_again_after_a_crash(self) -> None:
        """A recipient with two results is told of once, with the last one."""
        number = self.send((b"slow@far.test", b"NOTIFY=SUCCESS,FAILURE"))
        self.queue.bounces[number] = dsn.marked_paragraph(b"slow@far.test", dsn.RELAYED, "remote", 0, b"ok\n")
        self.remote.open[0][1].callback(REFUSED)
        self.go()
        [report] = self.reports()
        self.assertEqual([one["action"] for one in report.recipients], ["failed"])

    def test_nobody_is_there(self) -> None:
        """§4.1: nobody hears of success where the sender is empty; failures there are double bounces, as ever."""
        self.assertEqual(self.actions((b"box@here.test", b"NOTIFY=SUCCESS"), sender=b""), [])
        self.assertEqual(self.actions((b"gone@far.test", b"NOTIFY=NEVER"), sender=b""), [])
        self.send((b"gone@far.test", b"NOTIFY=FAILURE"), sender=b"")
        [(envelope, _)] = self.notices()
        self.assertEqual(envelope, Envelope(b"#@[]", (b"postmaster@mx.test",)))
        self.send((b"gone@far.test", b"NOTIFY=FAILURE"), sender=b"#@[]")
        self.assertEqual(self.notices(), [])

    def test_parameters_go_on(self) -> None:
        """§5.2.1: the remote spawner gets them; the local one has no use for them."""
        seen = []
        deliver = self.remote.deliver
        self.remote.deliver = lambda delivery: (seen.append((delivery.asked_mail, delivery.asked)), deliver(delivery))[
            1
        ]
        self.send((b"ok@far.test", b"NOTIFY=NEVER"), (b"ok@far.test", b""), mail=b"RET=HDRS")
        self.assertEqual(seen, [(b"RET=HDRS", b"NOTIFY=NEVER"), (b"RET=HDRS", b"")])

    def test_without_parameters(self) -> None:
        """Who has asked for nothing gets QSBMF, as ever (spec/qmail.md §9.11)."""
        self.queue.send(b"ann@far.test", b"gone@far.test")
        del self.queue.accepted[:]
        self.go()
        [(_, data)] = self.notices()
        self.assertIn(b"\n\nHi. This is the qmail-send program at mx.test.\n", data)


class ForAll(Notifying):
    """control/dsnbounces."""

    settings = attrs.evolve(BOUNCES, multipart=True, delaywarn=14400)

    def test_without_parameters(self) -> None:
        """A delivery cannot say that it was none."""
        self.remote.answers[b"gone@far.test"] = Report.failure(b"=delivered local 0\nI said. (#5.7.1)\n")
        self.queue.send(b"ann@far.test", b"gone@far.test")
        del self.queue.accepted[:]
        self.go()
        [report] = self.reports()
        self.assertEqual((report.recipients[0]["action"], report.recipients[0]["status"]), ("failed", "5.7.1"))


class Delays(DSNCase):
    def setUp(self) -> None:
        super().setUp()
        self.remote.answers[b"slow@far.test"] = LATER
        self.remote.answers[b"mute@far.test"] = LATER
        self.start()

    def test_once(self) -> None:
        """§4.1, §6: a delay is told once, four hours on, to those who asked; and is no failure later."""
        number = self.send((b"slow@far.test", b"NOTIFY=DELAY"), (b"mute@far.test", b"NOTIFY=FAILURE"))
        for age in range(0, 14300, 100):
            self.go(100)
            self.assertEqual(self.notices(), [], age)
        self.go(200)
        [report] = self.reports()
        self.assertEqual(report.subject, "delay notice")
        [recipient] = report.recipients
        self.assertEqual(recipient["final-recipient"], "rfc822; slow@far.test")
        self.assertEqual((recipient["action"], recipient["status"]), ("delayed", "4.4.1"))
        self.assertEqual(report.copy_type, "text/rfc822-headers")
        self.go(20000)
        self.assertEqual(self.notices(), [])
        self.remote.answers[b"slow@far.test"] = self.remote.answers[b"mute@far.test"] = SENT_ON
        self.go(100000)
        self.assertEqual(self.notices(), [])
        self.assertIn(f"end msg {number}", self.log())

    def test_then_failure(self) -> None:
        """After the delay, the failure is told where that was asked for."""
        self.send((b"slow@far.test", b"NOTIFY=DELAY,FAILURE"))
        for _ in range(200):
            self.go(100)
        self.assertEqual(len(self.notices()), 1)
        self.remote.answers[b"slow@far.test"] = REFUSED
        self.go(20000)
        [report] = self.reports()
        self.assertEqual([one["action"] for one in report.recipients], ["failed"])

    def test_trouble(self) -> None:
        """What the queue does not take is tried after the next try."""
        self.send((b"slow@far.test", b"NOTIFY=DELAY"))
        self.queue.refuse = 53
        for _ in range(145):
            self.go(100)
        self.assertIn("trouble injecting delay notice", " ".join(self.log()))
        self.queue.refuse = 0
        self.go(20000)
        self.assertEqual(len(self.notices()), 1)

    def test_nobody_has_asked(self) -> None:
        """Without parameters nothing is told of a delay (QSBMF knows none)."""
        self.queue.send(b"ann@far.test", b"slow@far.test")
        del self.queue.accepted[:]
        for _ in range(200):
            self.go(100)
        self.assertEqual(self.notices(), [])
        self.assertEqual(
            len([line for line in self.log() if "status: local 0/10 remote 1/20" in line]), len(self.remote.seen)
        )

    def test_never(self) -> None:
        """0 in control/delaywarn."""
        self.manager.reporter._settings = BOUNCES
        self.send((b"slow@far.test", b"NOTIFY=DELAY"))
        for _ in range(300):
            self.go(100)
        self.assertEqual(self.notices(), [])


TEXTS = st.binary(max_size=80).map(lambda text: text.replace(b"\0", b"?"))


class Paragraphs(SynchronousTestCase):
    @given(st.lists(st.tuples(st.sampled_from(dsn._ORDER), st.integers(0, 10**9), TEXTS), max_size=4))
    def test_are_read_as_written(self, entries: list[tuple[bytes, int, bytes]]) -> None:
        """Whatever a delivery says, it cannot be read as a paragraph, or as another mark."""
        text = b"".join(
            dsn.marked_paragraph(b"a>:\n\nb@x", action, "remote", offset, words) for action, offset, words in entries
        )
        found = dsn.read_paragraphs(text, marked=True)
        self.assertEqual(
            [(one.action, one.channel, one.offset) for one in found],
            [(action, "remote", offset) for action, offset, _ in entries],
        )

    @settings(max_examples=50)
    @given(TEXTS, TEXTS, st.sampled_from(dsn._ORDER))
    def test_reports_can_be_read(self, address: bytes, words: bytes, action: bytes) -> None:
        """Whatever an address or a delivery says, the report has its three parts, and its fields are lines."""
        settings = BounceSettings(b"MAILER-DAEMON", b"mx.test", b"postmaster", b"mx.test")
        facts = ReportFacts(b"ann@x", b"ann@x", None, 0, 1, b"7.1.token")
        [about] = dsn.read_paragraphs(dsn.marked_paragraph(address, action, "local", 0, words), marked=True)
        data = dsn.report_head(settings, facts, [about], full=True) + MESSAGE + dsn.report_tail(facts.token)
        report = Parsed.read(data)
        [recipient] = report.recipients
        self.assertLessEqual(recipient.keys(), {"final-recipient", "action", "status", "diagnostic-code"})
        self.assertEqual(recipient["action"], action.decode())

    def test_statuses(self) -> None:
        """RFC 3464 §2.3.4: the class fits the action."""
        for action, text, expected in [
            (b"failed", b"x (#5.1.1)\n", b"5.1.1"),
            (b"failed", b"x (#4.4.1)\ntoo long\n", b"4.4.1"),
            (b"failed", b"x (#2.0.0)\n", b"5.0.0"),
            (b"failed", b"Remote host said: 550-5.7.26 no\n", b"5.7.26"),
            (b"delayed", b"x (#5.1.1)\n", b"4.0.0"),
            (b"relayed", b"Remote host said: 250 2.1.5 ok\n", b"2.1.5"),
            (b"delivered", b"did 1+0+0\n", b"2.0.0"),
        ]:
            self.assertIn(b"Status: %b\n" % expected, dsn._fields(About(b"a@x", action, text), {}), text)

"""Tests of qtwist.mail.qsbmf, qtwist.mail.verp and qtwist.mail.queue_codes."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.envelope import Report
from qtwist.mail.qsbmf import notice_head, recipient_paragraph
from qtwist.mail.queue_codes import queue_report
from qtwist.mail.verp import bounce_address, expand, owner_sender


@attrs.frozen
class Settings:
    bouncefrom: bytes = b"MAILER-DAEMON"
    bouncehost: bytes = b"mx.example.test"


class ParagraphTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """§9.10: the LF is added if missing, an empty line inside becomes a slash, and none stays at the end."""
        for report, expected in [
            (b"no such user", b"<joe@x>:\nno such user\n\n"),
            (b"no such user\n", b"<joe@x>:\nno such user\n\n"),
            (b"a\nb\n", b"<joe@x>:\na\nb\n\n"),
            (b"a\n\nb\n", b"<joe@x>:\na\n/b\n\n"),
            (b"a\n\n\nb\n", b"<joe@x>:\na\n//b\n\n"),
            (b"\na", b"<joe@x>:\n/a\n\n"),
            (b"this is err\nmore\n\n", b"<joe@x>:\nthis is err\nmore\n\n"),
            (b"", b"<joe@x>:\n\n"),
            (b"\n\n\n", b"<joe@x>:\n\n"),
        ]:
            self.assertEqual(recipient_paragraph(b"joe@x", report), expected, report)

    def test_recipient_of_two_lines(self) -> None:
        self.assertEqual(recipient_paragraph(b"a\nb@x", b"no"), b"<a_b@x>:\nno\n\n")
        self.assertEqual(recipient_paragraph(b"\n\n", b"no"), b"<__>:\nno\n\n")

    @given(st.binary(max_size=10), st.lists(st.sampled_from([b"\n", b"x", b"- ", b"<a>:"]), max_size=12).map(b"".join))
    def test_one_paragraph(self, recipient: bytes, report: bytes) -> None:
        """§27: a paragraph has no empty line but the one after it, and starts with the address."""
        paragraph = recipient_paragraph(recipient, report)
        self.assertTrue(paragraph.startswith(b"<" + recipient.replace(b"\n", b"_") + b">:\n"))
        self.assertEqual(paragraph.find(b"\n\n"), len(paragraph) - 2)
        visible = sum(report.count(c) for c in (b"x", b"-", b"<a>:"))
        shown = paragraph[len(recipient) + 4 :]
        self.assertEqual(sum(shown.count(c) for c in (b"x", b"-", b"<a>:")), visible)


class NoticeTests(SynchronousTestCase):
    def test_single(self) -> None:
        """§9.11: the skeleton, with three lines of introduction."""
        head = notice_head(Settings(), b"joe smith@host.test", b"joe smith@host.test", b"<a@b>:\nno\n\n", 1793588645)
        header, intro, paragraph, end, path = head.split(b"\n\n")
        self.assertEqual(
            header.split(b"\n"),
            [
                b"Date: 2 Nov 2026 03:04:05 -0000",
                b"From: MAILER-DAEMON@mx.example.test",
                b'To: "joe smith"@host.test',
                b"Subject: failure notice",
            ],
        )
        self.assertEqual(intro.split(b"\n")[0], b"Hi. This is the qmail-send program at mx.example.test.")
        self.assertEqual(len(intro.split(b"\n")), 3)
        self.assertEqual(paragraph, b"<a@b>:\nno")
        self.assertEqual(end, b"--- Below this line is a copy of the message.")
        self.assertEqual(path, b'Return-Path: <"joe smith"@host.test>\n')

    def test_double(self) -> None:
        """§9.11: an empty sender; one further line of introduction."""
        head = notice_head(Settings(b"post master"), b"", b"postmaster@mx", b"<a@b>:\nno\n\n", 0)
        header, intro, _, end, path = head.split(b"\n\n")
        self.assertIn(b'\nFrom: "post master"@mx.example.test\nTo: postmaster@mx\n', header)
        self.assertEqual(len(intro.split(b"\n")), 2)
        self.assertEqual(end, b"--- Below this line is the original bounce.")
        self.assertEqual(path, b"Return-Path: <>\n")

    def test_verp(self) -> None:
        """§9.11, §28.15: the mark at the end of the sender is dropped."""
        head = notice_head(Settings(), b"list-@host.test-@[]", b"list-@host.test", b"", 0)
        self.assertTrue(head.endswith(b"\n\nReturn-Path: <list-@host.test>\n"))

    def test_sender_of_two_lines(self) -> None:
        head = notice_head(Settings(), b"a@b\nBcc: c", b"a@b\nBcc: c", b"", 0)
        self.assertNotIn(b"\nBcc", head)


class VerpTests(SynchronousTestCase):
    def test_expand(self) -> None:
        """§9.9."""
        for sender, recipient, expected in [
            (b"list-@host.test-@[]", b"ok@dest.test", b"list-ok=dest.test@host.test"),
            (b"list-@host.test-@[]", b"a@b@dest.test", b"list-a@b=dest.test@host.test"),
            (b"list-@host.test-@[]", b"postmaster", b"list-@host.test-@[]"),
            (b"a@b@host-@[]", b"ok@dest", b"a@bok=dest@host"),
            (b"list-@host.test", b"ok@dest.test", b"list-@host.test"),
            (b"list--@[]", b"ok@dest.test", b"list--@[]"),
            (b"-@[]", b"ok@dest.test", b"-@[]"),
            (b"#@[]", b"ok@dest.test", b"#@[]"),
            (b"", b"ok@dest.test", b""),
        ]:
            self.assertEqual(expand(sender, recipient), expected, (sender, recipient))

    def test_bounce_address(self) -> None:
        """§9.11."""
        self.assertEqual(bounce_address(b"list-@host.test-@[]"), b"list-@host.test")
        self.assertEqual(bounce_address(b"#@[]"), b"#@[]")
        self.assertEqual(bounce_address(b"joe@x"), b"joe@x")

    def test_owner(self) -> None:
        """§13.6; the result with VERP is what expand understands."""
        self.assertEqual(owner_sender(b"list", b"host.test", False), b"list-owner@host.test")
        sender = owner_sender(b"list", b"host.test", True)
        self.assertEqual(sender, b"list-owner-@host.test-@[]")
        self.assertEqual(expand(sender, b"a@b"), b"list-owner-a=b@host.test")


class QueueCodeTests(SynchronousTestCase):
    def test_table(self) -> None:
        """§7: letter and enhanced code of every exit code."""
        temporary = dict.fromkeys((51, 52, 53, 54, 55, 56, 61, 62, 63, 64, 65, 66, 71, 81, 91, 111, 120), b"(#4.3.0)")
        temporary |= {
            72: b"(#4.4.1)",
            73: b"(#4.4.1)",
            74: b"(#4.4.2)",
            82: b"(#4.3.0)",
            1: b"(#4.3.0)",
            41: b"(#4.3.0)",
        }
        permanent = {11: b"(#5.1.3)", 115: b"(#5.1.3)", 31: b"(#5.3.0)", 12: b"(#5.3.0)", 40: b"(#5.3.0)"}
        for letter, codes in ((b"Z", temporary), (b"D", permanent)):
            for code, enhanced in codes.items():
                report = queue_report(code)
                self.assertEqual(report.letter, letter, code)
                self.assertTrue(report.text.endswith(b" " + enhanced), code)
        self.assertEqual(queue_report(0), Report(b"K", b""))

    def test_texts(self) -> None:
        """Each says what was wrong."""
        for code, word in (
            (51, b"memory"), (52, b"waited"), (53, b"disk"), (54, b"read the message"), (55, b"configuration"),
            (56, b"network"), (61, b"home directory"), (62, b"queue directory"), (63, b"in pid"), (64, b"in mess"),
            (65, b"in intd"), (66, b"in todo"), (71, b"for now"), (72, b"timed out"), (73, b"refused the connection"),
            (74, b"broke off"), (81, b"in itself"), (91, b"envelope"), (111, b"accounts"), (120, b"started"),
            (82, b"in trouble"), (11, b"address is too long"), (31, b"for good"), (12, b"refuses"),
        ):  # fmt: skip
            self.assertIn(word, queue_report(code).text, code)

    def test_custom(self) -> None:
        """§6.3, §7: code 82 with at least three bytes speaks for itself; only D is permanent."""
        self.assertEqual(queue_report(82, b"Dno (#5.6.1)"), Report(b"D", b"no (#5.6.1)"))
        self.assertEqual(queue_report(82, b"Zno (#4.6.1)"), Report(b"Z", b"no (#4.6.1)"))
        self.assertEqual(queue_report(82, b"???"), Report(b"Z", b"??"))
        self.assertEqual(queue_report(82, b"Dx"), queue_report(82))
        self.assertEqual(queue_report(53, b"Dno (#5.6.1)"), queue_report(53))

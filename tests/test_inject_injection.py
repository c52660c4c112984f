"""Tests of qtwist.inject.injection and fields (spec/qmail.md §19.3-19.6, §28.4-28.7)."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.inject.injection import Injection, InjectionError, Settings
from qtwist.inject.splitting import Splitter
from tests.test_inject_tokens import texts

CONTROL = {
    "defaulthost": b"mx.example.test",
    "defaultdomain": b"example.test",
    "plusdomain": b"example.test",
    "idhost": b"id.example.test",
}
DATE = b"Date: 2 Nov 2026 03:04:05 -0000\n"
MESSAGE_ID = b"Message-ID: <20261102030405.77.qmail@id.example.test>\n"
FROM = b"From: u@mx.example.test\n"
STAMPS = DATE + MESSAGE_ID + FROM
NOW = 1793588645


def inject(
    message: bytes = b"",
    *arguments: bytes,
    followup: Collection[bytes] = (),
    sender: bytes | None = None,
    **environ: bytes,
) -> Injection:
    known = {b"USER": b"u", **{name.encode(): value for name, value in environ.items()}}
    injection = Injection(Settings(known, CONTROL.__getitem__, followup), NOW, 77, sender)
    for argument in arguments:
        injection.add_recipient(argument)
    for field in Splitter([message]).fields():
        injection.add_field(field)
    return injection


class HeaderTests(SynchronousTestCase):
    def check(self, message: bytes, expected: bytes, *recipients: bytes, **environ: bytes) -> None:
        injection = inject(message, **environ)
        self.assertEqual(injection.header(), expected)
        self.assertEqual(injection.recipients(True), list(recipients))

    def test_empty(self) -> None:
        """§19.4: what is added, in this order."""
        self.check(b"", STAMPS + b"Cc: recipient list not shown: ;\n")

    def test_nothing_to_add(self) -> None:
        fields = b"From: a@b.c\nmessage-id : <x>\nSubject: hi\n there\nTO: d@e.f\nDate: now\nX:y\n"
        self.check(fields, fields.replace(b"TO:", b"TO:"), b"d@e.f")

    def test_added_fields_come_first(self) -> None:
        self.check(b"Cc: a@b.c\nX: y\n", STAMPS + b"Cc: a@b.c\nX: y\n", b"a@b.c")
        self.check(
            b"From: a\nTo: b\n",
            DATE + MESSAGE_ID + b"From: a@mx.example.test\nTo: b@mx.example.test\n",
            b"b@mx.example.test",
        )

    def test_list_not_shown(self) -> None:
        """Only To and Cc are seen by those who get the message."""
        hidden = STAMPS + b"Cc: recipient list not shown: ;\n"
        self.check(b"Bcc: a@b.c\n", hidden, b"a@b.c")
        self.check(b"Apparently-To: a@b.c\n", hidden + b"Apparently-To: a@b.c\n", b"a@b.c")

    def test_dropped_fields(self) -> None:
        self.check(
            b"To: a@b.c\nBcc : d@e.f\nContent-Length: 5\nReturn-Path: <x@y.z>\n",
            STAMPS + b"To: a@b.c\n",
            b"a@b.c",
            b"d@e.f",
        )

    def test_order_of_recipients(self) -> None:
        """§28.5: arguments first, then field by field from right to left; nothing is dropped for being there twice."""
        injection = inject(b"To: a@b.c, b@b.c\nCc: c@b.c, grp: d@b.c, e@b.c;\nBcc: a@b.c\n", b"z@b.c", b"y@b.c")
        given = [b"z@b.c", b"y@b.c"]
        self.assertEqual(injection.recipients(False), given)
        self.assertEqual(
            injection.recipients(True), given + [box + b"@b.c" for box in (b"b", b"a", b"e", b"d", b"c", b"a")]
        )

    def test_rewritten_fields(self) -> None:
        for name in (b"Sender", b"Reply-To", b"Return-Receipt-To", b"Errors-To", b"fRom"):
            injection = inject(b"To: a@b.c\n" + name + b": x , y\n")
            self.assertTrue(
                injection.header().endswith(b"\n" + name + b": x@mx.example.test, y@mx.example.test\n"), name
            )
            self.assertEqual(injection.recipients(True), [b"a@b.c"])
        for name in (
            b"Subject",
            b"Received",
            b"Delivered-To",
            b"Content-Type",
            b"Mail-Followup-To",
            b"To-X",
            b"X-To",
            b"Resent-X",
        ):
            self.assertTrue(inject(b"To: a@b.c\n" + name + b": x , y\n").header().endswith(b"\n" + name + b": x , y\n"))

    def test_errors_in_recipient_fields(self) -> None:
        """§19.3: the field stays as it is; what was found right of the trouble counts."""
        self.check(b"To: foo: bar@x.y, baz@x.y\n", STAMPS + b"To: foo: bar@x.y, baz@x.y\n", b"baz@x.y", b"bar@x.y")
        self.check(b"To: a@b.c\nCc: (d\n", STAMPS + b"To: a@b.c\nCc: (d\n", b"a@b.c")
        self.check(b"To: a@b.c\nBcc: d: e@f.g\n", STAMPS + b"To: a@b.c\n", b"a@b.c", b"e@f.g")

    def test_errors_elsewhere(self) -> None:
        for name in (
            b"From",
            b"Sender",
            b"Reply-To",
            b"Return-Path",
            b"Errors-To",
            b"Return-Receipt-To",
            b"Resent-From",
        ):
            error = self.assertRaises(InjectionError, inject, name + b": (a\n b\n")
            self.assertEqual(error.args, (b"unable to parse this line:\n" + name + b": (a\n b",))

    def test_argument(self) -> None:
        """§19.7: an argument is one unquoted address."""
        for argument, expected in (
            (b"joe", b"joe@mx.example.test"),
            (b"joe@x", b"joe@x.example.test"),
            (b"a b@x.y", b"a b@x.y"),
            (b"a,b", b"a,b@mx.example.test"),
            (b"a(b)@x.y", b"a(b)@x.y"),
            (b"a@x.y (c)", b"a@x.y"),
            (b"joe@host+", b"joe@host.example.test"),
            (b"joe+", b"joe+@mx.example.test"),
            (b"", b""),
        ):
            self.assertEqual(inject(b"", argument).recipients(False), [expected])
        error = self.assertRaises(InjectionError, inject, b"", b"a@(b")
        self.assertEqual(error.args, (b"unable to parse address: a@(b",))

    @given(st.lists(texts, max_size=4), st.sampled_from([b"To", b"From", b"Return-Path", b"Resent-Cc", b"Subject"]))
    def test_anything(self, values: list[bytes], name: bytes) -> None:
        """Any header comes out as fields, each of them begun by a name that was there or is ours, or is refused."""
        message = b"".join(name + b":" + value.replace(b"\n", b"\n ").rstrip() + b"\n" for value in values)
        try:
            injection = inject(message)
            header = injection.header()
        except InjectionError:
            return
        names = {b"Date", b"Message-ID", b"From", b"To", b"Cc", b"Subject", b"Resent-Cc"}
        names |= {b"Resent-" + known for known in names}
        for line in header.split(b"\n")[:-1]:
            self.assertTrue(line[:1] in (b" ", b"\t") or line.partition(b":")[0] in names, line)


class FromTests(SynchronousTestCase):
    def check(self, expected: bytes, **environ: bytes) -> None:
        known = {name.encode(): value for name, value in environ.items()}
        injection = Injection(Settings(known, CONTROL.__getitem__), NOW, 77)
        self.assertIn(b"\nFrom: " + expected + b"\nCc: ", injection.header())

    def test_user(self) -> None:
        """§4: the first that is set, even to nothing."""
        self.check(b"anonymous@mx.example.test")
        names = {"LOGNAME": b"l", "USER": b"u", "MAILUSER": b"m", "QMAILUSER": b"q"}
        known: dict[str, bytes] = {}
        for name, user in names.items():
            known[name] = user
            self.check(user + b"@mx.example.test", **known)
        self.check(b'""@mx.example.test', QMAILUSER=b"", USER=b"u")

    def test_host(self) -> None:
        self.check(b"u@m.x", USER=b"u", MAILHOST=b"m.x")
        self.check(b"u@q.example.test", USER=b"u", MAILHOST=b"m.x", QMAILHOST=b"q")
        self.check(b"u@d.x", USER=b"u", QMAILDEFAULTHOST=b"d.x")
        self.check(b"u@h.d.x", USER=b"u", QMAILHOST=b"h", QMAILDEFAULTDOMAIN=b"d.x")
        self.check(b"u@h.p.x", USER=b"u", QMAILHOST=b"h+", QMAILPLUSDOMAIN=b"p.x")

    def test_vector_4(self) -> None:
        self.check(b'"John \\"Q\\" Doe" <"we ird"@mx.example.test>', QMAILNAME=b'John "Q" Doe', QMAILUSER=b"we ird")

    def test_name(self) -> None:
        known: dict[str, bytes] = {"USER": b"u.v"}
        for name in ("NAME", "MAILNAME", "QMAILNAME"):
            known[name] = name.encode()
            self.check(b'"%b" <u.v@mx.example.test>' % name.encode(), **known)
        self.check(b"u@mx.example.test (A (B\\))".replace(b"(B", b"\\(B"), USER=b"u", NAME=b"A (B)", QMAILINJECT=b"c")

    def test_line_end_in_name(self) -> None:
        """The environment of a web server is in other people's hands: no name may add a field."""
        self.check(b'"A\\\n Bcc: x" <u@mx.example.test>', USER=b"u", NAME=b"A\nBcc: x")
        header = inject(b"", QMAILIDHOST=b"x\nBcc: y").header()
        self.assertIn(b".77.qmail@x Bcc: y>\n", header)

    def test_wrong_hosts(self) -> None:
        self.assertRaises(InjectionError, inject, b"", QMAILDEFAULTHOST=b"(x")
        self.assertRaises(InjectionError, inject(b"", QMAILHOST=b"a>b").header)


class SenderTests(SynchronousTestCase):
    def check(self, expected: bytes, message: bytes = b"", sender: bytes | None = None, **environ: bytes) -> None:
        injection = inject(message, sender=sender, **environ)
        injection.header()
        self.assertEqual(injection.sender, expected)

    def test_default(self) -> None:
        self.check(b"u@mx.example.test")
        self.check(b"q@mx.example.test", QMAILSUSER=b"q")
        self.check(b"u@h.example.test", MAILHOST=b"h")
        self.check(b"u@s.example.test", MAILHOST=b"h", QMAILSHOST=b"s")
        self.check(b"a b@mx.example.test", QMAILUSER=b"a b")

    def test_option(self) -> None:
        """-f is completed, counts before everything, and is never given extras."""
        self.check(b"a@mx.example.test", b"Return-Path: <x@y.z>\n", b"a", QMAILINJECT=b"rm")
        self.check(b"a b@x.y", sender=b"a b@x.y")
        self.check(b"", b"Return-Path: <x@y.z>\n", b"")
        self.check(b"list-@x.y-@[]", sender=b"list-@x.y-@[]")

    def test_return_path(self) -> None:
        """The last address of the first field that has one."""
        self.check(b"b@x.y", b"Return-Path: a@x.y, b@x.y\nReturn-Path: c@x.y\n")
        self.check(b"", b"Return-Path: <>\n", QMAILSUSER=b"q")
        self.check(b"u@mx.example.test", b"Return-Path: (none)\n")
        self.check(b"u@mx.example.test", b"Return-Path: <a@x.y>\n", QMAILINJECT=b"s")

    def test_vector_6(self) -> None:
        """§19.6: VERP senders."""
        self.check(b"u-1793588645.77-@mx.example.test-@[]", QMAILINJECT=b"smr")
        self.check(b"u-1793588645.77@mx.example.test", QMAILINJECT=b"m")
        self.check(b"u-@mx.example.test-@[]", QMAILINJECT=b"r")
        self.check(b"x@y.example.test-@[]", b"Return-Path: x@y\n", QMAILINJECT=b"mr")

    def test_shown(self) -> None:
        injection = inject(b"", sender=b"a b@x.y")
        self.assertEqual(injection.return_path(), b'Return-Path: <"a b"@x.y>\n')
        self.assertEqual(inject(b"", sender=b"").return_path(), b"Return-Path: <>\n")


class FlagTests(SynchronousTestCase):
    def test_deleted_fields(self) -> None:
        """§19.6: what is deleted is not there, so it is made anew."""
        fields = b"From: a@b.c\nMessage-ID: <x>\nTo: d@e.f\n"
        self.assertEqual(inject(fields, QMAILINJECT=b"fi?").header(), STAMPS + b"To: d@e.f\n")
        self.assertEqual(inject(fields, QMAILINJECT=b"f").header(), DATE + FROM + b"Message-ID: <x>\nTo: d@e.f\n")
        self.assertEqual(inject(fields, QMAILINJECT=b"i").header(), DATE + MESSAGE_ID + b"From: a@b.c\nTo: d@e.f\n")
        self.assertEqual(inject(b"From: (x\n" + fields, QMAILINJECT=b"f").header(), DATE + FROM + fields[12:])


class ResentTests(SynchronousTestCase):
    def test_added(self) -> None:
        injection = inject(b"Resent-To: a@b.c, d@e.f\nTo: x@y.z\nBcc: v@w.x\nResent-Bcc: g@h.i\n", b"z@z.z")
        self.assertEqual(
            injection.header(),
            b"".join(b"Resent-" + line for line in (DATE, MESSAGE_ID, FROM)) + b"Resent-To: a@b.c, d@e.f\nTo: x@y.z\n",
        )
        self.assertEqual(injection.recipients(True), [b"z@z.z", b"d@e.f", b"a@b.c", b"g@h.i"])

    def test_recognised(self) -> None:
        for name in (b"Sender", b"From", b"Reply-To", b"To", b"Cc", b"Bcc", b"Date", b"Message-Id"):
            header = inject(b"Resent-" + name + b": a@b.c\n").header()
            self.assertNotIn(b"\nDate:", b"\n" + header)
            self.assertEqual(header.count(b"Resent-Cc:"), name != b"To")

    def test_other(self) -> None:
        self.assertTrue(inject(b"Resent-X: a@b.c\n").header().startswith(STAMPS))


class FollowupTests(SynchronousTestCase):
    """§19.5"""

    LISTED = frozenset((b"list@x.y",))

    def test_added(self) -> None:
        injection = inject(b'To: a@b, "c d"@e.f\nBcc: z@z.z\nCc: (my) LIST@x.Y\n', followup=self.LISTED)
        self.assertEqual(
            injection.header(),
            STAMPS
            + b'Mail-Followup-To: LIST@x.Y,\n  a@b.example.test,\n  "c d"@e.f\n'
            + b'To: a@b.example.test, "c d"@e.f\nCc: LIST@x.Y (my)\n',
        )

    def test_not_added(self) -> None:
        for message, followup in (
            (b"To: a@b.c\n", self.LISTED),
            (b"To: a@b.c\nBcc: list@x.y\n", self.LISTED),
            (b"To: list@x.y\nMail-Followup-To: me\n", self.LISTED),
            (b"To: list@x.y\n", ()),
            (b"To: list@x.y\nResent-To: list@x.y\n", self.LISTED),
        ):
            self.assertEqual(
                inject(message, followup=followup).header().count(b"Mail-Followup-To:"), message.count(b"Mail-Followup")
            )

    def test_order(self) -> None:
        injection = inject(b"To: a@b.c, list@x.y\nCc: d@e.f\n", followup=self.LISTED)
        self.assertIn(b"\nMail-Followup-To: d@e.f,\n  a@b.c,\n  list@x.y\n", injection.header())

    def test_line_end_in_address(self) -> None:
        injection = inject(b'To: list@x.y, a@"b\\\n Bcc: c"\n', followup=self.LISTED)
        self.assertIn(b"Mail-Followup-To: list@x.y,\n  a@b  Bcc: c.example.test\n", injection.header())

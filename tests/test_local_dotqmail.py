"""The .qmail language and the added lines: spec/qmail.md §13.2 to §13.6."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.local import environment
from qtwist.local.dotqmail import (
    BlankStart,
    Candidate,
    Forward,
    ForwardOnly,
    Maildir,
    Mbox,
    Program,
    candidates,
    instructions,
)

NO_NUL = st.binary(max_size=60).map(lambda text: text.replace(b"\0", b"-"))


class CandidateTests(SynchronousTestCase):
    """§13.4."""

    def check(self, dash: bytes, ext: bytes, *expected: tuple[bytes, bytes | None]) -> None:
        self.assertEqual(list(candidates(dash, ext)), [Candidate(name, default) for name, default in expected])

    def test_examples(self) -> None:
        """The examples of §13.4."""
        self.check(
            b"-",
            b"a-b-c",
            (b".qmail-a-b-c", None),
            (b".qmail-a-b-default", b"c"),
            (b".qmail-a-default", b"b-c"),
            (b".qmail-default", b"a-b-c"),
        )
        self.check(b"-", b"a-", (b".qmail-a-", None), (b".qmail-a-default", b""), (b".qmail-default", b"a-"))
        self.check(b"", b"", (b".qmail", None), (b".qmaildefault", b""))
        self.check(b"-", b"", (b".qmail-", None), (b".qmail-default", b""))

    def test_case_and_dots(self) -> None:
        """File names are lower case without dots; $DEFAULT keeps what was sent (§30)."""
        self.check(
            b"-",
            b"List-A.B",
            (b".qmail-list-a:b", None),
            (b".qmail-list-default", b"A.B"),
            (b".qmail-default", b"List-A.B"),
        )
        self.check(b"-", b"../x", (b".qmail-::/x", None), (b".qmail-default", b"../x"))

    def test_ends_in_default(self) -> None:
        """§13.3: an extension that ends in "default" sets $DEFAULT itself."""
        self.check(
            b"-",
            b"a-DeFault",
            (b".qmail-a-default", b"DeFault"),
            (b".qmail-a-default", b"DeFault"),
            (b".qmail-default", b"a-DeFault"),
        )

    @given(NO_NUL)
    def test_never_upwards(self, ext: bytes) -> None:
        """§26.8: no candidate leaves the directory by ".."."""
        for candidate in candidates(b"-", ext):
            self.assertTrue(candidate.name.startswith(b".qmail-"))
            self.assertNotIn(b"..", candidate.name)


class InstructionTests(SynchronousTestCase):
    """§13.5."""

    def check(self, text: bytes, *expected: object) -> None:
        self.assertEqual(list(instructions(text)), list(expected))

    def test_kinds(self) -> None:
        self.check(
            b"# comment\n./Mailbox\n/var/mail/joe\n./Maildir/\n|cat >x\n&joe@x\njoe@y\n+list\n+other\n+list x\n",
            Mbox(b"./Mailbox"),
            Mbox(b"/var/mail/joe"),
            Maildir(b"./Maildir/"),
            Program(b"cat >x"),
            Forward(b"joe@x"),
            Forward(b"joe@y"),
            ForwardOnly(),
        )

    def test_blanks(self) -> None:
        """Trailing blanks go, leading ones stay; only a blank first line is an error; the last LF may be missing."""
        self.check(b"./Maildir/ \t \n \n\n\t\njoe", Maildir(b"./Maildir/"), Forward(b"joe"))
        self.check(b" ./Mailbox\n", Forward(b" ./Mailbox"))
        self.check(b"| x \n", Program(b" x"))
        self.check(b" \t\njoe\n", BlankStart(), Forward(b"joe"))
        self.check(b"\n", BlankStart())
        self.check(b"#\n\n")

    def test_no_syntax_in_addresses(self) -> None:
        self.check(b"& joe\n&<joe@x>\n&a@b, c@d\n&\n", *map(Forward, (b" joe", b"<joe@x>", b"a@b, c@d", b"")))

    def test_carriage_return_is_text(self) -> None:
        self.check(b"./Maildir/\r\n", Mbox(b"./Maildir/\r"))

    def test_nul(self) -> None:
        self.check(b"./Mailbox\0/\n|cat\0rm\n", Mbox(b"./Mailbox"), Program(b"cat"))

    @given(st.binary())
    def test_any_text(self, text: bytes) -> None:
        """Any text is understood; nothing that comes out holds a NUL or a LF."""
        for instruction in instructions(text):
            for value in (getattr(instruction, name, b"") for name in ("path", "command", "address")):
                self.assertNotIn(b"\0", value)
                self.assertNotIn(b"\n", value)


class LineTests(SynchronousTestCase):
    """§13.2."""

    def test_delivered_to(self) -> None:
        self.assertEqual(environment.delivered_to(b"me-x", b"y.test"), b"Delivered-To: me-x@y.test\n")
        self.assertEqual(environment.delivered_to(b"a\nb", b"c\nd"), b"Delivered-To: a_b@c_d\n")

    def test_return_path(self) -> None:
        self.assertEqual(environment.return_path(b"joe@x"), b"Return-Path: <joe@x>\n")
        self.assertEqual(environment.return_path(b""), b"Return-Path: <>\n")
        self.assertEqual(environment.return_path(b"a b@x"), b'Return-Path: <"a b"@x>\n')
        self.assertEqual(environment.return_path(b"a@x\ny"), b"Return-Path: <a@x_y>\n")

    def test_from_line(self) -> None:
        self.assertEqual(environment.from_line(b"joe@x", 0), b"From joe@x Thu Jan 01 00:00:00 1970\n")
        self.assertEqual(environment.from_line(b"", 0), b"From MAILER-DAEMON Thu Jan 01 00:00:00 1970\n")
        self.assertEqual(environment.from_line(b"a b\tc\nd@x", 0), b"From a-b-c-d@x Thu Jan 01 00:00:00 1970\n")

    @given(NO_NUL, NO_NUL, NO_NUL)
    def test_one_line_each(self, local: bytes, domain: bytes, sender: bytes) -> None:
        """No address can smuggle in a line of its own."""
        for line in (
            environment.delivered_to(local, domain),
            environment.return_path(sender),
            environment.from_line(sender, 0),
        ):
            self.assertEqual(line.index(b"\n"), len(line) - 1)

    def test_forwarding_sender(self) -> None:
        """§13.6."""
        for sender, owner, default, expected in [
            (b"", True, True, b""),
            (b"#@[]", True, True, b"#@[]"),
            (b"joe@x", False, False, b"joe@x"),
            (b"joe@x", False, True, b"joe@x"),
            (b"joe@x", True, False, b"list-owner@y"),
            (b"joe@x", True, True, b"list-owner-@y-@[]"),
        ]:
            self.assertEqual(environment.forwarding_sender(sender, b"list", b"y", owner, default), expected)


class VariableTests(SynchronousTestCase):
    """§13.3."""

    def variables(self, ext: bytes = b"", domain: bytes = b"x", default: bytes | None = None) -> dict[bytes, bytes]:
        return dict(
            environment.variables(
                user=b"u",
                home=b"/h",
                local=b"u-" + ext,
                domain=domain,
                ext=ext,
                sender=b"joe@z",
                new_sender=b"n@z",
                now=0,
                default=default,
            )
        )

    def test_all(self) -> None:
        self.assertEqual(
            self.variables(b"A-b-c-d-e", b"mx.a.b", b"d-e"),
            {
                b"USER": b"u",
                b"HOME": b"/h",
                b"LOCAL": b"u-A-b-c-d-e",
                b"HOST": b"mx.a.b",
                b"HOST2": b"mx.a",
                b"HOST3": b"mx",
                b"HOST4": b"mx",
                b"RECIPIENT": b"u-A-b-c-d-e@mx.a.b",
                b"SENDER": b"joe@z",
                b"NEWSENDER": b"n@z",
                b"EXT": b"A-b-c-d-e",
                b"EXT2": b"b-c-d-e",
                b"EXT3": b"c-d-e",
                b"EXT4": b"d-e",
                b"DTLINE": b"Delivered-To: u-A-b-c-d-e@mx.a.b\n",
                b"RPLINE": b"Return-Path: <joe@z>\n",
                b"UFLINE": b"From joe@z Thu Jan 01 00:00:00 1970\n",
                b"DEFAULT": b"d-e",
            },
        )

    def test_few_parts(self) -> None:
        found = self.variables(b"a")
        self.assertEqual([found[name] for name in (b"EXT", b"EXT2", b"EXT3", b"EXT4")], [b"a", b"", b"", b""])
        self.assertEqual([found[name] for name in (b"HOST2", b"HOST3", b"HOST4")], [b"x"] * 3)
        self.assertNotIn(b"DEFAULT", found)

    def test_hosts(self) -> None:
        for domain, expected in [
            (b"a.b.c.d.e", [b"a.b.c.d", b"a.b.c", b"a.b"]),
            (b".a", [b"", b"", b""]),
            (b"", [b"", b"", b""]),
        ]:
            found = self.variables(domain=domain)
            self.assertEqual([found[name] for name in (b"HOST2", b"HOST3", b"HOST4")], expected)

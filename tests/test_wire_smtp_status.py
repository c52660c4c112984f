"""Enhanced status codes (RFC 2034, 3463): where they stand, and that no reply of ours is without one."""

from __future__ import annotations

import ast
import os
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import qtwist
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import SMTPServer
from tests.test_wire_smtp_server import Transcript, drive

ROOT = os.path.dirname(qtwist.__file__)
QMAILS_FORM = re.compile(rb".*[^ ] \(#([245])\.[0-9]{1,3}\.[0-9]{1,3}\)", re.DOTALL)
ENHANCED_FORM = re.compile(rb"([245])[0-9]{2}[- ]\1\.[0-9]{1,3}\.[0-9]{1,3} .*", re.DOTALL)

#: The rooms in which replies of SMTP are written, and the names of what makes them.
ROOMS = ("wire", "smtpd", "submission", "policy")
MAKERS = ("Reply", "refuse", "Refusal", "_error", "drop")


def negative_replies() -> list[tuple[str, int, bytes]]:
    """Every negative reply that is written down in the servers, as file and line, code and text."""
    found = []
    for room in ROOMS:
        for name in sorted(os.listdir(os.path.join(ROOT, room))):
            path = os.path.join(ROOT, room, name)
            if not name.endswith(".py") or name.startswith(("pop3", "smtp_client")):
                continue
            with open(path, encoding="utf-8") as file:
                tree = ast.parse(file.read())
            for node in ast.walk(tree):
                if isinstance(node, ast.Tuple):
                    arguments = node.elts
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in MAKERS:
                    arguments = node.args
                else:
                    continue
                values = [part.value for part in arguments[:2] if isinstance(part, ast.Constant)]
                if len(values) == 2 and isinstance(values[0], int) and isinstance(values[1], bytes):
                    code, text = values
                    if 400 <= code <= 599:
                        found.append((f"{room}/{name}:{node.lineno}", code, text))
    return found


class Table(SynchronousTestCase):
    def test_every_refusal_has_a_code(self) -> None:
        """Each text ends in the form that administrators look for, with the class of its reply (RFC 2034 §4)."""
        replies = negative_replies()
        self.assertGreater(len(replies), 60)
        for where, code, text in replies:
            with self.subTest(where=where, text=text):
                match = QMAILS_FORM.fullmatch(text)
                assert match is not None, (where, text)
                self.assertEqual(int(match[1]), code // 100, (where, text))

    def test_forms(self) -> None:
        for code, text, default, wanted in (
            (553, b"sorry (#5.7.1)", b"0.0", b"553 5.7.1 sorry\r\n"),
            (250, b"ok", b"1.5", b"250 2.1.5 ok\r\n"),
            (250, b"ok", b"0.0", b"250 2.0.0 ok\r\n"),
            # Texts of policies and lists that have the code in front already.
            (550, b"5.7.1 no", b"0.0", b"550 5.7.1 no\r\n"),
            (550, b"5.7.1 no (#5.1.1)", b"0.0", b"550 5.7.1 no\r\n"),
            (550, b"5.7.1", b"0.0", b"550 5.7.1 \r\n"),
            # The class is that of the reply.
            (451, b"later (#5.7.1)", b"0.0", b"451 4.7.1 later\r\n"),
            (451, b"5.7.1 later", b"0.0", b"451 4.7.1 later\r\n"),
            # Each line has it.
            (550, b"a\nb\n5.1.1 c (#5.7.1)", b"0.0", b"550-5.7.1 a\r\n550-5.7.1 b\r\n550 5.7.1 c\r\n"),
            (354, b"go ahead", b"0.0", b"354 go ahead\r\n"),
            (550, b"see (#5.7.1) there", b"0.0", b"550 5.0.0 see (#5.7.1) there\r\n"),
            (550, b"", b"0.0", b"550 5.0.0 \r\n"),
            (550, b"10.5.7.1 is listed", b"0.0", b"550 5.0.0 10.5.7.1 is listed\r\n"),
            (550, b"5.5.5.5 is listed", b"0.0", b"550 5.0.0 5.5.5.5 is listed\r\n"),
        ):
            with self.subTest(text=text):
                self.assertEqual(Reply(code, text).with_status(default).to_bytes(), wanted)

    @given(st.integers(200, 599), st.binary())
    def test_any_text(self, code: int, text: bytes) -> None:
        lines = Reply(code, text).with_status().to_bytes().split(b"\r\n")
        self.assertEqual(lines.pop(), b"")
        for line in lines:
            self.assertTrue(code // 100 == 3 or ENHANCED_FORM.fullmatch(line), line)


class Dialogue(Transcript):
    def test_after_ehlo(self) -> None:
        """RFC 2034 §4: all replies but the greeting, that to EHLO, and intermediate ones; none after HELO."""
        self.play(
            """
            S: 220 mx.test ESMTP
            C: RCPT TO:<a@b>
            S: 503 MAIL first (#5.5.1)
            C: EHLO c
            S: 250-mx.test
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SMTPUTF8
            S: 250-ENHANCEDSTATUSCODES
            S: 250-DSN
            S: 250-LIMITS RCPTMAX=10000
            S: 250 SIZE
            C: RCPT TO:<a@b>
            S: 503 5.5.1 MAIL first
            C: NOOP
            S: 250 2.0.0 ok
            C: VRFY x
            S: 252 2.5.0 send the mail and see
            C: HELP
            S: 214 2.0.0 ...
            C: MAIL FROM:<a@b>
            S: 250 2.1.0 ok
            C: RCPT TO:<a@b>
            S: 250 2.1.5 ok
            C: DATA
            S: 354 go ahead
            C: .
            S: 250 2.0.0 ok
            C: RSET
            S: 250 2.0.0 flushed
            C: HELO c
            S: 250 mx.test
            C: NOOP
            S: 250 ok
            C: EHLO c
            S: 250-mx.test
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SMTPUTF8
            S: 250-ENHANCEDSTATUSCODES
            S: 250-DSN
            S: 250-LIMITS RCPTMAX=10000
            S: 250 SIZE
            C: QUIT
            S: 221 2.0.0 mx.test
            """
        )

    def test_discarded(self) -> None:
        """What is not announced is not done."""
        engine = SMTPServer(b"mx.test")
        engine.discard = frozenset({b"ENHANCEDSTATUSCODES", b"PIPELINING", b"LIMITS", b"DSN"})
        engine.receive(b"EHLO c\r\nNOOP\r\n")
        drive(engine)
        self.assertEqual(
            engine.data_to_send(),
            b"220 mx.test ESMTP\r\n250-mx.test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE\r\n250 ok\r\n",
        )

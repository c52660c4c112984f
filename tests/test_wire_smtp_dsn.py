"""Tests of the parameters of DSN (RFC 3461 §4) in SMTP, as kept values, and in the queue's records."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail import asked
from qtwist.mail.asked import Asked, Kept
from qtwist.mail.envelope import Envelope
from qtwist.queue.records import format_asked, format_envelope, parse_asked, parse_envelope
from qtwist.queue.routing import Routing
from qtwist.wire.netstring import encode
from qtwist.wire.qmqp import QMQPServer
from qtwist.wire.smtp_dsn import kept_rcpt
from qtwist.wire.smtp_events import Connect, Helo, Mail, Rcpt
from qtwist.wire.smtp_server import SMTPServer

WORDS = st.permutations([b"SUCCESS", b"FAILURE", b"DELAY"])
NOTIFY = st.one_of(st.just(b"NEVER"), st.builds(lambda words, size: b",".join(words[:size]), WORDS, st.integers(1, 3)))
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30).map(str.encode)
MAIL_TEXTS = st.builds(
    lambda ret, envid: b" ".join([*ret, *(b"ENVID=" + asked.encode_xtext(one) for one in envid)]),
    st.lists(st.sampled_from([b"RET=FULL", b"RET=HDRS"]), max_size=1),
    st.lists(PRINTABLE, max_size=1),
)
RCPT_TEXTS = st.builds(
    lambda notify, orcpt: b" ".join(
        [*(b"NOTIFY=" + one for one in notify), *(b"ORCPT=rfc822;" + asked.encode_xtext(one) for one in orcpt)]
    ),
    st.lists(NOTIFY, max_size=1),
    st.lists(PRINTABLE, max_size=1),
)


def talk(*commands: bytes) -> list[bytes]:
    """What a server says to `commands`, one string for each."""
    server = SMTPServer(b"mx.test")
    said = []
    for command in (b"", *commands):
        server.receive(command + b"\r\n" if command else b"")
        while (event := server.next_event()) is not None:
            assert isinstance(event, Connect | Helo | Mail | Rcpt)
            server.accept()
        said.append(server.data_to_send())
    return said[1:]


class SMTPTests(SynchronousTestCase):
    def test_is_announced(self) -> None:
        """§4: the keyword is DSN."""
        self.assertIn(b"250-DSN", talk(b"EHLO x")[0].split())
        self.assertNotIn(b"DSN", talk(b"HELO x")[0])

    def test_discarded(self) -> None:
        """control/ehlodiscard: without the announcement nobody can have reports sent to others."""
        server = SMTPServer(b"mx.test")
        server.discard = frozenset({b"DSN"})
        said = []
        for command in (
            b"",
            b"EHLO x",
            b"MAIL FROM:<a@x> RET=FULL",
            b"MAIL FROM:<a@x>",
            b"RCPT TO:<b@x> NOTIFY=SUCCESS",
        ):
            server.receive(command + b"\r\n" if command else b"")
            while server.next_event() is not None:
                server.accept()
            said.append(server.data_to_send()[:3])
        self.assertEqual(said, [b"220", b"250", b"555", b"250", b"555"])

    def test_letters_of_all_the_world(self) -> None:
        """RFC 6533 §3: they come as they are, or from Postfix their octets as xtext; they are kept in ASCII."""
        said = talk(b"EHLO x", b"MAIL FROM:<a@x> SMTPUTF8", "RCPT TO:<b@x> ORCPT=utf-8;jü+2Bx@x".encode())
        self.assertEqual(said[-1][:3], b"250")
        kept = kept_rcpt({b"ORCPT": "rfc822;jü+2Bx@x".encode()})
        self.assertEqual(kept, b"ORCPT=utf-8;j\\x{FC}+2Bx@x")
        self.assertEqual(kept_rcpt({b"ORCPT": b"rfc822;j+C3+BC+2Bx@x"}), kept)
        self.assertEqual(asked.of_recipient(kept).orcpt, b"utf-8;j\\x{FC}+x@x")
        for wrong in (b"utf-8;j\xff@x", "utf-8;ü ü".encode(), "utf-8;ü=".encode()):
            self.assertEqual(talk(b"EHLO x", b"MAIL FROM:<a@x>", b"RCPT TO:<b@x> ORCPT=" + wrong)[-1][:1], b"5", wrong)

    def test_parameters(self) -> None:
        """§4.1 to §4.4: what is taken, and what is refused with which code."""
        mail = b"MAIL FROM:<a@x> "
        rcpt = b"RCPT TO:<b@x> "
        for command, code in [
            (mail + b"RET=FULL", b"250"),
            (mail + b"ret=hdrs ENVID=QQ314159", b"250"),
            (mail + b"ENVID=a+20b", b"250"),
            (mail + b"RET=NONE", b"501"),
            (mail + b"RET", b"501"),
            (mail + b"RET=FULL RET=FULL", b"501"),
            (mail + b"ENVID=a=b", b"501"),
            (mail + b"ENVID=a+2", b"501"),
            (mail + b"ENVID=a+0Db", b"501"),
            (mail + b"ENVID=" + b"x" * 100, b"250"),
            (mail + b"ENVID=" + b"x" * 101, b"501"),
            (mail + b"NOTIFY=NEVER", b"555"),
            (rcpt + b"NOTIFY=NEVER", b"250"),
            (rcpt + b"NOTIFY=success,Failure,DELAY", b"250"),
            (rcpt + b"NOTIFY=NEVER,DELAY", b"501"),
            (rcpt + b"NOTIFY=DELAY,DELAY", b"501"),
            (rcpt + b"NOTIFY=", b"501"),
            (rcpt + b"ORCPT=rfc822;b+2Bc@x", b"250"),
            (rcpt + b"ORCPT=b@x", b"501"),
            (rcpt + b"ORCPT=rfc822;", b"501"),
            (rcpt + b"ORCPT=rfc822;a+0A", b"501"),
            (rcpt + b"ORCPT=rfc822;" + b"x" * 493, b"250"),
            (rcpt + b"ORCPT=rfc822;" + b"x" * 494, b"501"),
            (rcpt + b"RET=FULL", b"555"),
        ]:
            before = [] if command.startswith(b"MAIL") else [mail]
            self.assertEqual(talk(b"HELO x", *before, command)[-1][:3], code, command)


class ValueTests(SynchronousTestCase):
    @given(PRINTABLE)
    def test_xtext(self, text: bytes) -> None:
        self.assertEqual(asked.decode_xtext(asked.encode_xtext(text)), text)

    def test_meaning(self) -> None:
        """§4.1: nothing said is failure; never is nothing."""
        self.assertTrue(asked.of_recipient(b"").failure)
        self.assertFalse(asked.of_recipient(b"").wants(asked.DELAY))
        self.assertFalse(asked.of_recipient(b"NOTIFY=NEVER").failure)
        self.assertFalse(asked.of_recipient(b"NOTIFY=SUCCESS").failure)
        self.assertTrue(asked.of_recipient(b"NOTIFY=DELAY,SUCCESS").wants(asked.DELAY))
        self.assertEqual(asked.of_recipient(b"ORCPT=rfc822;a+2Bb").orcpt, b"rfc822;a+b")

    @given(st.binary(max_size=60))
    def test_garbage(self, text: bytes) -> None:
        """Whatever is let pass can be said in a command."""
        for read in (asked.of_message, asked.of_recipient):
            try:
                read(text)
            except ValueError:
                continue
            self.assertNotRegex(text, rb"[\r\n\0<>]" if not text.startswith(b"ORCPT") else rb"[\r\n\0]")

    @given(MAIL_TEXTS, st.lists(RCPT_TEXTS, min_size=1, max_size=5))
    def test_travels_with_addresses(self, mail: bytes, texts: list[bytes]) -> None:
        recipients = tuple(b"r%d@x" % number for number in range(len(texts)))
        value = Asked(mail, tuple(texts))
        sender, *others = asked.joined(b"a@x", recipients, value)
        expected = value if mail or any(texts) else None
        self.assertEqual(asked.part(sender, tuple(others)), (b"a@x", recipients, expected))
        server = QMQPServer()
        server.receive(b"".join((b"+1:x,0:,", encode(sender), *map(encode, others), b".")))
        self.assertTrue(server.ended)
        self.assertEqual((server.sender, tuple(server.recipients), server.asked), (b"a@x", recipients, expected))

    def test_at_the_door(self) -> None:
        """Who writes anything else behind the NUL is refused, as before, and so is QMQP proper."""
        for text in (b"a@x\0", b"a@x\0RET=FULL\r\nRCPT", b"a@x\0NOTIFY=NEVER"):
            server = QMQPServer()
            server.receive(b"+1:x,0:," + encode(text) + encode(b"b@x") + b".")
            self.assertEqual(server.refusal and server.refusal[0], 11, text)
            self.assertIsNone(server.asked)
        server = QMQPServer(may_chunk=False)
        server.receive(encode(encode(b"x") + encode(b"a@x\0RET=FULL") + encode(b"b@x")))
        self.assertEqual(server.refusal and server.refusal[0], 11)


class RecordTests(SynchronousTestCase):
    def test_todo(self) -> None:
        """Parameters are records of their own, and there are none without them."""
        envelope = Envelope(b"a@x", (b"b@x", b"c@x"), Asked(b"RET=HDRS", (b"", b"NOTIFY=NEVER")))
        data = format_envelope(7, 8, envelope)
        self.assertEqual(data, b"u7\0p8\0Fa@x\0mRET=HDRS\0Tb@x\0rNOTIFY=NEVER\0Tc@x\0")

    def test_damage(self) -> None:
        for data in (
            b"Fa\0rNOTIFY=NEVER\0",
            b"rNOTIFY=NEVER\0Fa\0Tb\0",
            b"Fa\0rNOTIFY=X\0Tb\0",
            b"Fa\0mRET=FULL \0Tb\0",
            b"Fa\0mNOTIFY=NEVER\0Tb\0",
        ):
            self.assertRaises(ValueError, parse_envelope, [data], "todo/5", lambda _: None)
        for data in (b"m", b"m\0r12\0", b"m\0x12 NOTIFY=NEVER\0", b"mX\0", b"m\0l1 NOTIFY=NEVER", b"m\0\0"):
            self.assertRaises(ValueError, parse_asked, data, "info/5")
        self.assertIsNone(parse_asked(b"", "info/5"))
        self.assertIsNone(parse_asked(b"garbage", "info/5"))

    @given(MAIL_TEXTS, st.lists(RCPT_TEXTS, min_size=1, max_size=8), st.integers(1, 50))
    def test_from_todo_to_info(self, mail: bytes, texts: list[bytes], size: int) -> None:
        """Whatever the envelope said of a recipient is found by the place of its record in its channel's file."""
        recipients = tuple(b"r%d@x" % number for number in range(len(texts)))
        data = format_envelope(1, 2, Envelope(b"a@x", recipients, Asked(mail, tuple(texts))))
        files = {"local": b"", "remote": b""}
        routing = Routing(lambda address: ("local" if int(address[1:2]) % 3 else "remote", b"x-" + address))

        def take(some: list[bytes]) -> None:
            for channel, addresses in routing.take(some).items():
                files[channel] += b"".join(b"T%s\0" % address for address in addresses)

        blocks = [data[start : start + size] for start in range(0, len(data), size)]
        head = parse_envelope(blocks, "todo/5", take, routing.asked)
        kept = routing.kept(head.asked_mail)
        self.assertEqual(kept, parse_asked(format_asked(kept), "info/5"))
        if not (mail or any(texts)):
            self.assertIsNone(kept)
            return
        assert isinstance(kept, Kept)
        self.assertEqual(kept.mail, mail)
        found = {}
        for (channel, offset), text in kept.recipients.items():
            address = files[channel][offset + 1 : files[channel].index(b"\0", offset)]
            found[address.removeprefix(b"x-")] = text
        self.assertEqual(found, {one: text for one, text in zip(recipients, texts, strict=True) if text})

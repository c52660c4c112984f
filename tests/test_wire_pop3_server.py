"""The POP3 server engine: transcripts, bodies, bounds, and that it never stumbles (RFC 1939, 2449, 5034; spec §18)."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.pop3_events import Finish, Login, Quit, Retrieve, SizesWanted, UidsWanted
from qtwist.wire.pop3_message import MessageEncoder
from qtwist.wire.pop3_server import MAX_LINE, MAX_SKIPPED, Limits, POP3Server
from qtwist.wire.sasl import Secret
from qtwist.wire.sasl_mechanisms import Claimed

TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"
MESSAGES = (b"Subject: a\n\n1\n2\n.3\n", b"Subject: b\n\nhalf a line", b"\nno header\n")
UIDS = (b"one", b"two", b"three")


def wire(message: bytes) -> bytes:
    """The definition, line by line (RFC 1939 §3)."""
    lines = message.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


SIZES = tuple(len(message) + message.count(b"\n") + (not message.endswith(b"\n")) * 2 for message in MESSAGES)


class Mailbox:
    """Answers an engine's questions at once, as a shell would with these MESSAGES."""

    def __init__(self, engine: POP3Server, password: bytes = b"secret", step: int = 7) -> None:
        self.engine = engine
        self.password = password
        self.step = step
        self.logins: list[Login] = []
        self.claims: list[Claimed] = []
        self.finish: Finish | None = None
        self.asked: list[object] = []
        self.failed = 0

    def run(self) -> None:
        engine = self.engine
        while (event := engine.next_event()) is not None:
            self.asked.append(event)
            if isinstance(event, Login):
                self.logins.append(event)
                if event.password == self.password or event.digest:
                    engine.logged_in(len(MESSAGES))
                else:
                    engine.refuse(b"no", b"AUTH")
            elif isinstance(event, Claimed):
                self.claims.append(event)
                if isinstance(event.claim, Secret) and event.claim.password != self.password:
                    engine.refuse(b"no", b"AUTH")
                else:
                    engine.logged_in(len(MESSAGES))
            elif isinstance(event, SizesWanted):
                engine.give_sizes(SIZES)
            elif isinstance(event, UidsWanted):
                engine.give_uids(UIDS)
            elif isinstance(event, Retrieve):
                self.send(MESSAGES[event.index])
            elif isinstance(event, Finish):
                self.finish = event
                engine.finished(self.failed)

    def send(self, message: bytes) -> None:
        self.engine.begin_message()
        for start in range(0, len(message), self.step):
            if not self.engine.message_part(message[start : start + self.step]):
                break
        self.engine.end_message()


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = POP3Server(TIMESTAMP, plaintext=True)
        self.mailbox = Mailbox(self.engine)

    def client(self, *lines: bytes) -> bytes:
        self.engine.receive(b"".join(line + b"\r\n" for line in lines))
        self.mailbox.run()
        return self.engine.data_to_send()

    def log_in(self) -> None:
        self.assertEqual(self.client(b"USER joe", b"PASS secret"), b"+OK \r\n+OK \r\n")

    def transcript(self, text: str) -> None:
        """``C:`` lines are sent, and what comes has to be the ``S:`` lines that follow."""
        sent: list[bytes] = []
        wanted: list[bytes] = []

        def check() -> None:
            if sent or wanted:
                answer = self.client(*sent)
                self.assertEqual(answer, b"".join(line + b"\r\n" for line in wanted), f"after {sent}")
                sent.clear()
                wanted.clear()

        for line in text.strip().splitlines():
            who, _, what = line.strip().partition(": ")
            if who == "C":
                if wanted:
                    check()
                sent.append(what.encode("latin-1"))
            else:
                # The editor may not keep a blank at the end of a line: S: +OK means "+OK ".
                wanted.append(b"+OK " if what == "+OK" else what.encode("latin-1"))
        check()


class Authorization(Case):
    def test_greeting(self) -> None:
        """Spec §18.1; RFC 1939 §7: the time stamp is in the greeting."""
        self.engine.greet()
        self.assertEqual(self.engine.data_to_send(), b"+OK " + TIMESTAMP + b"\r\n")

    def test_user_and_pass(self) -> None:
        """RFC 1939 §7; blanks may be part of a password (§18.1)."""
        self.mailbox.password = b" two  words "
        self.transcript("C: user  joe\nS: +OK")
        self.assertEqual(self.client(b"PASS  two  words "), b"+OK \r\n")
        self.assertEqual(self.mailbox.logins, [Login(b"joe", b" two  words ", None, "USER")])

    def test_longest_password(self) -> None:
        self.mailbox.password = b"x" * 1024
        self.client(b"USER joe")
        self.assertEqual(self.client(b"PASS " + b"x" * 1025), b"-ERR a password of at most 1024 octets is needed\r\n")
        self.client(b"USER joe")
        self.assertEqual(self.client(b"PASS " + b"x" * 1024), b"+OK \r\n")

    def test_wrong(self) -> None:
        """A failure needs USER again, and says no more than that (RFC 3206 §5)."""
        self.transcript("""
            C: PASS secret
            S: -ERR USER first
            C: USER
            S: -ERR a name of at most 1024 octets is needed
            C: USER joe
            S: +OK
            C: PASS
            S: -ERR a password of at most 1024 octets is needed
            C: USER joe
            S: +OK
            C: PASS guess
            S: -ERR [AUTH] no
            C: PASS secret
            S: -ERR USER first
            C: NOOP
            S: +OK
            C: STAT
            S: -ERR log in first
            C: XYZZY
            S: -ERR no such command
            C: QUIT
            S: +OK
            """)
        self.assertTrue(self.engine.closed)
        self.assertEqual(self.mailbox.asked[-1], Quit())

    def test_the_fifth_wrong_password_is_the_last(self) -> None:
        replies = self.client(*(b"USER joe", b"PASS guess") * 6)
        self.assertEqual(replies.count(b"-ERR [AUTH]"), 5)
        self.assertEqual(len(self.mailbox.logins), 5)
        self.assertTrue(self.engine.closed)

    def test_apop(self) -> None:
        """RFC 1939 §7; the last word is the digest."""
        digest = b"c4c9334bac560ecc979e58001b3e22fb"
        self.assertEqual(self.client(b"APOP mrose " + digest), b"+OK \r\n")
        self.assertEqual(self.mailbox.logins, [Login(b"mrose", None, digest, "APOP")])
        for wrong in (b"mrose", b"mrose x", b"mrose " + digest[1:] + b"g", digest, b""):
            engine = POP3Server(TIMESTAMP)
            engine.receive(b"APOP " + wrong + b"\r\n")
            self.assertIsNone(engine.next_event())
            self.assertTrue(engine.data_to_send().startswith(b"-ERR a name and"))

    def test_auth_plain(self) -> None:
        """RFC 5034 §4, RFC 4616: with and without an initial response."""
        secret = base64.b64encode(b"\0joe\0secret")
        self.transcript(f"C: AUTH PLAIN {secret.decode()}\nS: +OK")
        other = POP3Server(TIMESTAMP, plaintext=True)
        self.engine, self.mailbox.engine = other, other
        self.assertEqual(self.client(b"AUTH plain"), b"+ \r\n")
        self.assertEqual(self.client(secret), b"+OK \r\n")
        self.assertEqual(self.mailbox.claims, [Claimed(Secret(b"", b"joe", b"secret"), "PLAIN")] * 2)

    def test_auth_login(self) -> None:
        self.transcript("""
            C: AUTH LOGIN
            S: + VXNlcm5hbWU6
            C: am9l
            S: + UGFzc3dvcmQ6
            C: c2VjcmV0
            S: +OK
            """)

    def test_auth_errors(self) -> None:
        acting = base64.b64encode(b"ann\0joe\0secret").decode()
        self.transcript(f"""
            C: AUTH
            S: +OK
            S: PLAIN
            S: LOGIN
            S: .
            C: AUTH DIGEST-MD5
            S: -ERR no such mechanism
            C: AUTH LOGIN
            S: + VXNlcm5hbWU6
            C: *
            S: -ERR cancelled
            C: AUTH PLAIN !!!
            S: -ERR the response is malformed
            C: AUTH PLAIN {acting}
            S: -ERR nobody may act for somebody else
            C: AUTH PLAIN a b
            S: -ERR a mechanism and at most one response are needed
            """)
        self.assertEqual(self.mailbox.logins, [])

    def test_passwords_in_the_clear(self) -> None:
        """They are refused before they are sent where that can be, and not offered (issue 4 item 2)."""
        for secure in (False, True):
            self.engine = POP3Server(TIMESTAMP, secured=secure)
            self.mailbox = Mailbox(self.engine)
            capabilities = self.client(b"CAPA").split(b"\r\n")
            self.assertEqual(b"USER" in capabilities, secure)
            self.assertEqual(b"SASL PLAIN LOGIN" in capabilities, secure)
            answers = self.client(b"USER joe", b"PASS secret", b"AUTH PLAIN").split(b"\r\n")[:-1]
            refusals = [answer.startswith(b"-ERR [SYS/PERM] passwords are taken over an encr") for answer in answers]
            self.assertEqual(refusals, [not secure] * 3)
            self.assertEqual(len(self.mailbox.logins), secure)

    def test_capa(self) -> None:
        """RFC 2449 §5: the same in both states."""
        before = self.client(b"CAPA")
        self.assertEqual(
            before.split(b"\r\n"),
            [
                b"+OK ",
                b"TOP",
                b"UIDL",
                b"PIPELINING",
                b"RESP-CODES",
                b"AUTH-RESP-CODE",
                b"UTF8 USER",
                b"EXPIRE NEVER",
                b"IMPLEMENTATION qtwist",
                b"USER",
                b"SASL PLAIN LOGIN",
                b".",
                b"",
            ],
        )
        self.log_in()
        self.assertEqual(self.client(b"CAPA"), before)

    def test_utf8(self) -> None:
        """RFC 6856 §2.1: before the login only; names may be UTF-8."""
        self.transcript("C: UTF8\nS: +OK")
        self.assertTrue(self.engine.utf8)
        self.client("USER jörg".encode(), b"PASS secret")
        self.assertEqual(self.mailbox.logins[0].username, "jörg".encode())
        self.transcript("C: UTF8\nS: -ERR you have logged in already")


class Transaction(Case):
    def setUp(self) -> None:
        super().setUp()
        self.log_in()

    def test_stat_counts_no_deleted_messages(self) -> None:
        """RFC 1939 §5; qmail-pop3d counts them (spec §26.5)."""
        self.transcript(f"""
            C: STAT
            S: +OK 3 {sum(SIZES)}
            C: DELE 2
            S: +OK
            C: STAT
            S: +OK 2 {SIZES[0] + SIZES[2]}
            C: RSET
            S: +OK
            C: STAT
            S: +OK 3 {sum(SIZES)}
            """)

    def test_stat_after_dele(self) -> None:
        """The sizes are asked for when they are needed, which may be after the first DELE."""
        self.transcript(f"C: DELE 1\nC: STAT\nS: +OK\nS: +OK 2 {SIZES[1] + SIZES[2]}")

    def test_list_and_uidl(self) -> None:
        self.transcript(f"""
            C: LIST
            S: +OK
            S: 1 {SIZES[0]}
            S: 2 {SIZES[1]}
            S: 3 {SIZES[2]}
            S: .
            C: LIST 2
            S: +OK 2 {SIZES[1]}
            C: UIDL 3
            S: +OK 3 three
            C: DELE 2
            S: +OK
            C: UIDL
            S: +OK
            S: 1 one
            S: 3 three
            S: .
            C: LIST 2
            S: -ERR that message is deleted
            """)
        self.assertEqual([type(event) for event in self.mailbox.asked].count(SizesWanted), 1)

    def test_numbers(self) -> None:
        """Spec §18.2: each kind of wrong number has its own answer."""
        for command in (b"RETR", b"DELE", b"TOP"):
            for word, answer in (
                (b"", b"a message number is needed"),
                (b"x", b"a message number is needed"),
                (b"-1", b"a message number is needed"),
                (b"0", b"messages are counted from 1"),
                (b"4", b"there are not so many messages"),
                (b"9" * 4000, b"there are not so many messages"),
            ):
                self.assertEqual(self.client(command + b" " + word), b"-ERR " + answer + b"\r\n")

    def test_retr(self) -> None:
        for number, message in enumerate(MESSAGES, 1):
            self.assertEqual(self.client(b"RETR %d" % number), b"+OK \r\n" + wire(message))

    def test_top(self) -> None:
        """RFC 1939 §7: the header, the blank line, and so many lines."""
        self.transcript("""
            C: TOP 1 0
            S: +OK
            S: Subject: a
            S:
            S: .
            C: TOP 1 2
            S: +OK
            S: Subject: a
            S:
            S: 1
            S: 2
            S: .
            C: TOP 2 1
            S: +OK
            S: Subject: b
            S:
            S: half a line
            S: .
            C: TOP 1 x
            S: -ERR a message number and a number of lines are needed
            """)
        self.assertEqual(self.client(b"TOP 1 99999999999999999999"), b"+OK \r\n" + wire(MESSAGES[0]))
        self.assertEqual(self.client(b"TOP 1"), b"+OK \r\n" + wire(MESSAGES[0]))
        self.client(b"QUIT")
        self.assertEqual(self.mailbox.finish, Finish((), ()))

    def test_last(self) -> None:
        """Spec §18.2: the highest number deleted, until RSET."""
        self.transcript("""
            C: DELE 2
            C: DELE 1
            C: LAST
            C: RSET
            C: LAST
            S: +OK
            S: +OK
            S: +OK 2
            S: +OK
            S: +OK 0
            """)

    def test_quit(self) -> None:
        """RFC 1939 §6. RSET forgets what was deleted, not what was read."""
        self.client(b"RETR 1", b"RETR 2", b"DELE 3", b"RSET", b"DELE 2")
        self.assertEqual(self.client(b"QUIT", b"NOOP"), b"+OK \r\n")
        self.assertEqual(self.mailbox.finish, Finish((1,), (0,)))
        self.assertTrue(self.engine.closed)

    def test_failed_deletion(self) -> None:
        """qmail-pop3d answers +OK all the same (spec §26.5)."""
        self.mailbox.failed = 1
        self.client(b"DELE 2")
        self.assertEqual(self.client(b"QUIT"), b"-ERR 1 deleted messages could not be removed\r\n")
        self.assertTrue(self.engine.closed)

    def test_message_gone(self) -> None:
        self.engine.receive(b"RETR 1\r\nNOOP\r\n")
        self.assertEqual(self.engine.next_event(), Retrieve(0, True))
        self.assertIsNone(self.engine.next_event())  # NOOP has to wait
        self.engine.refuse(b"gone\r\n+OK", b"")
        self.assertIsNone(self.engine.next_event())
        self.assertEqual(self.engine.data_to_send(), b"-ERR gone+OK\r\n+OK \r\n")

    def test_long_listing_comes_in_parts(self) -> None:
        engine = POP3Server(TIMESTAMP, plaintext=True)
        engine.receive(b"USER joe\r\nPASS x\r\nLIST\r\nNOOP\r\n")
        self.assertIsInstance(engine.next_event(), Login)
        engine.logged_in(2500)
        self.assertEqual(engine.next_event(), SizesWanted())
        engine.give_sizes(range(2500))
        self.assertEqual(engine.data_to_send(), b"+OK \r\n+OK \r\n")  # of USER and PASS
        parts = []
        while engine.next_event() is not None:
            parts.append(engine.data_to_send())
        self.assertEqual(len(parts), 3)
        lines = b"".join([*parts, engine.data_to_send()]).split(b"\r\n")
        self.assertEqual(lines, [b"+OK ", *(b"%d %d" % (n + 1, n) for n in range(2500)), b".", b"+OK ", b""])


class Bounds(Case):
    def test_bare_lf(self) -> None:
        """Spec §2.10."""
        self.engine.receive(b"NOOP\nNOOP\r\n")
        self.mailbox.run()
        self.assertEqual(self.engine.data_to_send(), b"+OK \r\n+OK \r\n")

    def test_long_lines(self) -> None:
        self.assertEqual(self.client(b"NOOP " + b"x" * (MAX_LINE - 5)), b"+OK \r\n")
        self.assertTrue(self.client(b"NOOP " + b"x" * (MAX_LINE - 4)).startswith(b"-ERR the line is too long"))
        self.engine.receive(b"x" * MAX_SKIPPED)
        self.mailbox.run()
        self.assertFalse(self.engine.closed)
        self.assertEqual(self.client(b"y", b"NOOP"), b"-ERR the line is too long\r\n")
        self.assertTrue(self.engine.closed)

    def test_nul(self) -> None:
        self.assertTrue(self.client(b"NOOP\0").startswith(b"-ERR"))

    def test_errors(self) -> None:
        self.engine = self.mailbox.engine = POP3Server(TIMESTAMP, limits=Limits(errors=3))
        self.assertEqual(
            self.client(*[b"x"] * 5), b"-ERR no such command\r\n-ERR no such command\r\n-ERR too many errors\r\n"
        )

    def test_unread_input(self) -> None:
        self.engine.receive(b"NOOP\r\n" * 20000)
        self.assertFalse(self.engine.wants_input)
        self.mailbox.run()
        self.assertTrue(self.engine.wants_input)

    def test_misuse(self) -> None:
        for call in (lambda: self.engine.logged_in(1), lambda: self.engine.refuse(b"x"), self.engine.begin_message):
            self.assertRaises(RuntimeError, call)


COMMANDS = [
    b"USER joe",
    b"PASS secret",
    b"APOP joe " + b"0" * 32,
    b"AUTH LOGIN",
    b"AUTH PLAIN",
    b"am9l",
    b"c2VjcmV0",
    b"AGpvZQBzZWNyZXQ=",
    b"*",
    b"CAPA",
    b"STAT",
    b"LIST",
    b"UIDL",
    b"LIST 1",
    b"RETR 1",
    b"RETR 2",
    b"TOP 1 1",
    b"DELE 1",
    b"DELE 3",
    b"RSET",
    b"LAST",
    b"NOOP",
    b"QUIT",
    b"UTF8",
]
inputs = st.lists(
    st.one_of(st.sampled_from(COMMANDS), st.binary(max_size=30)).map(lambda line: line + b"\r\n"), max_size=30
).map(b"".join)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    at = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(at)]


class Properties(SynchronousTestCase):
    @given(inputs, st.lists(st.integers(0, 1000), max_size=8))
    @settings(deadline=None)
    def test_the_split_does_not_matter(self, data: bytes, places: list[int]) -> None:
        outputs = []
        for pieces in ([data], cut(data, places)):
            mailbox = Mailbox(POP3Server(TIMESTAMP, plaintext=True))
            output = []
            for piece in pieces:
                mailbox.engine.receive(piece)
                mailbox.run()
                output.append(mailbox.engine.data_to_send())
            outputs.append((b"".join(output), mailbox.logins, mailbox.finish, mailbox.engine.closed))
        self.assertEqual(*outputs)

    @given(st.lists(st.one_of(inputs, st.binary(max_size=9000)), max_size=5))
    @settings(deadline=None)
    def test_any_bytes(self, pieces: list[bytes]) -> None:
        """They are parsed or answered with -ERR; every line of an answer is one of ours."""
        mailbox = Mailbox(POP3Server(TIMESTAMP, plaintext=True))
        for piece in pieces:
            mailbox.engine.receive(piece)
            mailbox.run()
        output = mailbox.engine.data_to_send()
        self.assertTrue(not output or output.endswith(b"\r\n"))
        if not mailbox.engine.in_transaction:
            for line in output.split(b"\r\n")[:-1]:
                self.assertTrue(re.match(rb"\+OK |-ERR |\+ |\.$|[A-Z]", line), line)

    @given(st.lists(st.sampled_from([b"\n", b".", b"\r", b"x", b"\0", b"\n.", b"\n\n"])).map(b"".join), st.data())
    @settings(deadline=None)
    def test_message(self, message: bytes, data: st.DataObject) -> None:
        """However it is split: the definition, and undone it is the file again."""
        places = data.draw(st.lists(st.integers(0, 60), max_size=5))
        encoder = MessageEncoder()
        encoded = b"".join([encoder.encode(piece) for piece in cut(message, places)]) + encoder.finish()
        self.assertEqual(encoded, wire(message))

    def test_blank_line_octet_by_octet(self) -> None:
        """The end of the header is found wherever a read from the disk happens to end; here with CRLF in the file."""
        for message, shown in ((b"a: b\n\r\nx\ny\n", b"a: b\n\r\nx\n"), (b"a: b\n\nx\ny\n", b"a: b\n\nx\n")):
            encoder = MessageEncoder(1)
            encoded = b"".join(encoder.encode(bytes([octet])) for octet in message)
            self.assertEqual(encoded + encoder.finish(), wire(shown))

    @given(
        st.lists(st.sampled_from([b"\n", b".", b"x", b"\n\n", b"\n\r\n"])).map(b"".join),
        st.integers(0, 6),
        st.lists(st.integers(0, 60), max_size=5),
    )
    @settings(deadline=None)
    def test_top(self, message: bytes, count: int, places: list[int]) -> None:
        lines = message.splitlines(keepends=True)
        blank = next((n for n, line in enumerate(lines) if line in (b"\n", b"\r\n")), len(lines))
        wanted = b"".join(lines[: blank + 1 + count])
        encoder = MessageEncoder(count)
        output = []
        for piece in cut(message, places):
            output.append(encoder.encode(piece))
            if encoder.complete:
                break
        self.assertEqual(b"".join(output) + encoder.finish(), wire(wanted))

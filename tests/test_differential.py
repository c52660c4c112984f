"""Our formats against other people's readers and writers of them: Python's standard library and Twisted.

What Debian's programs say is asked elsewhere: cdb in test_files_cdb, tcprules in test_commands_cdb, Postfix, fetchmail
and others in e2e.
"""

from __future__ import annotations

import email
import email.policy
import email.utils
import io
import mailbox
import os
import re
import smtplib
from datetime import datetime, timezone

from hypothesis import given
from hypothesis import strategies as st
from twisted.protocols.basic import NetstringReceiver
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.files.maildir import deliver_to_maildir
from qtwist.files.mbox import deliver_to_mbox
from qtwist.inject.addresses import rewrite_field
from qtwist.inject.splitting import Splitter
from qtwist.inject.tokens import parse, unquote
from qtwist.local.environment import delivered_to, from_line, return_path
from qtwist.mail.dates import ctime_date, rfc822_date
from qtwist.wire.dot_stuffing import DotStuffer
from qtwist.wire.netstring import encode, split
from qtwist.wire.smtp_body import BodyDecoder

ATOMS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
LINES = st.lists(
    st.sampled_from([b"", b".", b"..", b"From me", b">From you", b"text", b"\xe4\xf6", b" indented"]), max_size=12
)
SECONDS = st.integers(0, 4_000_000_000)


class Mailboxes(SynchronousTestCase):
    """What a delivery leaves, read by `mailbox`."""

    def setUp(self) -> None:
        self.disk = RealDisk()

    def message(self, text: bytes) -> int:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(text)
        fd = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        return fd

    def test_maildir(self) -> None:
        path = os.path.abspath(self.mktemp())
        theirs = mailbox.Maildir(path)
        texts = [b"Subject: %d\n\nbody %d\n" % (number, number) for number in range(20)]
        for text in texts:
            deliver_to_maildir(self.disk, os.fsencode(path) + b"/", self.message(text), b"", 1.7e9, b"a.test")
        self.assertEqual(sorted(theirs.get_bytes(key) for key in theirs.iterkeys()), sorted(texts))
        self.assertEqual({theirs.get_message(key).get_subdir() for key in theirs.iterkeys()}, {"new"})

    @given(st.lists(LINES.map(b"\n".join), min_size=1, max_size=4))
    def test_mbox(self, bodies: list[bytes]) -> None:
        """As many messages as were delivered, whatever their lines begin with."""
        path = os.path.abspath(self.mktemp())
        head = from_line(b"joe@x.test", 1.7e9) + return_path(b"joe@x.test") + delivered_to(b"ann", b"x.test")
        for number, body in enumerate(bodies):
            text = b"Subject: %d\n\n" % number + body
            deliver_to_mbox(self.disk, os.fsencode(path), self.message(text), head)
        theirs = mailbox.mbox(path)
        self.addCleanup(theirs.close)
        found = list(theirs)
        self.assertEqual([one["Subject"] for one in found], [str(number) for number in range(len(bodies))])
        for one, body in zip(found, bodies, strict=True):
            # Python quotes no From line twice when it writes, and unquotes none when it reads.
            wanted = re.sub(rb"(?m)^(>*From )", rb">\1", body).rstrip(b"\n")
            self.assertEqual(one.as_bytes().partition(b"\n\n")[2].rstrip(b"\n"), wanted)


class Headers(SynchronousTestCase):
    @given(SECONDS)
    def test_dates(self, seconds: int) -> None:
        """RFC 5322 section 3.3; the mbox line has the form of asctime, but for the zero of the day (§14.1)."""
        ours = rfc822_date(seconds).decode().strip()
        self.assertEqual(email.utils.parsedate_to_datetime(ours).timestamp(), seconds)
        then = datetime.fromtimestamp(seconds, timezone.utc)
        self.assertEqual(ctime_date(seconds).decode().strip(), then.strftime("%a %b %d %H:%M:%S %Y"))

    @given(st.lists(st.tuples(ATOMS, ATOMS, st.sampled_from(["plain", "angle", "quoted", "comment"])), min_size=1))
    def test_addresses(self, people: list[tuple[str, str, str]]) -> None:
        """The addresses that email.utils finds in a list, in the ways in which mail programs write them."""
        forms = {
            "plain": "{0}@{1}.test",
            "angle": "{0} <{0}@{1}.test>",
            "quoted": '"{1}, {0}" <{0}@{1}.test>',
            "comment": "{0}@{1}.test ({1} \\( {0})",
        }
        text = ", ".join(forms[form].format(local, domain) for local, domain, form in people)
        found: list[bytes] = []

        def note(address: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
            found.append(unquote(address))
            return address

        rewrite_field(parse(b"To: " + text.encode() + b"\n"), note)
        theirs = [address for _, address in email.utils.getaddresses([text])]
        # Ours come in the order in which qmail finds them, from the end of each group.
        self.assertEqual(sorted(found), sorted(address.encode() for address in theirs))

    @given(
        st.lists(st.tuples(ATOMS, st.lists(ATOMS, min_size=1, max_size=3)), min_size=1, max_size=6),
        LINES.map(b"\n".join),
        st.integers(1, 50),
    )
    def test_fields(self, fields: list[tuple[str, list[str]]], body: bytes, step: int) -> None:
        """Fields, continuation lines and body are cut where email.parser cuts them."""
        lines = [f"{name}: " + "\n\t".join(values) + "\n" for name, values in fields]
        text = "".join(lines).encode() + b"\n" + body
        splitter = Splitter(text[at : at + step] for at in range(0, len(text), step))
        got = list(splitter.fields())
        rest = b"".join(splitter.body())
        theirs = email.message_from_bytes(text, policy=email.policy.compat32)
        self.assertEqual(len(got), len(theirs.items()))
        self.assertEqual([one.decode() for one in got], [f"{name}: {value}\n" for name, value in theirs.items()])
        self.assertEqual(rest, b"\n" + body + b"\n" * (body != b"" and not body.endswith(b"\n")))


class Wire(SynchronousTestCase):
    @given(st.lists(st.binary(max_size=50), max_size=5))
    def test_netstrings(self, contents: list[bytes]) -> None:
        """Twisted reads what we write, and writes what we read."""

        class Receiver(NetstringReceiver):
            def __init__(self) -> None:
                self.got: list[bytes] = []

            def stringReceived(self, string: bytes) -> None:
                self.got.append(string)

        receiver = Receiver()
        receiver.makeConnection(transport := io.BytesIO())  # type: ignore[arg-type]
        receiver.dataReceived(b"".join(map(encode, contents)))
        self.assertEqual(receiver.got, contents)
        for one in contents:
            receiver.sendString(one)
        self.assertEqual(split(transport.getvalue()), contents)

    @given(LINES)
    def test_transparency(self, lines: list[bytes]) -> None:
        """smtplib's way of quoting dots is ours, and our decoder takes it off."""
        text = b"".join(line + b"\n" for line in lines)
        stuffer = DotStuffer()
        ours = stuffer.encode(text) + stuffer.finish()
        theirs = smtplib._quote_periods(text.replace(b"\n", b"\r\n"))  # type: ignore[attr-defined]
        self.assertEqual(ours, theirs + b".\r\n")
        self.assertEqual(BodyDecoder().feed(theirs + b".\r\nQUIT\r\n"), (text, b"QUIT\r\n"))

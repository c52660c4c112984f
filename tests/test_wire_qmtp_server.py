"""The server's side of QMTP: spec/qmail.md §17.1, §27."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire import qmtp_server as wire
from qtwist.wire.netstring import encode
from qtwist.wire.qmtp_server import CRLFDecoder, Package, QMTPServer


def package(message: bytes, sender: bytes, *recipients: bytes) -> bytes:
    """A package; `message` with its first octet."""
    return encode(message) + encode(sender) + encode(b"".join(map(encode, recipients)))


class Reader:
    """Feeds a server and keeps what it tells; recipients in `bad` are refused, packages answered by `answer`."""

    def __init__(self, databytes: int = 0, pending: int = 32, answers: bool = True) -> None:
        self.server = QMTPServer(pending=pending)
        self.server.databytes = databytes
        self.bad: dict[bytes, bytes] = {}
        self.answers = answers
        self.packages: list[Package] = []
        self.messages: list[bytes] = []
        self.senders: list[tuple[bytes, bytes | None]] = []
        self.recipients: list[list[bytes]] = []
        self.open: list[Package] = []
        self.output = b""
        self.complete = 0

    def seen(self) -> tuple[object, ...]:
        """What must not depend on how the octets were cut."""
        whole = self.complete
        return (self.server.broken, self.messages[:whole], self.recipients[:whole], self.output)

    def feed(self, data: bytes, step: int = 0) -> Reader:
        step = step or len(data) or 1
        for at in range(0, len(data), step):
            self.server.receive(data[at : at + step])
            self.pump()
        return self

    def pump(self) -> None:
        while (event := self.server.next_event()) is not None:
            if isinstance(event, wire.Begin):
                self.packages.append(event.package)
                self.messages.append(b"")
                self.recipients.append([])
            elif isinstance(event, wire.Chunk):
                self.messages[-1] += event.data
            elif isinstance(event, wire.Sender):
                self.senders.append((event.address, event.fault))
            elif isinstance(event, wire.Recipient):
                self.recipients[-1].append(event.address)
                if event.address in self.bad:
                    event.package.refuse(self.bad[event.address])
                else:
                    event.package.take(event.address)
            else:
                self.complete += 1
                if not self.answers:
                    self.open.append(event.package)
                    continue
                self.server.answer(event.package, b"Kok %d" % len(self.packages))
        self.output += self.server.data_to_send()


class PackageTests(SynchronousTestCase):
    def test_transcript(self) -> None:
        """§27, written out."""
        data = b"12:\nSubject: x\n\n,7:joe@a.b,28:10:one@x.test,10:two@x.test,,"
        data = data.replace(b"12:", b"13:")  # the LF counts
        for step in (0, 1, 2, 3, 7):
            reader = Reader().feed(data, step)
            self.assertEqual(reader.server.broken, "")
            self.assertEqual(reader.messages, [b"Subject: x\n\n"])
            self.assertEqual(reader.senders, [(b"joe@a.b", None)])
            self.assertEqual(reader.recipients, [[b"one@x.test", b"two@x.test"]])
            self.assertEqual(reader.output, b"5:Kok 1,5:Kok 1,")
            self.assertFalse(reader.server.in_package)

    def test_line_ends(self) -> None:
        """§17.1: after LF all is copied; after CR, CRLF becomes LF and other CRs stay."""
        for sent, stored in (
            (b"\na\r\nb\r", b"a\r\nb\r"),
            (b"\n", b""),
            (b"\r", b""),
            (b"\ra\r\nb\r\n", b"a\nb\n"),
            (b"\ra\r\r\nb\rc\r\n\r", b"a\r\nb\rc\n\r"),
            (b"\r\r\n", b"\n"),
            (b"\r\n", b"\n"),
            (b"\ra\nb\0", b"a\nb\0"),
        ):
            for step in (0, 1, 2, 3):
                reader = Reader().feed(package(sent, b"", b"a@b"), step)
                self.assertEqual(reader.messages, [stored], (sent, step))
                self.assertEqual(reader.packages[0].size, len(stored))

    def test_nothing_before_the_last_octet(self) -> None:
        """§27: a package that is not complete never was."""
        data = package(b"\nx", b"a@b", b"c@d", b"e@f")
        reader = Reader()
        for at in range(len(data)):
            self.assertEqual(reader.output, b"")
            reader.feed(data[at : at + 1])
        self.assertEqual(reader.output, b"5:Kok 1,5:Kok 1,")

    def test_no_recipients(self) -> None:
        reader = Reader().feed(package(b"\nx", b"a@b") + package(b"\ny", b"a@b", b"c@d"))
        self.assertEqual(reader.messages, [b"x", b"y"])
        self.assertEqual(reader.output, b"5:Kok 2,")

    def test_answers_in_order(self) -> None:
        """§17.1: one answer for each recipient, in their order."""
        reader = Reader()
        reader.bad = {b"b": b"Dno (#5.7.1)", b"d": b"Zlater"}
        reader.feed(package(b"\nx", b"", b"a", b"b", b"c", b"d"))
        self.assertEqual(reader.output, b"5:Kok 1,12:Dno (#5.7.1),5:Kok 1,6:Zlater,")
        self.assertEqual(reader.packages[0].recipients, [b"a", b"c"])

    def test_packages_answered_in_order(self) -> None:
        """The second package's answer waits for the first one's."""
        reader = Reader(answers=False).feed(package(b"\n1", b"", b"a") + package(b"\n2", b"", b"b"))
        first, second = reader.open
        reader.server.answer(second, b"K2")
        self.assertEqual(reader.server.data_to_send(), b"")
        reader.server.answer(first, b"D1")
        self.assertEqual(reader.server.data_to_send(), b"2:D1,2:K2,")

    def test_pending(self) -> None:
        """As many packages wait for answers as may; the others are not looked at, and no more is read."""
        one = package(b"\n" + b"x" * 10000, b"", b"a@b")
        reader = Reader(pending=3, answers=False).feed(one * 20)
        self.assertEqual(len(reader.open), 3)
        self.assertEqual(len(reader.packages), 3)
        self.assertFalse(reader.server.wants_input)
        for done in range(17):
            reader.server.answer(reader.open[done], b"K")
            reader.pump()
        self.assertTrue(reader.server.wants_input)
        for pending in reader.open[17:]:
            reader.server.answer(pending, b"K")
        reader.pump()
        self.assertEqual(reader.output, b"1:K," * 20)

    def test_sender_faults(self) -> None:
        """§17.1: 1000 octets or a NUL are too much for a sender."""
        for sender, fault in (
            (b"a" * 999, None),
            (b"a" * 1000, wire.BAD_SENDER),
            (b"a" * 100_000, wire.BAD_SENDER),
            (b"a\0b", wire.BAD_SENDER),
        ):
            reader = Reader().feed(package(b"\nx", sender, b"a@b"), 777)
            self.assertEqual(reader.senders, [(sender[:1000], fault)])
            self.assertEqual(reader.output, b"5:Kok 1,")

    def test_long_recipient(self) -> None:
        reader = Reader().feed(package(b"\nx", b"", b"a" * 5000, b"b"), 100)
        self.assertEqual(reader.recipients, [[b"a" * 1000, b"b"]])

    def test_garbage(self) -> None:
        for data in (
            b"0:,",  # no octet for the line ends
            b"2:ab,",
            b"x",
            b":",
            b"1:\n;",
            b"01:\n,",
            b"1:\n,0:;",
            b"1:\n,0:,x",
            b"1:\n,0:,3:5:a,,",  # §17.1: no room for the comma of the inner one
            b"1:\n,0:,3:1:a,,",
            b"1:\n,0:,4:1:ax,",
            b"1:\n,0:,4:1:a,;",
            b"1:\n,0:,4:+1:a,",
            b"99999999999999999999:",
            b"1:\n,99999999:",
            b"1:\n,0:,99999999:",
        ):
            for step in (0, 1):
                reader = Reader().feed(data, step)
                self.assertTrue(reader.server.broken, data)
                self.assertTrue(reader.server.closed)
                self.assertEqual(reader.output, b"")

    def test_garbage_after_packages(self) -> None:
        """§17.1: what was complete gets its answers."""
        reader = Reader(answers=False).feed(package(b"\nx", b"", b"a@b") + b"garbage")
        self.assertTrue(reader.server.broken)
        self.assertFalse(reader.server.closed)
        reader.server.answer(reader.open[0], b"K")
        self.assertEqual(reader.server.data_to_send(), b"1:K,")
        self.assertTrue(reader.server.closed)

    def test_too_many_recipients(self) -> None:
        """Nobody fills our memory with recipients of three octets."""
        self.patch(wire, "MAX_RECIPIENTS", 5)
        self.assertEqual(Reader().feed(package(b"\nx", b"", *[b""] * 5)).server.broken, "")
        self.assertTrue(Reader().feed(package(b"\nx", b"", *[b""] * 6)).server.broken)

    def test_hops(self) -> None:
        """§16.6, in either encoding."""
        head = b"Received: a\r\nX: y\r\ndelivered-to: b\r\nRECEIVED\r\n\r\nReceived: c\r\n"
        for step in (0, 1, 5):
            reader = Reader().feed(package(b"\r" + head, b"", b"a") + package(b"\n" + head, b"", b"a"), step)
            self.assertEqual([one.hops for one in reader.packages], [3, 4])


class DatabytesTests(SynchronousTestCase):
    """§17.1: stored octets count, in either encoding; exactly databytes is allowed."""

    def check(self, message: bytes, databytes: int, too_big: bool) -> None:
        for step in (0, 1):
            reader = Reader(databytes).feed(package(message, b"a@b", b"c@d"), step)
            self.assertEqual(reader.packages[0].too_big, too_big, (message, databytes))
            self.assertEqual(reader.output, b"5:Kok 1,")

    def test_limits(self) -> None:
        self.check(b"\nabcd", 4, False)
        self.check(b"\nabcde", 4, True)
        self.check(b"\rab\r\nd", 4, False)
        self.check(b"\rab\r\nde", 4, True)
        self.check(b"\rabc\r", 4, False)
        self.check(b"\rabcd\r", 4, True)
        self.check(b"\nabcde", 0, False)

    def test_no_octet_of_what_is_known_to_be_too_big(self) -> None:
        self.assertEqual(Reader(4).feed(package(b"\nabcde", b"", b"a"), 1).messages, [b""])


class EndTests(SynchronousTestCase):
    def test_end_between_packages(self) -> None:
        reader = Reader().feed(package(b"\nx", b"", b"a"))
        reader.server.end()
        reader.feed(package(b"\ny", b"", b"a"))
        self.assertEqual(reader.messages, [b"x"])
        self.assertTrue(reader.server.closed)

    def test_end_in_package(self) -> None:
        """What has begun may end."""
        data = package(b"\nx", b"", b"a")
        reader = Reader().feed(data[:4])
        reader.server.end()
        self.assertFalse(reader.server.closed)
        reader.feed(data[4:] + data)
        self.assertEqual(reader.messages, [b"x"])
        self.assertEqual(reader.output, b"5:Kok 1,")
        self.assertTrue(reader.server.closed)

    def test_end_of_input(self) -> None:
        """Complete packages are looked at and answered, even those that had to wait."""
        data = package(b"\nx", b"", b"a")
        reader = Reader(pending=1, answers=False).feed(data * 2 + data[:5])
        reader.server.end_of_input()
        for number in (0, 1):
            self.assertFalse(reader.server.closed)
            reader.server.answer(reader.open[number], b"K")
            reader.pump()
        self.assertTrue(reader.server.closed)
        self.assertEqual(reader.output, b"1:K," * 2)

    def test_drop(self) -> None:
        reader = Reader().feed(package(b"\nx", b"", b"a")[:-1])
        reader.server.drop("enough")
        reader.feed(b",")
        self.assertEqual((reader.output, reader.server.broken), (b"", "enough"))
        self.assertTrue(reader.server.closed)


class PropertyTests(SynchronousTestCase):
    @given(
        st.lists(
            st.tuples(st.sampled_from([b"\n", b"\r"]), st.binary(), st.binary(), st.lists(st.binary(), max_size=5)),
            max_size=4,
        ),
        st.integers(1, 40),
    )
    def test_round_trip(self, packages: list[tuple[bytes, bytes, bytes, list[bytes]]], step: int) -> None:
        data = b"".join(package(mark + text, sender, *recipients) for mark, text, sender, recipients in packages)
        reader = Reader().feed(data, step)
        self.assertEqual(reader.server.broken, "")
        texts = [text if mark == b"\n" else text.replace(b"\r\n", b"\n") for mark, text, _, _ in packages]
        self.assertEqual(reader.messages, texts)
        self.assertEqual([sender for sender, _ in reader.senders], [sender for _, _, sender, _ in packages])
        self.assertEqual(reader.recipients, [recipients for *_, recipients in packages])
        answers = b"".join(
            b"5:Kok %d," % number * len(recipients) for number, (*_, recipients) in enumerate(packages, 1)
        )
        self.assertEqual(reader.output, answers)

    @given(st.binary(), st.integers(1, 10))
    def test_any_octets(self, data: bytes, step: int) -> None:
        """Garbage is read as packages, or it is broken; how it is cut does not matter."""
        whole, cut = Reader().feed(data), Reader().feed(data, step)
        self.assertEqual(whole.seen(), cut.seen())

    @settings(max_examples=200)
    @given(st.lists(st.sampled_from([b"1:\n,", b"0:,", b"3:0:,,", b"1:\r,", b"5:\r\r\na\r,", b"4:1:a,,", b"9", b","])))
    def test_near_packages(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        whole, cut = Reader().feed(data), Reader().feed(data, 1)
        self.assertEqual(whole.seen(), cut.seen())

    @given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b""])))
    def test_decoder(self, pieces: list[bytes]) -> None:
        decoder = CRLFDecoder()
        decoded = b"".join(decoder.feed(piece, False) for piece in pieces) + decoder.feed(b"", True)
        self.assertEqual(decoded, b"".join(pieces).replace(b"\r\n", b"\n"))

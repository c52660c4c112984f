"""Messages that are looked at when they have come completely, and not yet committed (doc/content.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from qtwist.interfaces import Accepted, QueueError
from qtwist.mail.envelope import Envelope
from qtwist.mail.header_fields import HeaderFields
from qtwist.policy import Policy, Session
from qtwist.policy.base import Answer, accept, refuse
from qtwist.policy.content import IN_MEMORY, Content, KeptAside, Text, discard
from qtwist.wire.netstring import encode
from tests.policy_tools import PolicyCase
from tests.test_smtpd import FakeQueue
from tests.test_tls_servers import Logged

MESSAGE = b"From: a@b.test\nSubject: x\n\nbody\n"
ENVELOPE = Envelope(b"a@b.test", (b"joe@mx.test",))


def content(text: bytes, size: int = 50) -> Content:
    kept = Text()
    for start in range(0, len(text), size):
        kept.write(text[start : start + size])
    return Content(b"a@b.test", [b"joe@mx.test"], b"Received: here\n", kept)


class ContentTests(SynchronousTestCase):
    def test_parts(self) -> None:
        one = content(MESSAGE)
        self.assertEqual(one.fields.items(), [(b"From", b" a@b.test"), (b"Subject", b" x")])
        self.assertEqual(b"".join(one.body()), b"body\n")
        self.assertEqual(b"".join(one.blocks()), MESSAGE)
        self.assertEqual(one.size, len(MESSAGE))

    def test_changes(self) -> None:
        one = content(MESSAGE)
        one.fields.add(b"X-Seen", b"yes")
        one.replace_body([b"an", b"other\n"])
        self.assertEqual(b"".join(one.blocks()), b"From: a@b.test\nSubject: x\nX-Seen: yes\n\nanother\n")
        self.assertEqual(one.size, len(b"".join(one.blocks())))
        one.replace_body(iter([b"third"]))
        self.assertEqual(b"".join(one.body()), b"third")

    def test_without_a_header(self) -> None:
        """A field in front of what was no header does not swallow its first line."""
        for text in (b" folded\n", b"no field\n", b"A: b\n> x\n"):
            one = content(text)
            self.assertEqual(b"".join(one.blocks()), text)
            one.fields.insert(0, b"X", b"y")
            self.assertEqual(one.size, len(b"".join(one.blocks())))
            header, empty, body = b"".join(one.blocks()).partition(b"\n\n")
            self.assertEqual((empty + body)[1:], b"\n" + text[len(bytes(HeaderFields(text))) :])
            self.assertTrue(header.startswith(b"X: y"))

    @given(st.binary(max_size=400), st.integers(1, 100))
    def test_nothing_is_lost(self, text: bytes, size: int) -> None:
        one = content(text, size)
        self.assertEqual(b"".join(one.blocks()), text)
        self.assertEqual(one.size, len(text))
        self.assertTrue(text.endswith(b"".join(one.body())))

    def test_a_large_one(self) -> None:
        """In a file without a name; nothing of it is left."""
        text = b"A: b\n\n" + b"x" * (2 * IN_MEMORY)
        one = content(text, 65536)
        self.assertEqual(b"".join(one.blocks()), text)
        one.close()
        one.close()


class KeptAsideTests(SynchronousTestCase):
    def kept(self, queue: FakeQueue) -> KeptAside:
        one = KeptAside(lambda: queue.begin(None))  # type: ignore[arg-type,return-value]
        one.write(b"Received: here\n")
        one.write(MESSAGE)
        return one

    def test_onward(self) -> None:
        """Nothing begins in the queue before the message is committed; then it waits where the disk is slow."""
        queue = FakeQueue()
        slow: Deferred[None] = Deferred()
        queue.slow = [slow]
        result: Deferred[Accepted] = Deferred()
        queue.results = [result]
        one = self.kept(queue)
        found = one.complete(ENVELOPE.sender, ENVELOPE.recipients)
        found.fields.add(b"X", b"y")
        self.assertEqual(queue.messages, [])
        done = one.commit(ENVELOPE)
        self.assertNoResult(done)
        slow.callback(None)
        result.callback(Accepted(7, 7))
        self.assertEqual(self.successResultOf(done), Accepted(7, 7))
        self.assertEqual(queue.messages[0].data, b"Received: here\nFrom: a@b.test\nSubject: x\nX: y\n\nbody\n")

    def test_given_up(self) -> None:
        queue = FakeQueue()
        for one in (self.kept(queue), self.kept(queue)):
            one.abort()
            one.abort()
        one = self.kept(queue)
        one.complete(b"", ())
        one.abort()
        self.assertEqual(queue.messages, [])

    def test_no_room(self) -> None:
        """It is said when it is complete; nothing is raised before."""
        one = self.kept(FakeQueue())

        def full(data: bytes) -> None:
            raise OSError(28, "No space left on device")

        self.patch(one._text, "write", full)
        one.write(b"more")
        one.write(b"more")
        error = self.assertRaises(QueueError, one.complete, b"", ())
        self.assertIn("No space left", str(error))

    def test_no_queue(self) -> None:
        queue = FakeQueue()
        one = self.kept(queue)
        one.complete(b"", ())
        queue.broken = QueueError(62, "not there")
        self.failureResultOf(one.commit(ENVELOPE), QueueError)


class Filter(Policy):
    name = "filter"

    def __init__(self, look: Callable[[Session, Content], Answer]) -> None:
        self.look = look
        self.seen: list[bytes] = []

    def content(self, session: Session, content: Content) -> Answer:
        self.seen.append(b"".join(content.blocks()))
        return self.look(session, content)


def changing(session: Session, content: Content) -> None:
    content.fields.add(b"X-Client", session.remote_ip.encode())
    content.sender = b"other@b.test"
    content.recipients.append(b"ann@mx.test")


def deserted(session: Session, content: Content) -> None:
    content.recipients.clear()


class HookTests(PolicyCase):
    LINES = (b"EHLO a", b"MAIL FROM:<a@b.test>", b"RCPT TO:<joe@mx.test>", b"DATA")

    def send(self, *looks: Callable[[Session, Content], Answer]) -> list[bytes]:
        """What the client hears at the end; `self.filters` are those that were asked."""
        self.filters = [Filter(look) for look in looks]
        factory = self.factory(*self.filters)
        for _ in range(3):
            self.queue.results.append(Deferred())
            self.queue.results[-1].callback(Accepted(7, 7))
        return self.dialogue(*self.LINES, b"Subject: x\r\n\r\nbody\r\n.", b"RSET", factory=factory)[-2:]

    def test_passes(self) -> None:
        self.assertEqual(self.send(lambda session, content: None)[0][:3], b"250")
        self.assertEqual(self.filters[0].seen, [b"Subject: x\n\nbody\n"])
        self.assertTrue(self.queue.messages[0].data.endswith(b"\nSubject: x\n\nbody\n"))
        self.assertTrue(self.queue.messages[0].data.startswith(b"Received: "))

    def test_changed(self) -> None:
        """The next one sees what the first has made of it; so does the queue."""
        self.send(changing, lambda session, content: None)
        self.assertEqual(self.filters[1].seen, [b"Subject: x\nX-Client: 192.0.2.9\n\nbody\n"])
        [message] = self.queue.messages
        self.assertTrue(message.data.endswith(b"\nSubject: x\nX-Client: 192.0.2.9\n\nbody\n"))
        self.assertEqual(message.envelope, Envelope(b"other@b.test", (b"joe@mx.test", b"ann@mx.test")))

    def test_refused(self) -> None:
        answers = self.send(lambda session, content: refuse(554, b"no (#5.7.1)"), changing)
        self.assertEqual(answers, [b"554 5.7.1 no", b"250 2.0.0 flushed"])
        self.assertEqual((self.queue.messages, self.filters[1].seen), ([], []))

    def test_discarded(self) -> None:
        for look in (lambda session, content: discard("why"), deserted):
            self.assertEqual(self.send(look)[0], b"250 2.0.0 ok")
            self.assertEqual(self.queue.messages, [])

    def test_the_log_has_the_rule_of_what_was_discarded(self) -> None:
        logged = Logged(self)
        self.send(lambda session, content: discard("why"))
        [line] = logged.find("why")
        self.assertIn("filter", line)

    def test_accepted_for_good(self) -> None:
        self.assertEqual(self.send(lambda session, content: accept(), changing)[0][:3], b"250")
        self.assertEqual((len(self.queue.messages), self.filters[1].seen), (1, []))

    def test_broken(self) -> None:
        """What a filter raises is a 451, and nothing is queued."""

        def broken(session: Session, content: Content) -> Answer:
            raise RuntimeError("oops")

        self.assertEqual(self.send(broken)[0][:3], b"451")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.queue.messages, [])

    def test_a_client_that_goes(self) -> None:
        """While a filter thinks."""
        thinking: Deferred[None] = Deferred()
        one = Filter(lambda session, content: thinking)
        client = self.connect(factory=self.factory(one))
        for line in (*self.LINES, b"x\r\n."):
            client.say(line)
        self.assertEqual(len(one.seen), 1)
        client.hang_up()
        self.assertEqual(self.queue.messages, [])

    def test_qmtp(self) -> None:
        """The same in QMTP: K, D, and what was changed."""
        results: Iterable[tuple[Callable[[Session, Content], Answer], bytes, int]] = (
            (changing, b"K", 1),
            (lambda session, content: refuse(554, b"no"), b"Dno", 1),
            (lambda session, content: discard(), b"Kok", 1),
        )
        for look, answer, messages in results:
            self.queue.results.append(Deferred())
            self.queue.results[-1].callback(Accepted(7, 7))
            client = self.connect(factory=self.qmtp_factory(Filter(look)))  # type: ignore[arg-type]
            package = encode(b"\nSubject: x\n\nbody\n") + encode(b"a@b.test") + encode(encode(b"joe@mx.test"))
            client.protocol.dataReceived(package)
            said = client.transport.value()
            self.assertIn(b":" + answer, said)
            self.assertEqual(len(self.queue.messages), messages)
            client.hang_up()

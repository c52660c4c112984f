"""TLS as servers speak it, over real sockets: handshakes, certificates, reloading, names, client certificates, ends
(RFC 3207, 6066 §3, 8314; spec/related.md §14.3)."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from qtwist.control import Control
from qtwist.mail.require_tls import demands_tls
from qtwist.policy import Policy
from qtwist.serving import ImplicitTLSFactory
from qtwist.smtpd.factory import SMTPFactory
from qtwist.tls.certificates import Certificates
from qtwist.tls.serving import GOODBYE_SECONDS, HANDSHAKE_SECONDS
from tests.certificates import Authority
from tests.test_smtpd import FakeQueue

NOW = 1792983845.5
PATIENCE = 20


class Logged:
    """What qtwist.tls and smtpd say above the level of debugging, without the names of connections."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.lines: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace", "").startswith("qtwist.") and event["log_level"] > LogLevel.debug:
                self.lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        case.addCleanup(globalLogPublisher.removeObserver, observe)

    def find(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]


class Files:
    """A directory with control files; puts them there as a whole, by rename."""

    def __init__(self, directory: str) -> None:
        self.path = directory
        os.makedirs(directory)

    def put(self, name: str, text: str | bytes) -> None:
        path = os.path.join(self.path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".new", "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        os.chmod(path + ".new", 0o600 if name.endswith("servercert.pem") else 0o644)
        os.rename(path + ".new", path)

    def remove(self, name: str) -> None:
        os.unlink(os.path.join(self.path, name))


class Client:
    """A client that blocks; for a thread."""

    def __init__(self, port: int, authority: Authority, identity: str | None = None) -> None:
        self.context = ssl.create_default_context(cadata=authority.pem.decode())
        if identity is not None:
            self.context.load_cert_chain(identity)
        self.sock: Any = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.file: Any = self.sock.makefile("rb")

    def reply(self) -> bytes:
        """One reply, all of its lines."""
        lines = []
        while True:
            line = self.file.readline()
            lines.append(line)
            if line[3:4] != b"-":
                return b"".join(lines)

    def say(self, *lines: bytes) -> list[bytes]:
        self.sock.sendall(b"".join(line + b"\r\n" for line in lines))
        return [self.reply() for _ in lines]

    def wrap(self, name: str | None = "mx.test") -> None:
        """Begin TLS; ssl.SSLError when there is none to be had."""
        if name is None:
            self.context.check_hostname = False
        self.sock = self.context.wrap_socket(self.sock, server_hostname=name)
        self.file = self.sock.makefile("rb")

    def start_tls(self, name: str | None = "mx.test") -> None:
        self.reply()
        assert b"STARTTLS" in self.say(b"EHLO cli.test")[0]
        assert self.say(b"STARTTLS")[0].startswith(b"220 ")
        self.wrap(name)

    def serial(self) -> str:
        return str(self.sock.getpeercert()["serialNumber"])

    def close(self) -> None:
        self.file.close()
        self.sock.close()


class ServerCase(TestCase):
    """An SMTP server on a port, and clients in threads."""

    authority = Authority()

    def setUp(self) -> None:
        self.files = Files(self.mktemp())
        self.files.put("me", "mx.test\n")
        self.files.put("rcpthosts", "mx.test\n")
        self.files.put("servercert.pem", self.authority.certify("mx.test"))
        self.control = Control(self.files.path)
        self.queue = FakeQueue()
        self.clock = Clock()
        self.logged = Logged(self)
        self.factory = SMTPFactory(self.control, self.queue, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]
        self.port = self.listen(self.factory)

    def listen(self, factory: Any) -> int:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.addCleanup(self.gone)
        number: int = port.getHost().port
        return number

    def gone(self) -> Deferred[None]:
        """Fires when no connection is left on this side."""
        self.factory.abort()
        return self.factory.drain()

    async def client(self, port: int | None = None, identity: str | None = None) -> Client:
        client = await deferToThread(Client, port or self.port, self.authority, identity)
        self.addCleanup(client.close)
        return client

    async def shown(self, name: str | None = "mx.test") -> str:
        """The serial number of the certificate that a client gets which asks for `name`."""
        client = await self.client()
        await deferToThread(client.start_tls, name)
        return client.serial()

    def connection(self) -> Any:
        [connection] = self.factory.connections
        return connection

    async def settled(self, ready: Callable[[], bool]) -> None:
        """Wait, for a bounded time, until the reactor has done what it has to."""
        for _ in range(2000):
            if ready():
                return
            pause: Deferred[None] = Deferred()
            reactor.callLater(0.005, pause.callback, None)  # type: ignore[attr-defined]
            await pause
        raise AssertionError(f"it did not happen; {self.logged.lines}")


class SMTPTests(ServerCase):
    async def test_a_message(self) -> None:
        """RFC 3207 §4.2: EHLO again, its name from before forgotten; RFC 3848: ESMTPS."""
        client = await self.client()
        await deferToThread(client.start_tls)
        text = b"x" * 3_000_000 + b"\r\n.."
        replies = await deferToThread(
            client.say,
            b"MAIL FROM:<a@b.test>",
            b"RCPT TO:<joe@mx.test>",
            b"DATA",
            b"Subject: x\r\n\r\n" + text + b"\r\n.",
        )
        self.assertEqual([reply[:3] for reply in replies], [b"250", b"250", b"354", b"250"])
        [message] = self.queue.messages
        received, _, rest = message.data.partition(b"Subject")
        cipher = client.sock.cipher()[0].encode()
        self.assertRegex(
            received,
            rb"^Received: from unknown \(127\.0\.0\.1\)\n  by 127\.0\.0\.1 with ESMTPS \(%s encrypted\); " % cipher,
        )
        self.assertEqual(len(rest), len(b": x\n\n") + 3_000_000 + len(b"\n.\n"))
        reply = (await deferToThread(client.say, b"EHLO again"))[0]
        self.assertNotIn(b"STARTTLS", reply)
        self.assertIn(b"PIPELINING", reply)
        self.assertEqual((await deferToThread(client.say, b"QUIT"))[0], b"221 2.0.0 mx.test\r\n")

    async def test_require_tls(self) -> None:
        """RFC 8689 §4.1: offered through TLS only; the Received line keeps that it was asked for, of this message."""
        clear = await self.client()
        await deferToThread(clear.reply)
        refused = await deferToThread(clear.say, b"EHLO a", b"MAIL FROM:<a@b.test> REQUIRETLS")
        self.assertNotIn(b"REQUIRETLS", refused[0])
        self.assertEqual(refused[1], b"555 5.5.4 unknown parameter\r\n")
        client = await self.client()
        await deferToThread(client.start_tls)
        rest = (b"RCPT TO:<joe@mx.test>", b"DATA", b"Subject: x\r\n\r\n.")
        replies = await deferToThread(
            client.say,
            b"EHLO a",
            b"MAIL FROM:<a@b.test> REQUIRETLS=yes",
            b"MAIL FROM:<a@b.test> requiretls",
            *rest,
            b"MAIL FROM:<a@b.test>",
            *rest,
        )
        self.assertIn(b"250-REQUIRETLS\r\n", replies[0].replace(b"250 ", b"250-"))
        self.assertEqual([reply[:3] for reply in replies[1:]], [b"501", *[b"250", b"250", b"354", b"250"] * 2])
        heads = [message.data.partition(b"\n\n")[0] + b"\n\n" for message in self.queue.messages]
        self.assertEqual([demands_tls(head) for head in heads], [True, False])

    async def test_many_answers_before(self) -> None:
        """Answers that the client has not yet taken when TLS begins stay in the clear, and it begins all the same."""
        client = await self.client()
        count = 20_000

        def talk() -> list[bytes]:
            client.reply()
            client.sock.sendall(b"NOOP\r\n" * count + b"STARTTLS\r\n")
            for _ in range(count):
                assert client.reply() == b"250 ok\r\n"
            assert client.reply()[:3] == b"220"
            client.wrap()
            return client.say(b"NOOP", b"QUIT")

        self.assertEqual(await deferToThread(talk), [b"250 ok\r\n", b"221 mx.test\r\n"])

    async def test_from_the_start(self) -> None:
        """RFC 8314 §3.3; the policies are asked when the handshake is over."""
        seen = []

        class Asked(Policy):
            def connect(self, session: Any) -> None:
                seen.append(session.tls.server_name)

        self.factory = SMTPFactory(self.control, self.queue, [Asked()], clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]
        port = self.listen(ImplicitTLSFactory(self.factory))
        client = await self.client(port)
        self.assertEqual(seen, [])

        def talk() -> list[bytes]:
            client.wrap()
            return [client.reply(), *client.say(b"EHLO a", b"STARTTLS", b"QUIT")]

        greeting, ehlo, again, bye = await deferToThread(talk)
        self.assertEqual((greeting, bye), (b"220 mx.test ESMTP\r\n", b"221 2.0.0 mx.test\r\n"))
        self.assertNotIn(b"STARTTLS", ehlo)
        self.assertTrue(again.startswith(b"503 "))
        self.assertEqual(seen, ["mx.test"])

    async def test_from_the_start_without_a_certificate(self) -> None:
        self.files.remove("servercert.pem")
        client = await self.client(self.listen(ImplicitTLSFactory(self.factory)))
        self.assertEqual(await deferToThread(client.file.read), b"")
        self.assertEqual(len(self.logged.find("TLS was expected but there is no certificate")), 1)

    async def test_a_certificate_is_replaced(self) -> None:
        """Under running connections, which keep theirs; a broken file changes nothing and is told once."""
        running = await self.client()
        await deferToThread(running.start_tls)
        first = running.serial()
        self.files.put("servercert.pem", self.authority.certify("mx.test", "other.test"))
        second = await self.shown()
        self.assertNotEqual(first, second)
        self.assertEqual(await deferToThread(running.say, b"NOOP"), [b"250 ok\r\n"])
        self.files.put("servercert.pem", self.authority.certify("mx.test")[:500])
        for _ in range(2):
            self.assertEqual(await self.shown(), second)
        [line] = self.logged.find("the certificate of before stays in use")
        self.assertIn("servercert.pem: found no certificate that can be read, expected one in PEM", line)
        self.files.put("servercert.pem", self.authority.certify("mx.test"))
        self.assertNotIn(await self.shown(), (first, second))

    async def test_a_certificate_comes_and_goes(self) -> None:
        """STARTTLS is offered as soon as there is one, and no longer than that."""
        offers = []
        text = self.authority.certify("mx.test")
        for present in (True, False, True):
            if present:
                self.files.put("servercert.pem", text)
            else:
                self.files.remove("servercert.pem")
            client = await self.client()
            await deferToThread(client.reply)
            offers.append(b"STARTTLS" in (await deferToThread(client.say, b"EHLO a"))[0])
        self.assertEqual(offers, [True, False, True])

    async def test_gone_after_it_was_offered(self) -> None:
        client = await self.client()
        await deferToThread(client.reply)
        self.files.remove("servercert.pem")
        self.assertEqual(await deferToThread(client.say, b"STARTTLS"), [b"454 TLS is not available now (#4.7.0)\r\n"])
        self.assertEqual(await deferToThread(client.say, b"NOOP"), [b"250 ok\r\n"])

    async def test_an_expired_certificate(self) -> None:
        """It is used, as most hosts do not look; who looks is refused by himself, and the log tells."""
        self.files.put("servercert.pem", self.authority.certify("mx.test", days=-50))
        client = await self.client()
        error = await self.failed(client)
        self.assertIn("expired", str(error))
        await self.settled(lambda: bool(self.logged.find("handshake with 127.0.0.1 failed")))
        [line] = self.logged.find("handshake with 127.0.0.1 failed")
        self.assertTrue(line.endswith("certificate expired"), line)
        self.assertEqual(len(self.logged.find("the certificate expired on")), 1)

    async def failed(self, client: Client, name: str | None = "mx.test") -> ssl.SSLError:
        """Why the client does not get through its handshake."""
        try:
            await deferToThread(client.start_tls, name)
        except ssl.SSLError as error:
            client.close()
            return error
        raise AssertionError("the handshake succeeded")

    async def test_old_versions(self) -> None:
        """TLS 1.1 is refused; others go on."""
        other = await self.client()
        await deferToThread(other.start_tls)
        client = await self.client()
        client.context.minimum_version = ssl.TLSVersion.TLSv1
        client.context.maximum_version = ssl.TLSVersion.TLSv1_1
        client.context.set_ciphers("ALL:@SECLEVEL=0")
        await self.failed(client)
        await self.settled(lambda: bool(self.logged.find("handshake with")))
        self.assertEqual(await deferToThread(other.say, b"NOOP"), [b"250 ok\r\n"])

    async def test_no_handshake(self) -> None:
        """What follows is not TLS at all, or nothing: one line in the log, and nobody else notices."""
        client = await self.client()

        def talk() -> bytes:
            client.reply()
            client.say(b"STARTTLS")
            client.sock.sendall(b"RSET\r\nMAIL FROM:<a@b>\r\n")
            return bytes(client.sock.recv(100))

        await deferToThread(talk)
        await self.settled(lambda: not self.factory.connections)
        self.assertEqual(len(self.logged.find("TLS handshake with 127.0.0.1 failed: ")), 1)
        client = await self.client()
        await deferToThread(client.reply)
        await deferToThread(client.say, b"STARTTLS")
        client.close()
        await self.settled(lambda: not self.factory.connections)
        self.assertEqual(len(self.logged.find("failed: the client has gone")), 1)

    async def test_a_slow_handshake(self) -> None:
        client = await self.client()
        await deferToThread(client.reply)
        await deferToThread(client.say, b"STARTTLS")
        self.clock.advance(HANDSHAKE_SECONDS - 1)
        self.assertTrue(self.factory.connections)
        self.clock.advance(1)
        await self.settled(lambda: not self.factory.connections)
        self.assertEqual(len(self.logged.find(f"failed: not over in {HANDSHAKE_SECONDS} seconds")), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_stop_during_the_handshake(self) -> None:
        client = await self.client()
        await deferToThread(client.reply)
        await deferToThread(client.say, b"STARTTLS")
        await self.factory.drain()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_stop_afterwards(self) -> None:
        client = await self.client()
        await deferToThread(client.start_tls)
        await deferToThread(client.say, b"NOOP")
        drained = self.factory.drain()
        self.assertTrue((await deferToThread(client.reply)).startswith(b"421 "))
        self.assertEqual(await deferToThread(client.file.read), b"")
        client.close()
        await drained

    async def test_a_client_that_does_not_say_goodbye(self) -> None:
        """close_notify is waited for, but not long."""
        client = await self.client()
        await deferToThread(client.start_tls)
        await deferToThread(client.say, b"QUIT")
        connection = self.connection()
        await self.settled(lambda: bool(connection._leaving))
        self.clock.advance(GOODBYE_SECONDS)
        await self.settled(lambda: not self.factory.connections)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_client_that_vanishes(self) -> None:
        """In the middle of a message, by a reset: the message is thrown away."""
        client = await self.client()
        await deferToThread(client.start_tls)
        await deferToThread(client.say, b"MAIL FROM:<a@b.test>", b"RCPT TO:<joe@mx.test>", b"DATA")
        client.sock.sendall(b"half")
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await self.settled(lambda: not self.factory.connections)
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_names(self) -> None:
        """servercerts/NAME for clients that ask for NAME, in any letter case; servercert.pem for all others."""
        default = await self.shown(None)
        self.files.put("servercerts/two.test/servercert.pem", self.authority.certify("two.test"))
        two = await self.shown("TWO.test")
        self.assertNotEqual(two, default)
        self.assertEqual(await self.shown("mx.test"), default)
        self.files.put("servercerts/two.test/servercert.pem", b"nothing")
        self.assertEqual(await self.shown("two.test"), two)
        self.files.remove("servercerts/two.test/servercert.pem")
        client = await self.client()
        self.assertIn("mismatch", str(await self.failed(client, "two.test")))

    # Client certificates

    async def relays(self, identity: bytes | None) -> tuple[bool, bytes]:
        """Whether a client that shows this may relay, and the Received line of its message."""
        path = None
        if identity is not None:
            self.files.put("../identity.pem", identity)
            path = os.path.join(os.path.dirname(self.files.path), "identity.pem")
        client = await self.client(identity=path)
        await deferToThread(client.start_tls)
        replies = await deferToThread(
            client.say, b"MAIL FROM:<a@b.test>", b"RCPT TO:<x@elsewhere.test>", b"RCPT TO:<joe@mx.test>", b"DATA", b"."
        )
        return replies[1].startswith(b"250 "), self.queue.messages[-1].data

    async def test_client_certificates(self) -> None:
        """Verified by clientca.pem, and an address of theirs in tlsclients: they may send to anywhere."""
        clients = Authority("Clients")
        joe = clients.certify(email="joe@cli.test")
        ann = clients.certify(other_emails=["ann@cli.test"])
        false = Authority("Clients").certify(email="joe@cli.test")
        self.assertEqual((await self.relays(joe))[0], False)
        self.files.put("clientca.pem", clients.pem)
        self.assertEqual((await self.relays(joe))[0], False)
        self.files.put("tlsclients", "Joe@cli.test\nann@cli.test\n")
        relays, received = await self.relays(joe)
        self.assertTrue(relays)
        self.assertIn(b" encrypted) (cert joe@cli.test); ", received)
        self.assertEqual((await self.relays(ann))[0], True)
        for identity in (
            None,
            false,
            clients.certify(email="eve@cli.test"),
            clients.certify(email="joe@cli.test", days=-1),
        ):
            relays, received = await self.relays(identity)
            self.assertFalse(relays)
            self.assertIn(b" encrypted); ", received)
        self.files.put("clientcrl.pem", clients.revoke(joe))
        self.assertEqual((await self.relays(joe))[0], False)
        self.assertEqual((await self.relays(ann))[0], True)

    async def test_wrong_terms(self) -> None:
        """Ciphers that OpenSSL does not know, authorities that are none: TLS goes on as it was."""
        first = await self.shown()
        self.files.put("tlsserverciphers", "NO-SUCH-CIPHER\n")
        self.assertEqual(await self.shown(), first)
        self.assertEqual(len(self.logged.find("tlsserverciphers: found 'NO-SUCH-CIPHER', expected ciphers as")), 1)
        self.files.put("tlsserverciphers", "ECDHE+CHACHA20\n")
        self.files.put("tlsclients", "joe@cli.test\n")
        self.files.put("clientca.pem", "-----BEGIN nothing\n")
        self.assertEqual(await self.shown(), first)
        self.assertEqual(len(self.logged.find("clientca.pem: found no certificate")), 1)
        self.files.remove("tlsclients")
        client = await self.client()
        client.context.maximum_version = ssl.TLSVersion.TLSv1_2
        await deferToThread(client.start_tls)
        self.assertIn("CHACHA20", client.sock.cipher()[0])


class CertificatesTests(SynchronousTestCase):
    authority = Authority()

    def setUp(self) -> None:
        self.files = Files(self.mktemp())
        self.files.put("me", "mx.test\n")
        self.certificates = Certificates(Control(self.files.path), lambda: NOW)
        self.logged = Logged(self)

    def test_what_is_wrong(self) -> None:
        """What, where, what was expected; once."""
        good = self.authority.certify("mx.test")
        certificate, key = good.split(b"-----BEGIN PRIVATE")
        other = self.authority.certify("mx.test").split(b"-----BEGIN PRIVATE")[1]
        for text, wanted in (
            (b"", "found no certificate that can be read, expected one in PEM"),
            (certificate, "found no private key, expected one in the file, beside its certificate"),
            (certificate + b"-----BEGIN PRIVATE" + other, "found a private key that is not the first certificate's"),
            (self.authority.certify("mx.test", passphrase=b"x"), "found a private key with a passphrase, expected one"),
            (good.replace(key[40:60], b"A" * 20), "found a private key that cannot be read, expected one in PEM"),
        ):
            self.logged.lines.clear()
            self.files.put("servercert.pem", text)
            for _ in range(3):
                self.assertFalse(self.certificates.usable)
                self.assertIsNone(self.certificates.creator())
            [line] = self.logged.lines
            self.assertIn(f"servercert.pem: {wanted}", line)
            self.assertTrue(line.endswith("; no TLS with it"), line)

    def test_permission(self) -> None:
        """A file that may not be read is seen when it may be."""
        path = os.path.join(self.files.path, "servercert.pem")
        self.files.put("servercert.pem/inner", b"")
        self.assertFalse(self.certificates.usable)
        self.assertEqual(len(self.logged.find("servercert.pem: found a directory")), 1)
        os.unlink(os.path.join(path, "inner"))
        os.rmdir(path)
        self.files.put("servercert.pem", self.authority.certify("mx.test"))
        self.assertTrue(self.certificates.usable)

    def test_a_key_for_everybody(self) -> None:
        self.files.put("servercert.pem", self.authority.certify("mx.test"))
        self.assertTrue(self.certificates.usable)
        self.assertEqual(self.logged.find("everybody may read the private key"), [])
        os.chmod(os.path.join(self.files.path, "servercert.pem"), 0o644)
        self.assertTrue(self.certificates.usable)
        self.assertEqual(len(self.logged.find("everybody may read the private key")), 1)

    def test_key_first(self) -> None:
        """The order in the file does not matter, nor do other lines in it."""
        certificate, key = self.authority.certify("mx.test").split(b"-----BEGIN PRIVATE")
        self.files.put(
            "servercert.pem", b"# ours\n-----BEGIN PRIVATE" + key + b"text\n" + certificate + self.authority.pem
        )
        self.assertTrue(self.certificates.usable)

    def test_odd_names(self) -> None:
        """No name of a client's leads out of servercerts/, and nothing is remembered of them."""
        good = self.authority.certify("mx.test")
        self.files.put("servercert.pem", good)
        self.files.put("other/servercert.pem", good)
        self.files.put("servercerts/servercert.pem", good)
        self.files.put("servercerts/a.test/servercert.pem", good)
        for name in (
            "",
            ".",
            "..",
            "../other",
            "a.test/../a.test",
            "a..test",
            "a\0",
            "\xe4.test",
            "x" * 300,
            "nosuch.test",
        ):
            self.assertIsNone(self.certificates.named(name), name)
        self.assertIsNotNone(self.certificates.named("A.TEST."))
        self.assertEqual(sorted(self.certificates._loaded), ["a.test"])

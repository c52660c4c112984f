"""QMTP over TLS from the first octet, the port 6209 of s/qmail (spec/related.md §14; doc/qmtp.md)."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.threads import deferToThread

from qtwist.qmtpd.factory import QMTPFactory
from qtwist.serving import ImplicitTLSFactory
from qtwist.tls.serving import HANDSHAKE_SECONDS
from qtwist.wire.netstring import encode
from tests.test_tls_servers import NOW, ServerCase


def package(recipient: bytes) -> bytes:
    return encode(b"\nSubject: x\n\n") + encode(b"a@b.test") + encode(encode(recipient))


class QMTPSTests(ServerCase):
    """Over sockets, with a client in a thread."""

    def listen(self, factory: Any) -> int:
        self.factory: Any = QMTPFactory(self.control, self.queue, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]
        return super().listen(ImplicitTLSFactory(self.factory))

    async def send(self, client: Any, *recipients: bytes) -> list[bytes]:
        """The first letter of each answer to one package for each recipient, sent in one go."""

        def talk() -> list[bytes]:
            client.sock.sendall(b"".join(map(package, recipients)))
            answers = []
            for _ in recipients:
                length = b""
                while not length.endswith(b":"):
                    length += client.file.read(1)
                answers.append(client.file.read(int(length[:-1]) + 1)[:1])
            return answers

        answers: list[bytes] = await deferToThread(talk)
        return answers

    def queued(self) -> int:
        return sum(message.envelope is not None for message in self.queue.messages)

    async def test_packages(self) -> None:
        """Answers as without TLS; the Received line tells. A client in the clear gets nothing."""
        client = await self.client()
        await deferToThread(client.wrap)
        self.assertEqual(await self.send(client, b"a@mx.test", b"a@far.test", b"b@mx.test"), [b"K", b"D", b"K"])
        first = self.queue.messages[0].data
        self.assertRegex(
            first, rb"^Received: from .*\n  by 127\.0\.0\.1 with QMTPS \(TLS_AES_256_GCM_SHA384 encrypted\); "
        )
        client.close()
        await self.settled(lambda: not self.factory.connections)
        plain = await self.client()
        await deferToThread(plain.sock.sendall, package(b"a@mx.test"))
        await self.settled(lambda: not self.factory.connections)
        self.assertEqual(len(self.logged.find("TLS handshake with 127.0.0.1 failed: ")), 1)
        self.assertEqual(self.queued(), 2)

    async def test_refused_after_the_handshake(self) -> None:
        """Policies are asked when it is over: the answer to the first package is the last."""
        self.files.put("tcp.qmtp", ':allow,RBLSMTPD="-go away"\n')
        client = await self.client()
        await deferToThread(client.wrap)
        self.assertEqual(await self.send(client, b"a@mx.test"), [b"D"])
        self.assertEqual(self.queued(), 0)

    async def test_a_certificate_of_a_client(self) -> None:
        """control/tlsclients lets it relay, as by SMTP."""
        self.files.put("clientca.pem", self.authority.pem)
        self.files.put("tlsclients", "ann@cli.test\n")
        identity = os.path.join(self.files.path, "client.pem")
        self.files.put("client.pem", self.authority.certify("cli.test", email="ann@cli.test"))
        for path, answer in ((identity, b"K"), (None, b"D")):
            client = await self.client(identity=path)
            await deferToThread(client.wrap)
            self.assertEqual(await self.send(client, b"a@far.test"), [answer])

    async def test_a_slow_handshake(self) -> None:
        await self.client()
        await self.settled(lambda: bool(self.factory.connections))
        self.clock.advance(HANDSHAKE_SECONDS - 1)
        self.assertTrue(self.factory.connections)
        self.clock.advance(1)
        await self.settled(lambda: not self.factory.connections)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_stop(self) -> None:
        """During the handshake at once; afterwards, too, as nothing is coming in."""
        await self.client()
        await self.settled(lambda: bool(self.factory.connections))
        client = await self.client()
        await deferToThread(client.wrap)
        self.assertEqual(await self.send(client, b"a@mx.test"), [b"K"])
        drained = self.factory.drain()
        self.assertEqual(await deferToThread(client.file.read), b"")
        client.close()
        await drained

    async def test_without_a_certificate(self) -> None:
        self.files.remove("servercert.pem")
        client = await self.client()
        self.assertEqual(await deferToThread(client.file.read), b"")
        self.assertEqual(len(self.logged.find("TLS was expected but there is no certificate")), 1)

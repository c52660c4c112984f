"""The examples of doc/extending.md for QMTP and POP3, as they stand there (those for SMTP: test_smtpd, test_home)."""

from __future__ import annotations

import os
import poplib
import sys
import types
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from zope.interface.verify import verifyObject

from qtwist.control import Control
from qtwist.pop3d.interfaces import IMaildrop, IMessageSource
from tests.memory_queue import MemoryQueue
from tests.socket_tools import talk
from tests.test_home import HomeCase, example
from tests.test_wire_qmtp_server import package

PATIENCE = 30


class ExampleTests(HomeCase):
    def setUp(self) -> None:
        super().setUp()
        quiet = types.ModuleType("quiet")
        exec(example("example"), quiet.__dict__)
        self.patch(sys, "modules", {**sys.modules, "quiet": quiet})
        self.names: dict[str, Any] = {"__name__": "example"}

    async def test_qmtp(self) -> None:
        """The policy of the SMTP example is asked at both ports; a 550 is a D in QMTP (spec §17.1)."""
        exec(example("qmtp"), self.names)
        self.control("rcpthosts", "mx.test\nspam.test\n")
        control = Control(os.path.join(self.path, "control"))
        queue = MemoryQueue(Clock())
        factory = self.names["QuietQMTPFactory"](control, queue)
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        request = package(b"\nSubject: x\n\nhello\n", b"joe@client.test", b"a@spam.test", b"b@mx.test")
        refused, taken = (await deferToThread(talk, port.getHost().port, request)).split(b",", 1)
        self.assertRegex(refused, rb"^\d+:D.*no thanks \(#5\.7\.1\)$")
        self.assertRegex(taken, rb"^\d+:Kok \d+ qp \d+,$")
        smtp = self.names["QuietSMTPFactory"](control, queue, clock=Clock())
        self.assertEqual(type(smtp.chain(())[0]).__name__, "Quiet")
        await factory.drain()

    async def test_pop3(self) -> None:
        """A portal and a mailbox of somebody's own behind the POP3 server (spec §18, RFC 1939)."""
        self.control("listen", "pop3 tcp:0:interface=127.0.0.1\n")
        exec(example("pop3").replace("/srv/mail", self.path), self.names)
        service = IService(self.names["application"])
        self.run_service(service)
        [pop3d] = service
        notes = self.names["notes"]

        def session() -> tuple[Any, ...]:
            client = poplib.POP3("127.0.0.1", pop3d.ports[0].getHost().port, timeout=PATIENCE)
            client.user("ann")
            client.pass_("sesame")
            size, lines, uid = client.stat(), client.retr(1)[1], client.uidl(1).split()[-1]
            client.dele(1)
            client.quit()
            return size, lines, len(uid)

        def wrong() -> str:
            client = poplib.POP3("127.0.0.1", pop3d.ports[0].getHost().port, timeout=PATIENCE)
            client.user("ann")
            try:
                client.pass_("open")
            except poplib.error_proto as error:
                return str(error)
            finally:
                client.close()
            return "logged in"

        self.assertIn("[AUTH]", await deferToThread(wrong))
        self.assertEqual(notes, {b"ann": [b"Subject: milk\n\nand bread\n"]})
        self.assertEqual(await deferToThread(session), ((1, 28), [b"Subject: milk", b"", b"and bread"], 64))
        self.assertEqual(notes, {b"ann": []})

    def test_interfaces(self) -> None:
        """The example's mailbox is all that POP3 asks for."""
        exec(example("pop3").replace("/srv/mail", self.path), self.names)
        verifyObject(IMaildrop, self.names["Notes"]([]))
        verifyObject(IMessageSource, self.names["Whole"](b""))

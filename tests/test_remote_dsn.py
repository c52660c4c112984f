"""DSN parameters on their way to other servers (RFC 3461 §5.2.1, §5.2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred, gatherResults

from qtwist.mail.asked import PASSED_ON
from qtwist.mail.envelope import Report
from qtwist.wire import spawning
from tests.scripted_smtp import ScriptedSMTP
from tests.test_remote_spawn import ACCEPTED, SpawnerCase

KNOWS = b"250-mx.test\r\n250-PIPELINING\r\n250 DSN"
NOT_PIPELINED = b"250-mx.test\r\n250 DSN"
ASKED = ((b"a@x.test", b"NOTIFY=SUCCESS ORCPT=rfc822;o@x"), (b"b@x.test", b""), (b"c@x.test", b"NOTIFY=NEVER"))
TAKEN = Report.success(ACCEPTED + PASSED_ON)


class Passing(SpawnerCase):
    def deliveries(self, asked: Sequence[tuple[bytes, bytes]], mail: bytes) -> Deferred[list[Report]]:
        return gatherResults(
            [
                self.spawner.deliver(
                    attrs.evolve(self.delivery(recipient), siblings=len(asked), asked_mail=mail, asked=text)
                )
                for recipient, text in asked
            ]
        )

    async def test_knows(self) -> None:
        """In one transaction and with each its own; the report tells who takes over."""
        for ehlo in (KNOWS, NOT_PIPELINED):
            self.port, self.made = 0, None
            server = ScriptedSMTP(EHLO=ehlo)
            self.serve(server)
            found = await self.deliveries(ASKED, b"RET=HDRS ENVID=x")
            self.assertEqual(found, [TAKEN, Report.success(ACCEPTED), TAKEN])
            self.assertEqual(
                server.sessions[0][1:],
                [
                    b"MAIL FROM:<me@example.net> RET=HDRS ENVID=x",
                    b"RCPT TO:<a@x.test> NOTIFY=SUCCESS ORCPT=rfc822;o@x",
                    b"RCPT TO:<b@x.test>",
                    b"RCPT TO:<c@x.test> NOTIFY=NEVER",
                    b"DATA",
                ],
            )

    async def test_does_not(self) -> None:
        """Who does not announce DSN gets no parameters, and takes nothing over."""
        server = ScriptedSMTP(EHLO=b"250 mx.test")
        self.serve(server)
        found = await self.deliveries(ASKED[:1], b"RET=HDRS")
        self.assertEqual(found, [Report.success(ACCEPTED)])
        self.assertEqual(server.sessions[0][1:], [b"MAIL FROM:<me@example.net>", b"RCPT TO:<a@x.test>", b"DATA"])

    async def test_refused(self) -> None:
        """A refusal is a refusal."""
        self.serve(ScriptedSMTP(EHLO=KNOWS, RCPT=b"550 who?"))
        [report] = await self.deliveries(ASKED[:1], b"")
        self.assertEqual(report.letter, b"D")
        self.assertNotIn(PASSED_ON, report.text)

    def test_to_another_process(self) -> None:
        """Between the queue manager and its spawner; a packet without parameters is what it was."""
        plain = spawning.request(1, 2, b"a@x", b"b@y", 3)
        packet = spawning.request(1, 2, b"a@x", b"b@y", 3, (b"RET=FULL", b""))
        self.assertEqual(packet, plain + b"\0RET=FULL\0")
        for one in (plain, packet):
            self.assertEqual(spawning.read_request(one), (1, 2, b"a@x", b"b@y", 3))
        self.assertEqual(spawning.read_parameters(plain), (b"", b""))
        self.assertEqual(spawning.read_parameters(packet), (b"RET=FULL", b""))
        self.assertRaises(ValueError, spawning.read_request, plain + b"\0x")

"""The daemon's ``qmqp`` role over TCP (spec/qmail.md §17.2) with Postfix's qmqp-source as the client."""

from __future__ import annotations

from qtwist.wire.netstring import encode
from tests.e2e.harness import DaemonCase, free_port, program
from tests.socket_tools import talk


class QMQPTests(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        self.qmqp = free_port()
        self.write_control(
            "listen", f"smtp tcp:{self.port}:interface=127.0.0.1\nqmqp tcp:{self.qmqp}:interface=127.0.0.1\n"
        )

    def test_refused_by_default(self) -> None:
        """Nobody is served who is not listed; the client is told, and the log says it."""
        daemon = self.start()
        request = encode(encode(b"x\n") + encode(b"a@b.test") + encode(self.address.encode()))
        self.assertRegex(talk(self.qmqp, request), rb"^\d+:D[^,]*\(#5\.7\.1\),$")
        daemon.log.wait(r"127\.0\.0\.1 is refused: not listed in control/qmqpclients")
        self.assertEqual(self.queued(), [])

    def test_qmqp_source(self) -> None:
        """Ten sessions at once, five hundred messages of 5 KB."""
        source = program("qmqp-source", "postfix")
        self.write_control("qmqpclients", "127.0.0.0/8\n")
        daemon = self.start()
        arguments = ("-s", "10", "-m", "500", "-l", "5000", "-f", "joe@client.test", "-t", self.address)
        done = self.run_program(source, *arguments, f"127.0.0.1:{self.qmqp}")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        daemon.log.wait("end msg", 500)
        self.wait_empty_queue()
        messages = self.maildir()
        self.assertEqual(len(messages), 500)
        for message in messages:
            self.assertIn(b"with QMQP; ", message)

"""$QMAILQUEUE for servers: programs in place of the queue (spec/qmail.md §7)."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from qtwist.interfaces import QueueError
from qtwist.mail.envelope import Envelope
from qtwist.queue import filtering
from qtwist.queue.filtering import ProgramMessage

reactor: Any = _reactor
ENVELOPE = Envelope(b"a@b.test", (b"joe@mx.test", b"ann@mx.test"))


class ProgramTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="qtwist-filtering-")
        self.addCleanup(shutil.rmtree, self.home)

    def program(self, script: str) -> bytes:
        path = os.path.join(self.home, "filter")
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\n{script}\n")
        os.chmod(path, 0o755)
        return path.encode()

    def begin(self, script: str, **environ: str) -> ProgramMessage:
        known = {b"PATH": os.environb[b"PATH"], **{name.encode(): value.encode() for name, value in environ.items()}}
        return ProgramMessage(reactor, self.home, self.program(script), known)

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.home, name), "rb") as file:
            return file.read()

    async def refused(self, script: str) -> tuple[int, bytes]:
        message = self.begin(script)
        message.write(b"x\n")
        error = await self.assertFailure(message.commit(ENVELOPE), QueueError)
        return error.code, error.words

    async def test_taken(self) -> None:
        """Message and envelope as qmail-queue gets them, in the home, with the client's variables."""
        message = self.begin('cat >message; cat <&1 >envelope; echo "$TCPREMOTEIP $PWD" >said', TCPREMOTEIP="192.0.2.1")
        message.write(b"Subject: x\n")
        message.write(b"\nbody\n")
        accepted = await message.commit(ENVELOPE)
        self.assertEqual(accepted.qp, accepted.number)
        self.assertEqual(self.read("message"), b"Subject: x\n\nbody\n")
        self.assertEqual(self.read("envelope"), b"Fa@b.test\0Tjoe@mx.test\0Tann@mx.test\0\0")
        self.assertEqual(self.read("said").split()[0], b"192.0.2.1")
        self.assertEqual(os.path.realpath(self.read("said").split()[1]), os.path.realpath(self.home.encode()))
        message.abort()

    async def test_codes(self) -> None:
        self.assertEqual(await self.refused("cat >/dev/null; exit 31"), (31, b""))
        words = "cat >/dev/null; printf 'Dno\\tspam (#5.7.1)' >&6; exit 82"
        self.assertEqual(await self.refused(words), (82, b"Dno?spam (#5.7.1)"))
        self.assertEqual((await self.refused("head -c 300 /dev/zero | tr '\\0' x >&6; exit 82"))[1], b"x" * 255)
        self.assertEqual(await self.refused("kill -9 $$"), (81, b""))

    async def test_no_program(self) -> None:
        for name in (b"/nonexistent", b"filter"):
            error = self.assertRaises(QueueError, ProgramMessage, reactor, self.home, name, {})
            self.assertEqual(error.code, 120)

    async def test_a_large_message(self) -> None:
        """The program sets the pace."""
        message = self.begin("sleep 0.1; cat | wc -c >size; cat <&1 >envelope")
        block = b"x" * 65535 + b"\n"
        waited = 0
        for _ in range(100):
            slow = message.write(block)
            if slow is not None:
                waited += 1
                await slow
        await message.commit(ENVELOPE)
        self.assertEqual(int(self.read("size")), 100 * len(block))
        self.assertGreater(waited, 0)

    async def test_one_that_does_not_read(self) -> None:
        """Its exit code counts; it does not get a complete envelope for half a message."""
        message = self.begin("exec <&-; cat <&1 >envelope; exit 31")
        slow: Any = None
        for _ in range(1000):
            slow = message.write(b"x" * 65536)
            if slow is not None:
                await slow
        error = await self.assertFailure(message.commit(ENVELOPE), QueueError)
        self.assertEqual(error.code, 31)
        self.assertFalse(self.read("envelope").endswith(b"\0\0"))

    async def test_given_up(self) -> None:
        """The program sees an envelope without an end."""
        message = self.begin("cat >message; cat <&1 >envelope")
        message.write(b"half")
        ended = message._run.ended
        message.abort()
        message.abort()
        await ended
        self.assertEqual((self.read("message"), self.read("envelope")), (b"half", b""))

    async def test_given_up_and_deaf(self) -> None:
        """It is killed some seconds after there is nothing more for it to do; one that ends by itself is not."""
        clock = Clock()
        message = self.begin("trap '' TERM HUP; exec <&-; while :; do sleep 0.05; done")
        message._reactor = clock
        ended = message._run.ended
        message.abort()
        clock.advance(filtering.GRACE)
        self.assertEqual(await ended, 81)
        other = self.begin("cat >/dev/null; cat <&1 >/dev/null")
        other._reactor = clock
        other.abort()
        self.assertEqual(await other._run.ended, 0)
        self.assertEqual(clock.getDelayedCalls(), [])

    async def test_one_that_stops_reading(self) -> None:
        """In the middle of the message: who waits for it does not wait for ever."""
        clock = Clock()
        message = self.begin("head -c 10 >/dev/null; exec sleep 1000")
        message._reactor = clock
        while (slow := message.write(b"x" * 65536)) is None:
            pass
        self.assertFalse(slow.called)
        clock.advance(filtering.PATIENCE)
        await slow
        error = await self.assertFailure(message.commit(ENVELOPE), QueueError)
        self.assertEqual(error.code, 81)
        self.assertEqual(clock.getDelayedCalls(), [])

    async def test_one_that_hangs(self) -> None:
        clock = Clock()
        message = self.begin("exec sleep 1000")
        message._reactor = clock
        gone: Deferred[None] = Deferred()
        ended = message._run.processEnded

        def over(reason: Any) -> None:
            ended(reason)
            gone.callback(None)

        message._run.processEnded = over  # type: ignore[method-assign]
        answer = message.commit(ENVELOPE)
        clock.advance(filtering.PATIENCE)
        error = await self.assertFailure(answer, QueueError)
        self.assertEqual(error.code, 52)
        await gone

"""FileQueue as the other rooms see it: IQueue over real files, threads and the reactor (spec/qmail.md §5-§6, §9)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults, succeed
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from qtwist.files.disk import Disk, RealDisk
from qtwist.interfaces import Accepted, IIncomingMessage, IQueue, Preprocessed, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.files import WORKERS, FileQueue
from qtwist.queue.incoming import HIGH_WATER, MEMORY_LIMIT
from qtwist.queue.layout import LayoutError
from qtwist.queue.trigger import TriggerReader, pull_trigger
from tests.queue_tools import (
    CountingDisk,
    Trouble,
    WatchedDisk,
    descriptors,
    files_of,
    make_queue,
    put_message,
    read,
    write,
)

JOE = Envelope(b"a@b", (b"joe@x",))

# What qmail-queue does (§6.2), as a program of somebody else.
FOREIGN_QMAIL_QUEUE = r"""
import os
fd = os.open("pid/1.2.3", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
number = os.fstat(fd).st_ino
os.link("pid/1.2.3", f"mess/{number % 23}/{number}")
os.unlink("pid/1.2.3")
os.write(fd, b"Received: (qmail 77 invoked by uid 0); 2 Nov 2026 12:00:00 -0000\nhello\n")
os.fsync(fd)
with open(f"intd/{number}", "xb") as intd:
    intd.write(b"u0\0p77\0Fa@b\0Tjoe@x\0")
os.link(f"intd/{number}", f"todo/{number}")
trigger = os.open("lock/trigger", os.O_WRONLY | os.O_NONBLOCK)
os.write(trigger, b"\0")
os.close(trigger)
print(number)
"""


class QueueCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.layout = make_queue(self)  # type: ignore[arg-type]

    def start(self, disk: Disk | None = None) -> FileQueue:
        queue = FileQueue(self.layout.directory, disk or RealDisk(), reactor)
        queue.start()
        stopped: list[Deferred[None]] = []

        def stop() -> Deferred[None]:
            # Once, whether a test does it or its clean-up.
            if not stopped:
                stopped.append(FileQueue.stop(queue))
                return stopped[0]
            return succeed(None)

        queue.stop = stop  # type: ignore[method-assign]
        self.addCleanup(queue.stop)
        return queue

    def open_files(self) -> list[str]:
        """What this process has open in the queue."""
        return [name for name in descriptors() if os.path.abspath(self.layout.directory) in name]

    async def accept(self, queue: FileQueue, *blocks: bytes, envelope: Envelope = JOE) -> Accepted:
        message = queue.begin(Origin.network(1000))
        for block in blocks:
            ready = message.write(block)
            if ready is not None:
                await ready
        return await message.commit(envelope)

    async def refused(self, work: Coroutine[Any, Any, Accepted] | Deferred[Accepted]) -> QueueError:
        try:
            await work
        except QueueError as error:
            return error
        raise AssertionError("accepted")

    def body(self, number: int) -> bytes:
        return read(self.layout.path("mess", number)).split(b"\n", 1)[1]


class AcceptTests(QueueCase):
    def test_interfaces(self) -> None:
        queue = self.start()
        verifyObject(IQueue, queue)
        message = queue.begin(Origin.network(0))
        verifyObject(IIncomingMessage, message)
        message.abort()

    def test_not_a_queue(self) -> None:
        self.assertRaises(LayoutError, FileQueue, self.mktemp(), RealDisk(), reactor)

    async def test_small(self) -> None:
        queue = self.start()
        accepted = await self.accept(queue, b"Subject: x\n", b"\nhello\n")
        self.assertEqual(self.body(accepted.number), b"Subject: x\n\nhello\n")
        self.assertTrue(
            read(self.layout.path("mess", accepted.number)).startswith(
                b"Received: (qmail %d invoked from " % accepted.number
            )
        )
        self.assertEqual(await queue.todo(), [accepted.number])

    async def test_empty(self) -> None:
        accepted = await self.accept(self.start())
        self.assertEqual(self.body(accepted.number), b"")

    async def test_spill_boundary(self) -> None:
        queue = self.start()
        for size in (MEMORY_LIMIT, MEMORY_LIMIT + 1):
            message = queue.begin(Origin.network(1000))
            message.write(b"x" * size)
            accepted = await message.commit(JOE)
            self.assertEqual(self.body(accepted.number), b"x" * size)

    async def test_large_with_back_pressure(self) -> None:
        """Blocks arrive whole and in order; the writer is made to wait, and no more than a bound is kept."""
        queue = self.start()
        message = queue.begin(Origin.network(1000))
        blocks = [bytes([65 + index % 26]) * 50_000 for index in range(100)]
        waits = 0
        for block in blocks:
            ready = message.write(block)
            self.assertLessEqual(message._waiting, HIGH_WATER + len(block))
            if ready is not None:
                waits += 1
                await ready
        accepted = await message.commit(JOE)
        self.assertGreater(waits, 5)
        self.assertEqual(self.body(accepted.number), b"".join(blocks))

    async def test_writer_that_does_not_wait(self) -> None:
        queue = self.start()
        message = queue.begin(Origin.network(1000))
        waits = [message.write(b"%06d" % index * 10000) for index in range(50)]
        accepted = await message.commit(JOE)
        self.assertEqual(self.body(accepted.number), b"".join(b"%06d" % index * 10000 for index in range(50)))
        await gatherResults([ready for ready in waits if ready is not None])

    async def test_many_at_once_share_flushes(self) -> None:
        """Group commit: fifty sessions need a few flushes, not fifty times as many."""
        disk = CountingDisk()
        queue = self.start(disk)
        disk.counts.clear()
        todo_calls: list[None] = []
        queue.on_todo(lambda: todo_calls.append(None))
        accepted = await gatherResults([Deferred.fromCoroutine(self.accept(queue, b"%d\n" % i)) for i in range(50)])
        self.assertEqual(len({one.number for one in accepted}), 50)
        self.assertEqual([self.body(one.number) for one in accepted], [b"%d\n" % i for i in range(50)])
        self.assertLess(disk.counts["fsync"] + disk.counts["sync_filesystem"], 25)
        await queue.todo()  # the callbacks come after the answers
        self.assertGreater(len(todo_calls), 0)

    async def test_bad_envelope(self) -> None:
        queue = self.start()
        for body in (b"x", b"x" * 300_000):
            error = await self.refused(self.accept(queue, body, envelope=Envelope(b"a", (b"r" * 1003,))))
            self.assertEqual(error.code, 11)
        self.assertEqual(files_of(self.layout), set())

    async def test_abort(self) -> None:
        queue = self.start()
        for size in (10, 300_000):
            message = queue.begin(Origin.network(1000))
            ready = message.write(b"x" * size)
            message.abort()
            message.abort()
            if ready is not None:
                await ready
            self.assertIsNone(message.write(b"more"))
            self.assertEqual((await self.refused(message.commit(JOE))).code, 81)
        message = queue.begin(Origin.network(1000))
        committed = message.commit(JOE)
        message.abort()
        self.assertEqual((await self.refused(message.commit(JOE))).code, 81)
        accepted = await committed
        message.abort()
        await queue.stop()
        self.assertEqual(len(files_of(self.layout)), 3)
        self.assertEqual(self.body(accepted.number), b"")

    async def test_stop(self) -> None:
        """What was to be committed is; what was only begun is dropped; what comes later is refused."""
        queue = self.start()
        small, large, dropped = (queue.begin(Origin.network(1000)) for _ in range(3))
        small.write(b"small")
        large.write(b"x" * 300_000)
        dropped.write(b"y" * 300_000)
        committed = [small.commit(JOE), large.commit(JOE)]
        await queue.stop()
        accepted = [self.successResultOf(one) for one in committed]
        self.assertEqual([self.body(one.number) for one in accepted], [b"small", b"x" * 300_000])
        self.assertEqual(len(files_of(self.layout)), 6)
        self.assertEqual((await self.refused(self.accept(queue, b"late"))).code, 62)
        self.assertEqual((await self.refused(self.accept(queue, b"late" * 100_000))).code, 62)
        self.assertEqual(len(files_of(self.layout)), 6)
        self.assertEqual(self.open_files(), [])


class FailingDiskTests(QueueCase):
    async def test_every_call(self) -> None:
        """However the disk fails while a large message is written: a QueueError, and nothing left in todo."""
        codes = set()
        k = 0
        while True:
            k += 1
            self.layout = make_queue(self, split=2)  # type: ignore[arg-type]
            trouble = Trouble(1 << 62, code=errno.ENOSPC)
            queue = self.start(WatchedDisk(trouble))
            trouble.first, trouble.calls = k, 0
            message = queue.begin(Origin.network(1000))
            ready = message.write(b"x" * 300_000)
            if ready is not None:
                await ready
            message.write(b"y" * 300_000)
            try:
                accepted = await message.commit(JOE)
            except QueueError as error:
                codes.add(error.code)
                self.assertFalse(any(name.startswith("todo") for name in files_of(self.layout)), trouble.struck)
            else:
                self.assertEqual(self.body(accepted.number), b"x" * 300_000 + b"y" * 300_000)
            await queue.stop()
            self.assertEqual(self.open_files(), [], trouble.struck)
            if not trouble.struck:
                break
        self.assertEqual(codes, {53, 63, 64, 65, 66})

    async def test_waiting_writer(self) -> None:
        """Who waits for a disk that fails goes on, and hears of it at the commit."""
        fails = threading.Event()

        def watch(name: str) -> None:
            if name == "write":
                fails.wait(30)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        message = self.start(WatchedDisk(watch)).begin(Origin.network(1000))
        while (ready := message.write(b"x" * 65536)) is None:
            pass
        fails.set()
        await ready
        self.assertEqual((await self.refused(message.commit(JOE))).code, 53)

    async def test_error_is_kept_until_commit(self) -> None:
        trouble = Trouble(1 << 62)
        queue = self.start(WatchedDisk(trouble))
        trouble.first, trouble.calls, trouble.lasting = 1, 0, True
        message = queue.begin(Origin.network(1000))
        ready = message.write(b"x" * 300_000)
        assert ready is not None
        await ready
        self.assertIsNone(message.write(b"x" * 300_000))
        self.assertEqual((await self.refused(message.commit(JOE))).code, 63)

    async def test_reading_side(self) -> None:
        """OSError for the queue manager, who tries again later."""
        queue = self.start()
        for call in (
            queue.info(5),
            queue.open(5),
            queue.mark(5, "local", 0),
            queue.postpone(5, "local", 0.0),
            queue.recipients(5, "local", 0, 1),
        ):
            await self.assertFailure(call, FileNotFoundError)

    async def test_due_times_of_many(self) -> None:
        number = put_message(self.layout, b"hello\n", info=b"Fa@b\0", local=b"Tjoe@x\0")
        queue = self.start()
        self.assertEqual(await queue.postpone_all("local", [(5, 1.0), (number, 2.0), (6, 3.0)]), [5, 6])
        self.assertEqual(os.stat(self.layout.path("local", number)).st_mtime, 2.0)


class LifeTests(QueueCase):
    async def test_a_message_is_born_and_ends(self) -> None:
        """§9.5's "life of one message on disk", by IQueue alone."""
        queue = self.start()
        queue.lock()
        accepted = await self.accept(queue, b"hello\n", envelope=Envelope(b"a@b", (b"x", b"y@z")))
        number = accepted.number
        [done] = await queue.preprocess(
            await queue.todo(), lambda r: ("remote", r) if b"@" in r else ("local", r + b"@me")
        )
        assert isinstance(done, Preprocessed)
        self.assertEqual(
            (done.number, done.qp, done.uid, done.channels), (number, number, 1000, frozenset({"local", "remote"}))
        )
        self.assertEqual(await queue.todo(), [])
        info = await queue.info(number)
        self.assertEqual((info.sender, info.birth), (b"a@b", done.birth))
        fd = await queue.open(number)
        self.assertEqual(os.pread(fd, done.size + 1, 0), read(self.layout.path("mess", number)))
        os.close(fd)
        [record], _ = await queue.recipients(number, "local", 0, 10)
        self.assertEqual(record.address, b"x@me")
        await queue.mark(number, "local", record.offset)
        [record], _ = await queue.recipients(number, "local", 0, 10)
        self.assertTrue(record.done)
        await queue.finish_channel(number, "local")
        await queue.postpone(number, "remote", 1234567890.0)
        self.assertIsNone(await queue.bounce(number))
        await queue.append_bounce(number, b"<y@z>:\nno\n\n")
        self.assertEqual(await queue.bounce(number), b"<y@z>:\nno\n\n")
        # As after a restart: another object finds it.
        await queue.stop()
        queue = self.start()
        found = [message for batch in queue.scan() for message in await batch]
        self.assertEqual([(message.number, message.due) for message in found], [(number, {"remote": 1234567890.0})])
        await queue.finish_channel(number, "remote")
        await queue.discard_bounce(number)
        await queue.finish(number)
        self.assertEqual(files_of(self.layout), set())

    async def test_scan_leaves_out_what_this_process_preprocessed(self) -> None:
        """The manager knows those already; before, during and after, each message is reported once."""
        queue = self.start()
        old = put_message(self.layout, b"", info=b"Fa\0", local=b"Ta\0")
        early = (await self.accept(queue, b"early")).number
        await queue.preprocess([early], lambda recipient: ("local", recipient))
        found = []
        for batch in queue.scan():
            late = (await self.accept(queue, b"late")).number
            await queue.preprocess([late], lambda recipient: ("local", recipient))
            found += [message.number for message in await batch]
        self.assertEqual(found, [old])

    async def test_garbage(self) -> None:
        """What is being accepted stays, however old it looks (§5.4)."""
        queue = self.start()
        message = queue.begin(Origin.network(1000))
        ready = message.write(b"x" * 300_000)
        assert ready is not None
        await ready
        put_message(self.layout, b"dead")
        for name in files_of(self.layout):
            os.utime(f"{self.layout.directory}/{name}", (0, 0))
        await queue.collect_garbage()
        self.assertEqual(len(files_of(self.layout)), 1)
        accepted = await message.commit(JOE)
        self.assertEqual(self.body(accepted.number), b"x" * 300_000)

    async def test_not_yet_durable_is_not_in_todo(self) -> None:
        """Between the link and the sync of todo/ nobody may deliver, for it may be refused still."""
        seen: list[list[int]] = []

        class Slow(RealDisk):
            def fsync_directory(disk, path: object) -> None:
                if str(path).endswith("/todo"):
                    seen.append(queue._todo())
                    raise OSError(errno.EIO, "broken")
                super().fsync_directory(path)  # type: ignore[arg-type]

        queue = self.start(Slow())
        self.assertEqual((await self.refused(self.accept(queue, b"x"))).code, 66)
        self.assertEqual(seen, [[]])
        self.assertEqual(files_of(self.layout), set())


class BounceTests(QueueCase):
    async def test_marks_wait_for_nobody(self) -> None:
        """Whatever waits for the disk: a success that is not marked is delivered again after a kill."""
        number = put_message(self.layout, b"hello\n", info=b"Fa@b\0", local=b"Tjoe@x\0")
        released = threading.Event()
        disk = WatchedDisk(lambda name: released.wait(60) if name == "fsync" else None)
        queue = self.start(disk)
        self.addCleanup(released.set)
        done: list[None] = []
        appends = [queue.append_bounce(other, b"x\n\n").addCallback(done.append) for other in range(3 * WORKERS)]
        await queue.mark(number, "local", 0)
        self.assertEqual(read(self.layout.path("local", number)), b"Djoe@x\0")
        self.assertEqual(done, [])
        released.set()
        await gatherResults(appends)

    async def test_one_append_at_a_time(self) -> None:
        """One that fails cuts off what it wrote: what another has written in the meantime would go with it."""
        begun, go_on = threading.Event(), threading.Event()

        class Slow(RealDisk):
            def fsync(disk, fd: int) -> None:
                if not begun.is_set():
                    begun.set()
                    go_on.wait(30)
                    raise OSError(errno.EIO, "broken")
                super().fsync(fd)

        queue = self.start(Slow())
        write(self.layout.path("bounce", 7), b"<old@b>:\nno\n\n")
        answers = [queue.append_bounce(7, b"<%d@b>:\nno\n\n" % number) for number in range(3)]
        for _ in range(10):  # jobs that come after these in the line
            self.assertIn(await queue.bounce(7), (b"<old@b>:\nno\n\n", b"<old@b>:\nno\n\n<0@b>:\nno\n\n"))
        go_on.set()
        results = await DeferredList(answers, consumeErrors=True)
        self.assertEqual([good for good, _ in results], [False, True, True])
        self.assertEqual(await queue.bounce(7), b"<old@b>:\nno\n\n<1@b>:\nno\n\n<2@b>:\nno\n\n")
        self.assertEqual(queue._bouncing, {})


class LockTests(QueueCase):
    async def test_orphans(self) -> None:
        """Files without a message, as a crash may bring them back, are removed before anything is delivered."""
        write(self.layout.path("info", 999_999_999), b"Fa\0")
        queue = self.start()
        queue.lock()
        self.assertEqual(files_of(self.layout), set())

    async def test_one_manager(self) -> None:
        """§9.1: the second one is told at once; after the first has stopped it may."""
        first, second = self.start(), self.start()
        first.lock()
        self.assertRaises(BlockingIOError, second.lock)
        await first.stop()
        second.lock()

    def test_foreign_manager(self) -> None:
        program = (
            "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
        )
        manager = subprocess.Popen(
            [sys.executable, "-c", program, self.layout.lock("sendmutex")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert manager.stdout is not None
        manager.stdout.readline()
        queue = self.start()
        self.assertRaises(BlockingIOError, queue.lock)
        manager.communicate(b"\n")
        queue.lock()

    def test_no_trigger(self) -> None:
        """The lock is given back when the trigger cannot be watched."""
        queue = self.start()
        os.unlink(self.layout.lock("trigger"))
        self.assertRaises(FileNotFoundError, queue.lock)
        os.mkfifo(self.layout.lock("trigger"))
        queue.lock()


class TriggerTests(QueueCase):
    async def test_foreign_program(self) -> None:
        """A qmail-queue that nobody here wrote is seen at once (§5.2, §9.4), again and again."""
        queue = self.start()
        queue.lock()
        for sender in range(3):
            pulled: Deferred[None] = Deferred()
            queue.on_todo(lambda pulled=pulled: None if pulled.called else pulled.callback(None))
            program = subprocess.Popen(  # noqa: ASYNC220 (the trigger is the answer that is waited for)
                [sys.executable, "-c", FOREIGN_QMAIL_QUEUE], cwd=self.layout.directory, stdout=subprocess.PIPE
            )
            await pulled
            number = int(program.communicate()[0])
            self.assertEqual(await queue.todo(), [number], sender)
            [done] = await queue.preprocess([number], lambda recipient: ("local", recipient))
            assert isinstance(done, Preprocessed)
            self.assertEqual((done.qp, done.uid, done.sender), (77, 0, b"a@b"))
            self.assertEqual(read(self.layout.path("local", number)), b"Tjoe@x\0")

    async def test_without_the_lock_the_manager_is_woken(self) -> None:
        manager, door = self.start(), self.start()
        manager.lock()
        pulled: Deferred[None] = Deferred()
        manager.on_todo(lambda: None if pulled.called else pulled.callback(None))
        accepted = await self.accept(door, b"x")
        await pulled
        self.assertEqual(await manager.todo(), [accepted.number])

    def test_reader(self) -> None:
        """Many pulls before a look are one; a closed writer does not make the FIFO readable for ever."""
        pulls: list[None] = []
        path = self.layout.lock("trigger")
        trigger = TriggerReader(reactor, path, lambda: pulls.append(None))
        pull_trigger(path)  # nobody watches: no harm
        trigger.start()
        for _ in range(3):
            pull_trigger(path)
        trigger.doRead()
        trigger.doRead()
        self.assertEqual(len(pulls), 1)
        for _ in range(100_000):
            pull_trigger(path)  # more than the FIFO holds: no harm
        trigger.doRead()
        self.assertEqual(len(pulls), 2)
        trigger.stop()
        trigger.stop()
        self.assertEqual(self.open_files(), [])

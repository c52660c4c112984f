"""Large messages in the journal: what is in memory, what in the file that holds the number, and what becomes of it."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.files.disk import Disk, RealDisk
from qtwist.interfaces import Accepted, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue import journal as records
from qtwist.queue import journaled, settling
from qtwist.queue.accept import BAD_ENVELOPE, WRITE_ERROR
from qtwist.queue.incoming_entry import IncomingEntry
from qtwist.queue.journal import KEPT, Entry, Journal, Record, replay
from qtwist.queue.journaled import JournaledQueue
from qtwist.queue.large import LargeMessage, copy, publish
from qtwist.queue.layout import Layout
from qtwist.queue.numbers import Numbers
from qtwist.queue.records import format_envelope
from qtwist.queue.recovery import journal_directory, recover
from qtwist.queue.store import Store
from tests.queue_tools import CountingDisk, WatchedDisk, files_of, make_queue, open_files, read

JOE = Envelope(b"a@b", (b"joe@x",))
#: Then a record has 128 KiB at most.
SEGMENT = 256 * 1024
BLOCK = b"x" * 65535 + b"\n"
TEXT = BLOCK * 3


class LargeCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.layout = make_queue(self)  # type: ignore[arg-type]
        self.directory = journal_directory(self.layout)

    def start(self, disk: Disk | None = None, segment: int = SEGMENT) -> JournaledQueue:
        queue = JournaledQueue(self.layout.directory, disk or RealDisk(), reactor, segment)
        queue.start()
        queue.lock()
        stopped: list[Deferred[None]] = []

        def stop() -> Deferred[None]:
            if not stopped:
                stopped.append(JournaledQueue.stop(queue))
                return stopped[0]
            return succeed(None)

        queue.stop = stop  # type: ignore[method-assign]
        self.addCleanup(queue.stop)
        return queue

    async def write(self, queue: JournaledQueue, text: bytes) -> IncomingEntry:
        message: IncomingEntry = queue.begin(Origin.network(1000))
        for start in range(0, len(text), len(BLOCK)):
            ready = message.write(text[start : start + len(BLOCK)])
            if ready is not None:
                await ready
        return message

    async def accept(self, queue: JournaledQueue, text: bytes = TEXT) -> Accepted:
        return await (await self.write(queue, text)).commit(JOE)

    async def text(self, queue: JournaledQueue, number: int) -> bytes:
        """What deliveries read, without the Received line."""
        fd = await queue.open(number)
        try:
            return os.pread(fd, 1 << 24, 0).partition(b"\n")[2]
        finally:
            os.close(fd)

    def held(self, number: int) -> bytes:
        """What is in the file of a number."""
        return read(f"{self.directory}/{number}")

    def sizes(self) -> set[int]:
        """Those of the files in the journal's directory."""
        return {os.path.getsize(f"{self.directory}/{name}") for name in os.listdir(self.directory)}

    def size(self, name: str) -> int:
        """That of one of them, 0 when it has just gone."""
        try:
            return os.path.getsize(f"{self.directory}/{name}")
        except FileNotFoundError:
            return 0

    async def gone(self, number: int) -> None:
        while os.path.exists(f"{self.directory}/{number}"):
            await task.deferLater(reactor, 0.01)


class CopyTests(SynchronousTestCase):
    def test_durable(self) -> None:
        """In a copy of a queue a message moves to another file, and is there before the journal counts on it."""
        directory = self.mktemp()
        os.mkdir(directory)
        for name, contents in (("1", TEXT), ("2", b"x" * len(TEXT) * 2)):
            with open(f"{directory}/{name}", "wb") as file:
                file.write(contents)
        calls: list[str] = []
        copy(WatchedDisk(calls.append), directory, 1, 2)
        self.assertEqual(read(f"{directory}/2"), TEXT)
        self.assertEqual([name for name in calls if name in ("write", "fsync")][-2:], ["write", "fsync"])


class InFileTests(LargeCase):
    async def test_accepted(self) -> None:
        """One sync of the file, one record; no directory is synced, and no file of qmail's is made."""
        disk = CountingDisk()
        queue = self.start(disk)
        disk.counts.clear()
        accepted = await self.accept(queue)
        syncs = {name: count for name, count in disk.counts.items() if "sync" in name}
        self.assertEqual(syncs, {"fsync": 1, "sync_data": 1})
        self.assertEqual(self.held(accepted.number).partition(b"\n")[2], TEXT)
        self.assertEqual([name for name in files_of(self.layout) if not name.startswith("journal/")], [])
        self.assertEqual(await self.text(queue, accepted.number), TEXT)
        [found] = await queue.preprocess([accepted.number], lambda address: ("local", address))
        assert not isinstance(found, tuple)
        self.assertEqual(found.size, len(self.held(accepted.number)))

    async def test_ended(self) -> None:
        """The file goes, but not before the journal has forgotten the message, durably."""
        order: list[str] = []
        queue = self.start(WatchedDisk(order.append))
        accepted = await self.accept(queue)
        await queue.preprocess([accepted.number], lambda address: ("local", address))
        del order[:]
        await queue.finish(accepted.number)
        await self.gone(accepted.number)
        self.assertEqual([name for name in order if name in ("sync_data", "unlink")], ["sync_data", "unlink"])

    async def test_room_of_what_has_ended(self) -> None:
        """Small messages are in the journal itself, which grows with what is alive, not with what has been."""
        queue = self.start()
        for _ in range(30):
            accepted = await self.accept(queue, BLOCK)
            await queue.preprocess([accepted.number], lambda address: ("local", address))
            await queue.finish(accepted.number)
        self.assertLessEqual(sum(self.size(name) for name in os.listdir(self.directory)), 4 * SEGMENT)

    async def test_descriptors(self) -> None:
        """None stays open: not of messages that have ended, nor of those that were given up."""
        queue = self.start()
        known: list[int] = []
        for _ in range(6):
            accepted = await self.accept(queue)
            await queue.preprocess([accepted.number], lambda address: ("local", address))
            await queue.finish(accepted.number)
            await self.gone(accepted.number)
            (await self.write(queue, TEXT)).abort()
            known.append(len(open_files(self.directory)))
        # The journal's, and those of numbers that are laid in stock; an abort may be under way.
        self.assertLessEqual(known[-1], known[0] + 1, known)

    async def test_nobody_elses_message(self) -> None:
        """Who still reads from a message that has ended never sees another one there."""
        queue = self.start()
        accepted = await self.accept(queue)
        await queue.preprocess([accepted.number], lambda address: ("local", address))
        fd = await queue.open(accepted.number)
        self.addCleanup(os.close, fd)
        await queue.finish(accepted.number)
        await self.gone(accepted.number)
        for _ in range(70):
            other = await self.accept(queue, BLOCK * 2 + b"secret\n")
            self.assertNotEqual(other.number, accepted.number)
        self.assertEqual(os.pread(fd, 1 << 24, 0).partition(b"\n")[2], TEXT)

    async def test_stopped(self) -> None:
        """Settled, the file is the mess file: nothing is written again."""
        disk = CountingDisk()
        queue = self.start(disk)
        accepted = await self.accept(queue)
        before = disk.counts["write"]
        await queue.stop()
        self.assertLess(disk.counts["write"] - before, 3)  # the envelope
        path = self.layout.path("mess", accepted.number)
        self.assertEqual(os.stat(path).st_ino, accepted.number)
        self.assertEqual(read(path).partition(b"\n")[2], TEXT)
        self.assertFalse(os.path.exists(f"{self.directory}/{accepted.number}"))
        self.assertEqual(Store(RealDisk(), self.layout).numbers("todo"), [accepted.number])

    async def test_aborted(self) -> None:
        queue = self.start()
        message = await self.write(queue, TEXT)
        message.abort()
        await queue.stop()
        self.assertEqual(self.sizes(), {0, SEGMENT})

    async def test_full_meanwhile(self) -> None:
        """A journal that takes nothing more when the message is there: it becomes qmail's files, with its number."""
        queue = self.start()
        message = await self.write(queue, TEXT)
        self.patch(settling, "MOST_MESSAGES", 0)
        accepted = await message.commit(JOE)
        self.assertEqual(read(self.layout.path("mess", accepted.number)).partition(b"\n")[2], TEXT)
        self.assertEqual(await queue.todo(), [accepted.number])
        self.assertFalse(os.path.exists(f"{self.directory}/{accepted.number}"))
        self.assertEqual(await self.text(queue, accepted.number), TEXT)

    async def test_bad_envelope(self) -> None:
        queue = self.start()
        message = await self.write(queue, TEXT)
        error = await self.assertFailure(message.commit(Envelope(b"a@b", (b"joe\0@x",))), QueueError)
        self.assertEqual(error.code, BAD_ENVELOPE)
        self.assertEqual([name for name in files_of(self.layout) if not name.startswith("journal/")], [])
        self.assertEqual(self.sizes(), {0, SEGMENT})

    async def test_failing_disk(self) -> None:
        """What the disk does not take is refused, and its file removed."""
        for operation in ("write", "fsync"):
            failing: list[str] = []

            def fail(name: str, operation: str = operation, failing: list[str] = failing) -> None:
                if failing and name == operation:
                    raise OSError(errno.ENOSPC, "full")

            queue = self.start(WatchedDisk(fail))
            failing.append(operation)
            error = await self.assertFailure(Deferred.fromCoroutine(self.accept(queue)), QueueError)
            self.assertEqual(error.code, WRITE_ERROR)
            del failing[:]
            await queue.stop()
            self.assertEqual(self.sizes(), {0, SEGMENT})

    async def test_failing_journal(self) -> None:
        """Nobody knows whether the record lasts, so its file stays until a start has found out. Mail goes on."""
        failing: list[str] = []

        def fail(name: str) -> None:
            if failing and name == "sync_data":
                raise OSError(errno.EIO, "")

        queue = self.start(WatchedDisk(fail))
        failing.append("")
        error = await self.assertFailure(Deferred.fromCoroutine(self.accept(queue)), QueueError)
        self.assertEqual(error.code, WRITE_ERROR)
        accepted = await self.accept(queue)
        self.assertEqual(read(self.layout.path("mess", accepted.number)).partition(b"\n")[2], TEXT)


class InMemoryTests(LargeCase):
    async def test_a_mebibyte(self) -> None:
        """A message of 1 MiB is in one record, and counts as long as it is in memory."""
        disk = CountingDisk()
        queue = self.start(disk, 8 * 1024 * 1024)
        disk.counts.clear()
        message = await self.write(queue, BLOCK * 16)
        self.assertEqual(queue._incoming_octets, len(BLOCK) * 16)
        accepted = await message.commit(JOE)
        self.assertEqual({name: count for name, count in disk.counts.items() if "sync" in name}, {"sync_data": 1})
        self.assertEqual(self.held(accepted.number), b"")
        self.assertEqual(queue._incoming_octets, 0)
        self.assertGreater(queue._octets, len(BLOCK) * 16)
        self.assertEqual(await self.text(queue, accepted.number), BLOCK * 16)
        await queue.preprocess([accepted.number], lambda address: ("local", address))
        await queue.finish(accepted.number)
        self.assertEqual(queue._octets, 0)

    async def test_bound(self) -> None:
        """All that are on their way in or accepted may have so much together; what comes beyond goes to its file."""
        self.patch(journaled, "MOST_OCTETS_WITH_LARGE", 5 * len(BLOCK))
        queue = self.start(segment=8 * 1024 * 1024)
        first = await self.write(queue, TEXT)
        second = await self.write(queue, TEXT)
        self.assertEqual(queue._incoming_octets, len(TEXT))
        accepted = await second.commit(JOE)
        self.assertEqual(self.held(accepted.number).partition(b"\n")[2], TEXT)
        first.abort()
        self.assertEqual(queue._incoming_octets, 0)
        accepted = await self.accept(queue)
        self.assertEqual(self.held(accepted.number), b"")
        third = await self.accept(queue)
        self.assertEqual(self.held(third.number).partition(b"\n")[2], TEXT)

    async def test_grown_too_large(self) -> None:
        """What was kept is kept no more when the message goes to its file."""
        queue = self.start(segment=8 * 1024 * 1024)
        message = await self.write(queue, BLOCK * 18)
        self.assertEqual(queue._incoming_octets, 0)
        accepted = await message.commit(JOE)
        self.assertEqual(self.held(accepted.number).partition(b"\n")[2], BLOCK * 18)


class RecordTests(SynchronousTestCase):
    ENTRY = Entry(5, 1.5, b"Fa\0", b"", in_file=258)

    def test_octets(self) -> None:
        """As journals on disks have it."""
        record = records.accept(self.ENTRY)
        self.assertEqual((record.kind, record.payload.hex()), (b"L", "3ff80000000000000000000000000102466100"))

    def test_replayed(self) -> None:
        told = [records.accept(self.ENTRY), Record(records.BOUNCE, 5, b"one\n\n")]
        [entry] = replay(told).values()
        self.assertEqual((entry.birth, entry.envelope, entry.message, entry.size), (1.5, b"Fa\0", b"", 258))
        self.assertEqual(bytes(entry.bounce or b""), b"one\n\n")
        self.assertEqual(replay([*told, Record(records.END, 5)]), {})

    def test_too_short(self) -> None:
        self.assertRaises(ValueError, replay, [Record(records.ACCEPT_LARGE, 5, bytes(15))])


class RecoveryTests(SynchronousTestCase):
    """A journal with two large messages and a small one, left by a daemon that was killed."""

    def setUp(self) -> None:
        self.layout: Layout = make_queue(self, split=3)
        self.directory = journal_directory(self.layout)
        os.mkdir(self.directory)
        numbers = Numbers(RealDisk(), self.layout, self.directory, 8)
        numbers.reserve()
        journal = Journal(RealDisk(), self.directory, SEGMENT)
        journal.read()
        journal.open()
        self.numbers = [numbers.take() or 0 for _ in range(3)]
        for number in self.numbers:
            small = number == self.numbers[2]
            text = b"%d\n" % number + TEXT[: 10 if small else None]
            entry = Entry(number, 1000.5, format_envelope(7, number, JOE), text if small else b"")
            if not small:
                with open(f"{self.directory}/{number}", "wb") as file:
                    file.write(text)
                entry.in_file = len(text)
            journal.write([records.accept(entry)], sync=True)
        journal.close()
        self.journal = Journal(RealDisk(), self.directory, SEGMENT)
        self.addCleanup(self.journal.close)

    def recover(self) -> list[tuple[int, int]]:
        return recover(RealDisk(), self.layout, self.journal, Numbers(RealDisk(), self.layout, self.directory))

    def text(self, number: int) -> bytes:
        return read(self.layout.path("mess", number))

    def test_recovered(self) -> None:
        self.assertEqual(self.recover(), [(number, number) for number in self.numbers])
        self.assertEqual(self.journal.damage, [])
        for number in self.numbers[:2]:
            self.assertEqual(self.text(number), b"%d\n" % number + TEXT)
        self.assertEqual(set(Store(RealDisk(), self.layout).numbers("todo")), set(self.numbers))
        self.assertFalse({str(number) for number in self.numbers} & set(os.listdir(self.directory)))

    def test_lost(self) -> None:
        """A disk that has not kept its word: it is told, the rest is delivered, and nothing is delivered in part."""
        first, second, small = self.numbers
        os.truncate(f"{self.directory}/{first}", 1000)
        os.unlink(f"{self.directory}/{second}")
        self.assertEqual(self.recover(), [(small, small)])
        self.assertEqual(len(self.journal.damage), 2)
        self.assertIn(f"{self.directory}/{first}{KEPT}", self.journal.damage[0].text)
        self.assertEqual(len(read(f"{self.directory}/{first}{KEPT}")), 1000)
        self.assertEqual(Store(RealDisk(), self.layout).numbers("todo"), [small])

    def test_copied_queue(self) -> None:
        """In a copy, inode numbers are others, and may be those of other messages of it: nothing is mixed up."""
        copy = f"{self.layout.directory}.copy"
        shutil.copytree(self.layout.directory, copy, ignore=shutil.ignore_patterns("trigger"))
        self.addCleanup(shutil.rmtree, copy)
        self.layout = Layout(copy, self.layout.split)
        self.directory = journal_directory(self.layout)
        self.journal.close()
        self.journal = Journal(RealDisk(), self.directory, SEGMENT)
        renamed = dict(self.recover())
        self.assertEqual({os.path.getsize(name) for name in open_files(self.directory)}, {SEGMENT})
        self.assertEqual(set(renamed), set(self.numbers))
        for number in self.numbers[:2]:
            self.assertEqual(self.text(renamed[number]), b"%d\n" % number + TEXT)
            self.assertEqual(os.stat(self.layout.path("mess", renamed[number])).st_ino, renamed[number])
            self.assertFalse(os.path.exists(f"{self.directory}/{number}"))

    def test_name_that_is_taken(self) -> None:
        """A new number whose name another file has, in a copy, is not used."""
        numbers = Numbers(RealDisk(), self.layout, self.directory, 1)
        with open(f"{self.directory}/probe", "w"):
            pass
        taken = os.stat(f"{self.directory}/probe").st_ino
        os.unlink(f"{self.directory}/probe")

        class Renumbered(RealDisk):
            def fstat(self, fd: int) -> os.stat_result:
                values = list(super().fstat(fd))
                values[1] = taken
                return os.stat_result(values)

        with open(f"{self.directory}/{taken}", "w") as file:
            file.write("a message")
        numbers._disk = Renumbered()
        numbers.reserve()
        self.assertIsNone(numbers.take())
        self.assertEqual(read(f"{self.directory}/{taken}"), b"a message")


class PublishTests(SynchronousTestCase):
    def test_somebody_elses_name(self) -> None:
        """mess/N of another message is left alone."""
        layout = make_queue(self)
        directory = journal_directory(layout)
        os.mkdir(directory)
        numbers = Numbers(RealDisk(), layout, directory, 1)
        numbers.reserve()
        number = numbers.take()
        assert number is not None
        with open(layout.path("mess", number), "w") as file:
            file.write("other")
        self.assertRaises(FileExistsError, publish, RealDisk(), layout, directory, number)
        self.assertEqual(read(layout.path("mess", number)), b"other")
        self.assertEqual(os.listdir(directory), [])

    def test_no_file(self) -> None:
        """A number whose file somebody has removed: refused, not made anew under another inode."""
        directory = self.mktemp()
        os.mkdir(directory)

        def accept(*_: Any) -> Deferred[Accepted]:
            raise AssertionError("it is not there")

        large = LargeMessage(RealDisk(), directory, 4711, accept)
        error = self.assertRaises(QueueError, large.create, Origin.network(7), 1000.0)
        self.assertEqual(error.code, WRITE_ERROR)
        self.assertEqual(os.listdir(directory), [])

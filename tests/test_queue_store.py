"""Preprocessed messages, and garbage, in qmail's files (spec/qmail.md §5.3, §5.4, §9.1, §9.6, §9.8)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Container

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.interfaces import MessageInfo, QueuedMessage, RecipientRecord
from qtwist.queue.layout import DEFAULT_SPLIT, PRIVATE_MODE
from qtwist.queue.store import OSSIFIED, Scan, Store
from tests.queue_tools import Trouble, WatchedDisk, descriptors, files_of, make_queue, put_message, read, write


class StoreCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.layout = make_queue(self)
        self.store = Store(RealDisk(), self.layout)
        self.before = descriptors()

    def tearDown(self) -> None:
        self.assertEqual(descriptors(), self.before)


class MessageTests(StoreCase):
    def test_info(self) -> None:
        number = put_message(self.layout, b"", info=b"Flist-@host-@[]\0")
        os.utime(self.layout.path("info", number), (5, 1234567890.25))
        self.assertEqual(self.store.info(number), MessageInfo(b"list-@host-@[]", 1234567890.25))
        self.assertRaises(FileNotFoundError, self.store.info, number + 1)
        write(self.layout.path("info", number), b"joe")
        self.assertRaises(ValueError, self.store.info, number)

    def test_recipients_bit_by_bit(self) -> None:
        number = put_message(self.layout, b"", local=b"Ta@b\0Dc@d\0Te@f\0")
        records, offset = self.store.recipients(number, "local", 0, 2)
        self.assertEqual(records, [RecipientRecord(0, False, b"a@b"), RecipientRecord(5, True, b"c@d")])
        self.assertEqual(self.store.recipients(number, "local", offset, 9), ([RecipientRecord(10, False, b"e@f")], 15))
        self.assertEqual(self.store.recipients(number, "local", 15, 9), ([], 15))

    def test_many_recipients(self) -> None:
        """Records lie across the blocks that are read."""
        addresses = [b"recipient-%d@example.org" % index for index in range(20000)]
        number = put_message(self.layout, b"", remote=b"".join(b"T%s\0" % address for address in addresses))
        found, offset = self.store.recipients(number, "remote", 0, 100_000)
        self.assertEqual([record.address for record in found], addresses)
        self.assertEqual(offset, os.stat(self.layout.path("remote", number)).st_size)

    def test_damaged_recipients(self) -> None:
        number = put_message(self.layout, b"", local=b"Ta@b\0Tc", remote=b"Xa\0", info=b"T" + b"x" * 100_000)
        self.assertEqual(len(self.store.recipients(number, "local", 0, 1)[0]), 1)
        self.assertRaises(ValueError, self.store.recipients, number, "local", 0, 2)
        self.assertRaises(ValueError, self.store.recipients, number, "remote", 0, 2)
        self.assertRaises(ValueError, self.store.recipients, number, "info", 0, 2)

    def test_mark(self) -> None:
        """§5.2: one byte, in place; the due time is set by postpone alone."""
        number = put_message(self.layout, b"", local=b"Ta@b\0Tc@d\0")
        self.store.mark(number, "local", 5)
        self.assertEqual(read(self.layout.path("local", number)), b"Ta@b\0Dc@d\0")
        self.store.postpone(number, "local", 1234567890.0)
        self.assertEqual(self.store.due(number, "local"), 1234567890.0)

    def test_open(self) -> None:
        number = put_message(self.layout, b"hello")
        fd = self.store.open_message(number)
        self.assertEqual(os.read(fd, 10), b"hello")
        self.assertRaises(OSError, os.write, fd, b"x")
        self.assertFalse(os.get_inheritable(fd))
        os.close(fd)
        os.mkdir(self.layout.path("mess", 5))
        self.assertRaises(OSError, self.store.open_message, 5)

    def test_finish(self) -> None:
        """§9.6, §10: info, intd, mess; doing it again does no harm."""
        number = put_message(self.layout, b"hello", info=b"Fa\0", intd=b"Fa\0")
        for _ in range(2):
            self.store.finish(number)
            self.assertEqual(files_of(self.layout), set())

    def test_finish_keeps_the_order(self) -> None:
        """A message without info is garbage, one without mess is a riddle: info goes first."""
        for k, left in ((1, {"info", "mess"}), (2, {"mess"}), (3, {"mess"})):
            number = put_message(self.layout, b"hello", info=b"Fa\0")
            self.assertRaises(OSError, Store(WatchedDisk(Trouble(k)), self.layout).finish, number)
            self.assertEqual(files_of(self.layout), {self.layout.name(room, number) for room in left})
            self.store.finish(number)

    def test_remove_channel(self) -> None:
        number = put_message(self.layout, b"hello", remote=b"Da\0")
        self.store.remove("remote", number)
        self.store.remove("remote", number)
        self.assertEqual(files_of(self.layout), {self.layout.name("mess", number)})


class BounceTests(StoreCase):
    def test_append(self) -> None:
        self.assertIsNone(self.store.bounce(7))
        self.store.append_bounce(7, b"<a@b>:\nno\n\n")
        self.store.append_bounce(7, b"<c@d>:\nno\n\n")
        self.assertEqual(self.store.bounce(7), b"<a@b>:\nno\n\n<c@d>:\nno\n\n")
        self.assertEqual(os.stat(self.layout.path("bounce", 7)).st_mode & 0o777, PRIVATE_MODE)
        self.store.remove("bounce", 7)
        self.assertIsNone(self.store.bounce(7))

    def test_durable(self) -> None:
        """Better than §5.4: a paragraph is on disk before its recipient is marked; so is the name of a new file, and
        that comes first: when the daemon is killed in between, the next one finds an empty file, and syncs again."""
        steps: list[str] = []
        store = Store(WatchedDisk(steps.append), self.layout)
        store.append_bounce(7, b"one\n\n")
        relevant = [step for step in steps if "fsync" in step or step == "write"]
        self.assertEqual(relevant, ["fsync_directory", "fsync", "write", "fsync"])
        steps.clear()
        store.append_bounce(7, b"two\n\n")
        self.assertEqual([step for step in steps if "fsync" in step], ["fsync"])

    def test_torn(self) -> None:
        """What a crash left of a paragraph is cut off: its recipient is not marked, so it will be written again."""
        whole, again = b"<a@b>:\nno\n\n", b"<c@d>:\nnever\n\n"
        for rest in (b"<", b"<c@d>:\nne", b"<c@d>:\nnever\n", bytes(100_000)):
            for before in (b"", whole):
                write(self.layout.path("bounce", 7), before + rest)
                self.store.append_bounce(7, again)
                self.assertEqual(self.store.bounce(7), before + again)

    def test_torn_is_not_told(self) -> None:
        """Nor does anybody see it: the recipient may have got the message since then."""
        for before in (b"", b"<a@b>:\nno\n\n"):
            write(self.layout.path("bounce", 7), before + b"<c@d>:\nne")
            self.assertEqual(self.store.bounce(7), before)

    def test_all_or_nothing(self) -> None:
        """After an error the same paragraph will come again, and must not be there twice."""
        old, new = b"old\n\n", b"new\n\n"
        self.store.append_bounce(7, old)
        for k in range(1, 20):
            trouble = Trouble(k, code=errno.ENOSPC)
            try:
                Store(WatchedDisk(trouble), self.layout).append_bounce(7, new)
            except OSError:
                self.assertEqual(self.store.bounce(7), old, trouble.struck)
            else:
                self.assertIn(trouble.struck, ("close", ""))
                self.assertEqual(self.store.bounce(7), old + new)
                return
        self.fail("never succeeds")


class ScanTests(StoreCase):
    def scan(self, known: Container[int] = (), batch: int = 1000) -> list[list[QueuedMessage]]:
        scan = Scan(self.store, DEFAULT_SPLIT, known, batch)
        batches = []
        while not scan.ended:
            batches.append(scan.step())
        return batches

    def test_due_times(self) -> None:
        """§9.1: what has info; not what has todo; with the mtime of each channel file."""
        both = put_message(self.layout, b"", info=b"Fa\0", local=b"Ta\0", remote=b"Tb\0")
        os.utime(self.layout.path("local", both), (1, 1000.5))
        os.utime(self.layout.path("remote", both), (1, 2000))
        done = put_message(self.layout, b"", info=b"Fa\0")
        put_message(self.layout, b"", info=b"Fa\0", local=b"Ta\0", todo=b"Fa\0Ta\0")
        put_message(self.layout, b"", intd=b"Fa\0")
        known = put_message(self.layout, b"", info=b"Fa\0")
        write(self.layout.room("info", 3) + "/garbage", b"")
        found = {message.number: message.due for batch in self.scan({known}) for message in batch}
        self.assertEqual(found, {both: {"local": 1000.5, "remote": 2000.0}, done: {}})

    def test_damaged_file(self) -> None:
        """What cannot be looked at is due at once, and keeps no other message from being found."""
        bad, good = (put_message(self.layout, b"", info=b"Fa\0", remote=b"Tb\0") for _ in range(2))
        os.unlink(self.layout.path("remote", bad))
        os.symlink("nowhere", self.layout.path("remote", bad))
        os.utime(self.layout.path("remote", good), (1, 2000))
        found = {message.number: message.due for batch in self.scan() for message in batch}
        self.assertEqual(found, {bad: {"remote": 0}, good: {"remote": 2000.0}})

    def test_trouble_at_every_call(self) -> None:
        """Wherever the disk fails once, each message is found once in the end, with all that is known of it."""
        expected = sorted(put_message(self.layout, b"", info=b"Fa\0", local=b"Ta\0", remote=b"Tb\0") for _ in range(3))
        for first in range(1, 1000):
            trouble = Trouble(first)
            scan = Scan(Store(WatchedDisk(trouble), self.layout), DEFAULT_SPLIT, (), 1)
            found: list[QueuedMessage] = []
            while not scan.ended:
                try:
                    found += scan.step()
                except OSError:
                    self.assertEqual(trouble.struck, "list_directory")
            self.assertEqual(sorted(message.number for message in found), expected)
            self.assertTrue(all(set(message.due) == {"local", "remote"} for message in found))
            if not trouble.struck:
                return
        self.fail("never without trouble")

    def test_twenty_thousand(self) -> None:
        """In batches, each message once."""
        for number in range(20000):
            write(self.layout.path("info", number), b"")
            write(self.layout.path("remote", number), b"")
        started = time.process_time()
        batches = self.scan(batch=300)
        used = time.process_time() - started
        self.assertTrue(all(len(batch) <= 300 for batch in batches))
        self.assertEqual(sorted(message.number for batch in batches for message in batch), list(range(20000)))
        # 100,000 have to take a few seconds at most: a bound for what must not become quadratic, not a benchmark.
        self.assertLess(used, 10)


class GarbageTests(StoreCase):
    NOW = 2_000_000_000.0

    def put(self, age: float, **rooms: bytes) -> int:
        number = put_message(self.layout, b"body", **rooms)
        os.utime(self.layout.path("mess", number), (self.NOW - age, self.NOW - age))
        return number

    def collect(self, busy: Container[int] = ()) -> set[str]:
        self.store.collect_garbage(self.NOW, busy)
        return files_of(self.layout)

    def test_states(self) -> None:
        """§5.4: S2 and S3 older than 36 hours go; S4, S5, the young, and what comes in just now stay."""
        self.put(OSSIFIED + 60)
        self.put(OSSIFIED + 60, intd=b"u0\0")
        kept = [
            (self.put(OSSIFIED - 60), ("mess",)),
            (self.put(OSSIFIED - 60, intd=b"u0\0"), ("mess", "intd")),
            (self.put(OSSIFIED * 9, intd=b"Fa\0", todo=b"Fa\0"), ("mess", "intd", "todo")),
            (self.put(OSSIFIED * 9, todo=b"Fa\0", info=b"Fa\0"), ("mess", "todo", "info")),
            (self.put(OSSIFIED * 9, info=b"Fa\0", local=b"Ta\0"), ("mess", "info", "local")),
        ]
        busy = self.put(OSSIFIED * 9, intd=b"u0\0")
        kept.append((busy, ("mess", "intd")))
        names = {self.layout.name(room, number) for number, rooms in kept for room in rooms}
        self.assertEqual(self.collect({busy}), names)

    def test_age(self) -> None:
        """§1.5: 36 hours."""
        self.put(36 * 3600 + 1)
        kept = self.put(36 * 3600 - 1)
        self.assertEqual(self.collect(), {self.layout.name("mess", kept)})

    def test_comes_in_meanwhile(self) -> None:
        """A number that a new message gets between two looks is not swept out."""

        class Later:
            looks = 0

            def __contains__(self, number: object) -> bool:
                self.looks += 1
                return self.looks > 1

        number = self.put(OSSIFIED * 2)
        self.assertEqual(self.collect(Later()), {self.layout.name("mess", number)})

    def test_temporary_files(self) -> None:
        """pid/*, by atime."""
        for name, age in (("1.2.3", OSSIFIED + 60), ("4.5.6", OSSIFIED - 60)):
            path = f"{self.layout.room('pid')}/{name}"
            write(path, b"")
            os.utime(path, (self.NOW - age, self.NOW))
        self.assertEqual(self.collect(), {"pid/4.5.6"})

    def test_preprocessed_meanwhile(self) -> None:
        """A message that leaves todo for info between two looks is no garbage."""
        number = self.put(OSSIFIED * 2, todo=b"Fa\0")
        layout = self.layout

        class Racing(RealDisk):
            def stat(disk, path: object) -> os.stat_result:
                try:
                    return super().stat(path)  # type: ignore[arg-type]
                finally:
                    # Right after a look at one of them, the message is preprocessed.
                    if path in (layout.path("todo", number), layout.path("info", number)):
                        write(layout.path("info", number), b"Fa\0")
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(layout.path("todo", number))

        Store(Racing(), layout).collect_garbage(self.NOW, ())
        self.assertIn(layout.name("mess", number), files_of(layout))

    def test_one_that_resists(self) -> None:
        """The others go all the same, and the caller hears of it."""
        numbers = [self.put(OSSIFIED + 60) for _ in range(3)]
        stuck = self.layout.path("intd", numbers[1])
        os.mkdir(stuck)
        self.assertRaises(OSError, self.store.collect_garbage, self.NOW, ())
        self.assertEqual(files_of(self.layout), {self.layout.name("mess", numbers[1])})

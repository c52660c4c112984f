"""The journal's segments and records; numbers held in reserve; what is settled and recovered (design §4)."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import Path, RealDisk
from qtwist.mail.envelope import Envelope
from qtwist.queue import journal as records
from qtwist.queue.journal import FIRST_SIZE, KEPT, Entry, Journal, Record, Use, pack, pack_first, replay, unpack
from qtwist.queue.layout import Layout
from qtwist.queue.numbers import Numbers
from qtwist.queue.records import format_envelope
from qtwist.queue.recovery import Unrecoverable, journal_directory, recover
from qtwist.queue.store import Store
from tests.queue_tools import Trouble, WatchedDisk, make_queue

RECORDS = st.builds(
    Record, st.sampled_from([records.END, records.UNBOUNCE, records.BOUNCE]), st.integers(0, 99), st.binary(max_size=50)
)
SMALL = 4096


def entry(number: int, message: bytes = b"Subject: x\n\nhello\n") -> Entry:
    return Entry(number, 1000.5, format_envelope(7, number, Envelope(b"ann@x", (b"joe@y", b"bob@z"))), message)


USE = Use(3, 0x1122334455667788)
FLUSHED = Record(b"S", 0)


def segment(wanted: Iterable[Record], use: Use = USE, rest: bytes = b"") -> bytes:
    """The octets of a segment that holds these records, and then `rest`."""
    first = pack_first(use, 1)
    return b"".join((first, *(pack(record, use) for record in wanted), rest, first))


class RecordTests(SynchronousTestCase):
    @given(st.lists(RECORDS), st.integers(1, 2**63), st.binary(max_size=40))
    def test_round_trip(self, wanted: list[Record], generation: int, rest: bytes) -> None:
        """What was written is read, whatever lies behind it."""
        use = Use.make(generation)
        found = unpack(segment(wanted, use, rest))
        self.assertEqual((found.use, found.oldest, found.damaged), (use, 1, ()))
        self.assertEqual(list(found.records), wanted)

    @given(st.lists(RECORDS, min_size=1), st.data())
    def test_torn(self, wanted: list[Record], data: st.DataObject) -> None:
        """Octets that a crash has changed end the reading; what stands before them is read, nothing else is."""
        whole = segment(wanted)
        place = data.draw(st.integers(FIRST_SIZE, len(whole) - FIRST_SIZE - 1))
        torn = bytearray(whole)
        torn[place] ^= data.draw(st.integers(1, 255))
        found = unpack(bytes(torn))
        self.assertEqual(list(found.records), wanted[: len(found.records)])
        self.assertLess(len(found.records), len(wanted))
        self.assertEqual(found.damaged, ())

    @given(st.lists(RECORDS, min_size=1), st.lists(RECORDS, min_size=1), st.data())
    def test_damaged(self, flushed: list[Record], later: list[Record], data: st.DataObject) -> None:
        """Octets that have changed after they were flushed: that is told, and all whole records are read."""
        whole = segment([*flushed, FLUSHED, *later])
        lengths = [len(pack(record, USE)) for record in flushed]
        place = FIRST_SIZE + data.draw(st.integers(0, sum(lengths) - 1))
        changed = bytearray(whole)
        changed[place] ^= data.draw(st.integers(1, 255))
        found = unpack(bytes(changed))
        ends = [FIRST_SIZE + sum(lengths[: n + 1]) for n in range(len(lengths))]
        hit = next(n for n, end in enumerate(ends) if place < end)
        self.assertEqual(list(found.records), [*flushed[:hit], *flushed[hit + 1 :], *later])
        self.assertEqual(found.damaged, ((ends[hit] - lengths[hit], ends[hit]),))

    @given(st.lists(RECORDS, max_size=5), st.lists(RECORDS, max_size=5), st.data())
    def test_first_record_damaged(self, one: list[Record], two: list[Record], data: st.DataObject) -> None:
        """Its copy at the end does as well."""
        changed = bytearray(segment([*one, FLUSHED, *two]))
        changed[data.draw(st.integers(0, FIRST_SIZE - 1))] ^= data.draw(st.integers(1, 255))
        found = unpack(bytes(changed))
        self.assertEqual((found.use, list(found.records)), (USE, one + two))

    def test_record_in_a_message(self) -> None:
        """Whoever sends octets that look like records has to know the random number; else a crash that tears the
        message, or damage, would bring them forth."""
        guess = Use(USE.generation, USE.secret ^ 1)
        inner = b"".join(pack(one, guess) for one in (Record(records.END, 7), FLUSHED))
        whole = segment([Record(records.END, 1), Record(records.BOUNCE, 2, inner)])
        torn = whole[: whole.index(inner)] + b"?" + whole[whole.index(inner) + 1 :]
        found = unpack(torn)
        self.assertEqual((found.records, found.damaged), ((Record(records.END, 1),), ()))

    @given(st.lists(RECORDS, min_size=1, max_size=5), st.lists(RECORDS, min_size=1, max_size=5))
    def test_earlier_use(self, old: list[Record], new: list[Record]) -> None:
        """Records of an earlier use of the segment, right behind those of this one, do not count."""
        before = Use(2, 99)
        rest = b"".join(pack(one, before) for one in [*old, FLUSHED])
        found = unpack(segment(new, rest=rest))
        self.assertEqual((list(found.records), found.damaged), (new, ()))

    @given(st.binary())
    def test_anything(self, data: bytes) -> None:
        self.assertEqual(unpack(data).records, ())

    def test_entry(self) -> None:
        """A message's life, told by its records."""
        first = entry(5)
        told = [
            records.accept(first),
            records.routed(5, {"local": bytearray(b"Tjoe@y\0"), "remote": bytearray(b"Tbob@z\0Tcid@z\0")}),
            records.postpone(5, "remote", 1400.5),
            Record(records.BOUNCE, 5, b"<joe@y>:\nno\n\n"),
            records.mark(5, "local", 0),
            records.done(5, "local"),
            records.mark(5, "remote", 7),
        ]
        [found] = replay(told).values()
        self.assertEqual((found.number, found.birth, found.envelope, found.message), (5, 1000.5, *first_parts(first)))
        self.assertEqual(found.channels, {"remote": bytearray(b"Tbob@z\0Dcid@z\0")})
        self.assertEqual((found.due["remote"], found.bounce), (1400.5, b"<joe@y>:\nno\n\n"))
        self.assertEqual(replay([*told, Record(records.END, 5)]), {})

    def test_vector(self) -> None:
        """The octets of each kind, which a later version has to read."""
        use = Use(3, 5)
        told = [
            records.mark(5, "local", 7),
            records.postpone(5, "remote", 1.5),
            records.routed(5, {"local": bytearray(b"Ta\0")}),
            records.done(5, "remote"),
        ]
        self.assertEqual(
            [pack(one, use)[4:].hex() for one in told],
            [
                "00000009000000000000000300000000000000054d00000000000000056c0000000000000007",
                "0000000900000000000000030000000000000005500000000000000005723ff8000000000000",
                "00000008000000000000000300000000000000055200000000000000056c00000003546100",
                "000000010000000000000003000000000000000544000000000000000572",
            ],
        )
        self.assertEqual(records.accept(Entry(5, 1.5, b"Fa\0", b"x")).payload.hex(), "3ff80000000000000000000346610078")

    def test_paragraphs(self) -> None:
        """Of several that fail, each has its own; what was told is forgotten."""
        told = [records.accept(entry(5)), Record(records.BOUNCE, 5, b"one\n\n"), Record(records.BOUNCE, 5, b"two\n\n")]
        self.assertEqual(replay(told)[5].bounce, b"one\n\ntwo\n\n")
        self.assertIsNone(replay([*told, Record(records.UNBOUNCE, 5)])[5].bounce)

    def test_with_gaps(self) -> None:
        """Where records are missing, those that make no sense without them are passed over."""
        told = [
            records.accept(entry(5)),
            records.mark(5, "local", 0),  # how it was routed is missing
            records.routed(5, {"local": bytearray(b"Tjoe@y\0"), "remote": bytearray(b"Tbob@z\0")}),
            records.mark(5, "remote", 2),  # of another message that had the number
            records.mark(5, "local", 0),
        ]
        self.assertRaises(ValueError, replay, told)
        [found] = replay(told, with_gaps=True).values()
        self.assertEqual(found.channels, {"local": bytearray(b"Djoe@y\0"), "remote": bytearray(b"Tbob@z\0")})

    def test_nonsense(self) -> None:
        """Whole records that cannot be: a defect, and not passed over."""
        first = records.accept(entry(5))
        for record in (
            records.mark(5, "local", 0),
            Record(records.MARK, 5, b"l"),
            Record(b"?", 5),
            Record(records.ROUTED, 5, b"x\0\0\0\1a"),
        ):
            with self.subTest(record=record):
                self.assertRaises(ValueError, replay, [first, record])

    def test_number_again(self) -> None:
        """A number that is free again serves another message."""
        [found] = replay(
            [records.accept(entry(5, b"1")), Record(records.END, 5), records.accept(entry(5, b"2"))]
        ).values()
        self.assertEqual(found.message, b"2")


def first_parts(one: Entry) -> tuple[bytes, bytes]:
    return one.envelope, one.message


class JournalCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="qtwist-journal-")
        self.addCleanup(shutil.rmtree, self.directory)

    def opened(self, disk: RealDisk | None = None) -> tuple[Journal, list[Record]]:
        journal = Journal(disk or RealDisk(), self.directory, SMALL)
        found = journal.read()
        journal.open()
        self.addCleanup(journal.close)
        return journal, found


class JournalTests(JournalCase):
    def test_read_again(self) -> None:
        journal, found = self.opened()
        self.assertEqual(found, [])
        journal.write([Record(records.END, 1)], sync=True)
        journal.write([Record(records.END, 2), Record(records.END, 3)], sync=False)
        other = Journal(RealDisk(), self.directory, SMALL)
        self.addCleanup(other.close)
        self.assertEqual([record.number for record in other.read()], [1, 2, 3])

    def test_open_begins_anew(self) -> None:
        """Once it is open, what was there before does not count, even if nothing was written since."""
        self.opened()[0].write([Record(records.END, 1)], sync=True)
        _, found = self.opened()
        self.assertEqual(len(found), 1)
        _, found = self.opened()
        self.assertEqual(found, [])

    def test_segments(self) -> None:
        """Records go on in the next segment, and a released one is used again."""
        journal, _ = self.opened()
        for number in range(30):
            journal.write([Record(records.BOUNCE, number, bytes(500))], sync=True)
        self.assertGreater(journal.segments, 3)
        journal.release(journal.generation)
        self.assertEqual(journal.segments, 1)
        files = len(os.listdir(self.directory))
        for number in range(30, 50):
            journal.write([Record(records.BOUNCE, number, bytes(500))], sync=True)
            journal.release(journal.generation)
        self.assertEqual(len(os.listdir(self.directory)), files)
        other = Journal(RealDisk(), self.directory, SMALL)
        self.addCleanup(other.close)
        # What was released does not come back.
        self.assertLess(len(other.read()), 10)

    def test_current_segment(self) -> None:
        """It is never given out again, whatever is told of what still counts."""
        journal, _ = self.opened()
        journal.write([Record(records.END, 1)], sync=True)
        journal.release(journal.generation + 9)
        self.assertEqual(journal.segments, 1)
        journal.write([Record(records.BOUNCE, 2, bytes(2500))], sync=True)
        journal.write([Record(records.BOUNCE, 3, bytes(2500))], sync=True)
        found = Journal(RealDisk(), self.directory, SMALL)
        self.addCleanup(found.close)
        self.assertEqual([record.number for record in found.read()], [1, 2, 3])

    def test_short_writes(self) -> None:
        """A disk that takes less than it is given is given the rest."""

        class Slow(RealDisk):
            def pwrite(self, fd: int, data: bytes, offset: int) -> int:
                return super().pwrite(fd, data[:7], offset)

        journal, _ = self.opened(Slow())
        journal.write([Record(records.BOUNCE, 1, b"a paragraph\n\n")], sync=True)
        found = Journal(RealDisk(), self.directory, SMALL)
        self.addCleanup(found.close)
        self.assertEqual(found.read(), [Record(records.BOUNCE, 1, b"a paragraph\n\n")])

    def test_preallocated(self) -> None:
        """A flush finds a file whose size does not change."""
        journal, _ = self.opened()
        [path] = [os.path.join(self.directory, name) for name in os.listdir(self.directory)]
        self.assertEqual(os.path.getsize(path), SMALL)
        journal.write([Record(records.END, 1)], sync=True)
        self.assertEqual(os.path.getsize(path), SMALL)
        self.assertGreaterEqual(os.stat(path).st_blocks * 512, SMALL)

    @given(st.lists(st.lists(RECORDS, max_size=6), max_size=12), st.data())
    @settings(max_examples=50, deadline=None)
    def test_any_writes(self, batches: list[list[Record]], data: st.DataObject) -> None:
        """Whatever is written in whatever batches is read in order."""
        with tempfile.TemporaryDirectory() as directory:
            journal = Journal(RealDisk(), directory, 1024)
            journal.read()
            journal.open()
            for batch in batches:
                journal.write(batch, sync=data.draw(st.booleans()))
            journal.close()
            other = Journal(RealDisk(), directory, 1024)
            self.assertEqual(other.read(), [record for batch in batches for record in batch])
            other.close()

    def test_what_is_read_lasts(self) -> None:
        """A process that was killed has not flushed all that it wrote; what is acted upon must not go after that."""
        journal, _ = self.opened()
        journal.write([Record(records.END, 1)], sync=False)
        journal.close()
        calls: list[str] = []
        again = Journal(WatchedDisk(calls.append), self.directory, SMALL)
        self.addCleanup(again.close)
        self.assertEqual(again.read(), [Record(records.END, 1)])
        self.assertIn("sync_data", calls[calls.index("pread") :])

    def test_flushes(self) -> None:
        """One flush for a batch; none for what need not be durable yet."""
        calls: list[str] = []
        journal, _ = self.opened(WatchedDisk(calls.append))
        del calls[:]
        journal.write([Record(records.END, number) for number in range(20)], sync=True)
        self.assertEqual(calls, ["pwrite", "sync_data"])
        del calls[:]
        journal.write([Record(records.END, 1)], sync=False)
        self.assertEqual(calls, ["pwrite"])

    def test_rotation(self) -> None:
        """The first record of a segment, and its copy, are durable before anything stands behind it."""
        calls: list[str] = []
        journal, _ = self.opened(WatchedDisk(calls.append))
        journal.write([Record(records.BOUNCE, 1, bytes(2500))], sync=True)
        journal.write([Record(records.BOUNCE, 1, bytes(2500))], sync=True)
        journal.release(journal.generation)
        del calls[:]
        journal.write([Record(records.BOUNCE, 1, bytes(2500))], sync=True)
        self.assertEqual(calls, ["sync_data", "pwrite", "pwrite", "sync_data", "pwrite", "sync_data"])

    def test_failed_segment(self) -> None:
        """Begun anew after the disk has failed: not in the same segment, and nothing from before counts."""
        trouble = Trouble(10**9)
        journal, _ = self.opened(WatchedDisk(trouble))
        before = set(os.listdir(self.directory))
        trouble.first = trouble.calls + 2  # the flush
        self.assertRaises(OSError, journal.write, [Record(records.END, 1)], True)
        journal.open()
        journal.write([Record(records.END, 2)], sync=True)
        self.assertFalse(before & set(os.listdir(self.directory)))
        other = Journal(RealDisk(), self.directory, SMALL)
        self.addCleanup(other.close)
        self.assertEqual(other.read(), [Record(records.END, 2)])

    def test_segment_of_another_size(self) -> None:
        """What a crash has left of a segment that was being made, and a longer one with records."""
        long, _ = self.opened()
        long._size = 2 * SMALL
        long.open()
        wanted = [Record(records.BOUNCE, number, bytes(900)) for number in range(6)]
        long.write(wanted, sync=True)
        with open(f"{self.directory}/7.segment", "wb") as file:
            file.write(bytes(100))
        _, found = self.opened()
        self.assertEqual(found, wanted)
        self.assertEqual({os.path.getsize(f"{self.directory}/{name}") for name in os.listdir(self.directory)}, {SMALL})

    def test_record_too_large(self) -> None:
        """Never written in part, or beyond the end, where nobody would read it."""
        journal, _ = self.opened()
        self.assertRaises(OSError, journal.write, [Record(records.BOUNCE, 1, bytes(SMALL))], True)
        self.assertTrue(all(os.path.getsize(f"{self.directory}/{one}") == SMALL for one in os.listdir(self.directory)))

    def test_first_record(self) -> None:
        """A segment that does not begin as one does is told, and not guessed at."""
        with open(f"{self.directory}/1.segment", "wb") as file:
            file.write(pack(Record(records.END, 1), USE).ljust(SMALL, b"\0"))
        journal = Journal(RealDisk(), self.directory, SMALL)
        self.addCleanup(journal.close)
        self.assertRaises(ValueError, journal.read)

    def test_damage(self) -> None:
        """Octets that were flushed and are not what they were: told, kept for whoever wants to look, and not used."""
        journal, _ = self.opened()
        for number in (1, 2, 3):
            journal.write([Record(records.END, number)], sync=True)
        [name] = os.listdir(self.directory)
        with open(f"{self.directory}/{name}", "r+b") as file:
            file.seek(FIRST_SIZE + len(pack(FLUSHED, USE)))
            [octet] = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([octet ^ 0xFF]))
        again, found = self.opened()
        self.assertEqual([record.number for record in found], [2, 3])
        [damage] = again.damage
        self.assertIn(f"{self.directory}/{name}", damage.text)
        self.assertEqual(sorted(os.listdir(self.directory)), sorted([name + KEPT, "2.segment"]))
        self.assertEqual(self.opened()[1], [])

    def test_quiet(self) -> None:
        """The last flush before nobody writes any more is told, too: what it has flushed is not torn."""
        journal, _ = self.opened()
        journal.write([Record(records.END, 1)], sync=False)
        journal.write([], sync=True)
        [name] = os.listdir(self.directory)
        with open(f"{self.directory}/{name}", "r+b") as file:
            file.seek(FIRST_SIZE + len(pack(FLUSHED, USE)))
            [octet] = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([octet ^ 0xFF]))
        self.assertEqual(len(self.opened()[0].damage), 1)

    def test_failing_disk(self) -> None:
        trouble = Trouble(10**9, lasting=True)
        journal, _ = self.opened(WatchedDisk(trouble))
        trouble.first = trouble.calls + 2  # the flush
        self.assertRaises(OSError, journal.write, [Record(records.END, 1)], True)


class NumbersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.layout: Layout = make_queue(self, split=3)
        self.directory = journal_directory(self.layout)
        os.mkdir(self.directory)

    def test_reserve(self) -> None:
        """A number is the inode number of a file that is there as long as the number is in use."""
        numbers = Numbers(RealDisk(), self.layout, self.directory, 3)
        numbers.reserve()
        taken = [numbers.take() for _ in range(3)]
        self.assertEqual(sorted(os.listdir(self.directory)), sorted(map(str, taken)))
        self.assertTrue(all(os.stat(f"{self.directory}/{number}").st_ino == number for number in taken))
        self.assertIsNone(numbers.take())
        assert taken[0] is not None
        numbers.give_back(taken[0])
        self.assertEqual(numbers.take(), taken[0])

    def test_haunted(self) -> None:
        """A number of which the queue has something is not used: the envelope of a lost message, or one of a copy."""
        numbers = Numbers(RealDisk(), self.layout, self.directory, 3)
        numbers.reserve()
        taken = [numbers.take() or 0 for _ in range(3)]
        for room, number in zip(("mess", "todo", "info"), taken, strict=True):
            with open(self.layout.path(room, number), "w"):
                pass
        other = Numbers(RealDisk(), self.layout, self.directory, 3)
        other.find(frozenset())
        self.assertIsNone(other.take())
        self.assertEqual(sorted(os.listdir(self.directory)), sorted(map(str, taken)))

    def test_find(self) -> None:
        """After a restart: free files serve again, what is a message by now or a copy does not."""
        numbers = Numbers(RealDisk(), self.layout, self.directory, 3)
        numbers.reserve()
        free, message, held = (numbers.take() for _ in range(3))
        with open(f"{self.directory}/{message}", "w") as file:
            file.write("x")
        for name in ("new.7", "4711"):
            with open(f"{self.directory}/{name}", "w"):
                pass
        other = Numbers(RealDisk(), self.layout, self.directory)
        assert held is not None
        other.find(frozenset({held}))
        self.assertEqual(sorted(os.listdir(self.directory)), sorted((str(free), str(held))))
        self.assertEqual((other.take(), other.take()), (free, None))


class RecoveryTests(SynchronousTestCase):
    """A journal with messages, left by a daemon that was killed."""

    def setUp(self) -> None:
        self.layout: Layout = make_queue(self, split=3)
        self.directory = journal_directory(self.layout)
        os.mkdir(self.directory)
        numbers = Numbers(RealDisk(), self.layout, self.directory, 8)
        numbers.reserve()
        journal = Journal(RealDisk(), self.directory, SMALL * 4)
        journal.read()
        journal.open()
        self.plain, self.tried, self.over = (numbers.take() or 0 for _ in range(3))
        journal.write([records.accept(entry(number)) for number in (self.plain, self.tried, self.over)], sync=True)
        journal.write(
            [
                records.routed(self.tried, {"local": bytearray(b"Tjoe@y\0"), "remote": bytearray(b"Tbob@z\0")}),
                records.postpone(self.tried, "remote", 1400.0),
                Record(records.BOUNCE, self.tried, b"<joe@y>:\nno\n\n"),
                records.mark(self.tried, "local", 0),
                Record(records.END, self.over),
            ],
            sync=False,
        )
        journal.close()
        self.store = Store(RealDisk(), self.layout)

    def recover(self, disk: RealDisk | None = None) -> list[tuple[int, int]]:
        disk = disk or RealDisk()
        journal = Journal(disk, self.directory, SMALL * 4)
        try:
            return recover(disk, self.layout, journal, Numbers(disk, self.layout, self.directory))
        finally:
            journal.close()

    def test_directory_lasts(self) -> None:
        """journal/ is in its directory for good before anything is in it; also when whoever made it was killed before
        that."""
        for there_already in (False, True):
            layout = make_queue(self, split=3)
            directory = journal_directory(layout)
            if there_already:
                os.mkdir(directory)
            synced: list[Path] = []

            class Watched(RealDisk):
                def fsync_directory(disk, path: Path, synced: list[Path] = synced) -> None:
                    super().fsync_directory(path)
                    synced.append(path)

            disk = Watched()
            journal = Journal(disk, directory, SMALL * 4)
            self.addCleanup(journal.close)
            recover(disk, layout, journal, Numbers(disk, layout, directory))
            self.assertIn(layout.directory, synced)

    def check(self) -> None:
        """Everything is in files as §5.2 and §5.3 have them: S3 for what was not preprocessed, else S4."""
        layout = self.layout
        self.assertEqual(self.store.numbers("todo"), [self.plain])
        for number in (self.plain, self.tried):
            path = layout.path("mess", number)
            self.assertEqual(os.stat(path).st_ino, number)
            with open(path, "rb") as file:
                self.assertEqual(file.read(), b"Subject: x\n\nhello\n")
        info = self.store.info(self.tried)
        self.assertEqual((info.sender, info.birth), (b"ann@x", 1000.5))
        self.assertEqual(self.store.due(self.tried, "remote"), 1400.0)
        [local], _ = self.store.recipients(self.tried, "local", 0, 9)
        [remote], _ = self.store.recipients(self.tried, "remote", 0, 9)
        self.assertEqual((local.done, remote.done), (True, False))
        self.assertEqual(self.store.bounce(self.tried), b"<joe@y>:\nno\n\n")
        self.assertFalse(os.path.exists(layout.path("mess", self.over)))

    def test_recover(self) -> None:
        self.assertEqual(self.recover(), [(self.plain, self.plain), (self.tried, self.tried)])
        self.check()
        self.assertFalse(os.path.exists(f"{self.directory}/{self.plain}"))
        self.assertEqual(self.recover(), [])

    def damage(self, record: Record) -> None:
        """Have the disk lose this record, which it had flushed."""
        [name] = [name for name in os.listdir(self.directory) if name.endswith(".segment")]
        with open(f"{self.directory}/{name}", "r+b") as file:
            place = file.read().index(record.kind + struct.pack("!Q", record.number) + record.payload)
            file.seek(place)
            file.write(b"?")

    def test_damaged(self) -> None:
        """How a message was routed is lost: it is recovered as one that was not, and the others as ever."""
        journal = Journal(RealDisk(), self.directory, SMALL * 4)
        found = journal.read()
        journal.open()
        journal.write(found, sync=True)
        journal.write([], sync=True)
        journal.close()
        [routed] = [record for record in found if record.kind == records.ROUTED]
        self.damage(routed)
        journal = Journal(RealDisk(), self.directory, SMALL * 4)
        self.addCleanup(journal.close)
        both = [(self.plain, self.plain), (self.tried, self.tried)]
        self.assertEqual(
            recover(RealDisk(), self.layout, journal, Numbers(RealDisk(), self.layout, self.directory)), both
        )
        self.assertEqual(len(journal.damage), 1)
        self.assertEqual(set(self.store.numbers("todo")), {self.plain, self.tried})

    def test_stopped_anywhere(self) -> None:
        """Stopped at any disk call and begun again: the same end, and nothing twice."""
        for first in range(1, 200, 2):
            trouble = Trouble(first, lasting=True)
            try:
                self.recover(WatchedDisk(trouble))
            except OSError:
                self.recover()
            self.check()
            if not trouble.struck:
                break
            # Once more from the start, as if it had not been recovered.
            self.tearDownQueue()
        else:
            raise AssertionError("it never came to an end")
        self.assertGreater(first, 40)

    def tearDownQueue(self) -> None:
        self.setUp()

    def test_trouble_is_told(self) -> None:
        """A journal that cannot become files must not be passed over."""
        os.chmod(self.layout.holder("mess", self.plain), 0o755)
        shutil.rmtree(self.layout.holder("mess", self.plain))
        error = self.assertRaises(Unrecoverable, self.recover)
        self.assertIn("2 messages of the journal cannot become files", str(error))

    def test_somebody_elses_message(self) -> None:
        """mess/N of another inode, in a copy of a queue, is not taken for this message."""
        with open(self.layout.path("mess", self.plain), "w") as file:
            file.write("other")
        self.assertRaises(Unrecoverable, self.recover)
        with open(self.layout.path("mess", self.plain)) as file:
            self.assertEqual(file.read(), "other")

    def test_birth(self) -> None:
        """A message that was not preprocessed keeps its birth, and with it its last day."""
        self.recover()
        self.assertEqual(os.stat(self.layout.path("todo", self.plain)).st_mtime, 1000.5)

    def test_copied_queue(self) -> None:
        """In a copy, inode numbers are others: the messages get numbers that are theirs."""
        copy = f"{self.layout.directory}.copy"
        shutil.copytree(self.layout.directory, copy, ignore=shutil.ignore_patterns("trigger"))
        self.addCleanup(shutil.rmtree, copy)
        self.layout = Layout(copy, self.layout.split)
        self.directory = journal_directory(self.layout)
        self.store = Store(RealDisk(), self.layout)
        renamed = dict(self.recover())
        self.assertEqual(set(renamed), {self.plain, self.tried})
        self.plain, self.tried = renamed[self.plain], renamed[self.tried]
        self.check()

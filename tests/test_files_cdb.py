"""Tests of qtwist.files.cdb."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from qtwist.files import cdb
from qtwist.files.cdb import CDB, CDBError, cdb_hash, prefix_hashes, write_cdb

TINYCDB = shutil.which("cdb")
RECORDS = st.lists(
    st.tuples(st.binary(max_size=6) | st.sampled_from([b"a", b"b"]), st.binary(max_size=40)), max_size=60
)


class CDBTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()

    def written(self, records: list[tuple[bytes, bytes]]) -> bytes:
        write_cdb(self.path, records)
        with open(self.path, "rb") as file:
            return file.read()

    def test_hash(self) -> None:
        """spec/related.md, the vectors at its end."""
        for key, expected in [(b"", 5381), (b"a", 177604), (b"127.", 2085881567), (b"joe@example.com", 3012654722)]:
            self.assertEqual(cdb_hash(key), expected)

    def test_fifo(self) -> None:
        """Opening does not wait for a writer that never comes."""
        os.mkfifo(self.path)
        self.assertIn("not a regular file", str(self.assertRaises(CDBError, CDB, self.path)))

    @given(st.binary(max_size=30))
    def test_prefix_hashes(self, key: bytes) -> None:
        self.assertEqual(prefix_hashes(key), [cdb_hash(key[:size]) for size in range(len(key) + 1)])

    def test_empty(self) -> None:
        """spec/related.md §1.1: exactly the header, every pair (2048, 0)."""
        self.assertEqual(self.written([]), struct.pack("<II", 2048, 0) * 256)
        with CDB(self.path) as database:
            self.assertIsNone(database.get(b""))
            self.assertEqual(list(database), [])

    def test_layout(self) -> None:
        """§2.6: header, record, table, by hand for one record."""
        data = self.written([(b"a", b"xyz")])
        bucket = 177604 & 255
        self.assertEqual(data[2048:2060], struct.pack("<II", 1, 3) + b"axyz")
        self.assertEqual(data[8 * bucket : 8 * bucket + 8], struct.pack("<II", 2060, 2))
        slots = [(0, 0), (0, 0)]
        slots[(177604 >> 8) % 2] = (177604, 2048)
        self.assertEqual(data[2060:], b"".join(struct.pack("<II", *slot) for slot in slots))

    @given(RECORDS)
    def test_round_trip(self, records: list[tuple[bytes, bytes]]) -> None:
        """Duplicates keep their order; the first one is found (§2.6)."""
        write_cdb(self.path, records)
        with CDB(self.path) as database:
            self.assertEqual(list(database), records)
            for key in {key for key, _ in records} | {b"a", b"missing"}:
                expected = [data for other, data in records if other == key]
                self.assertEqual(database.getall(key), expected)
                self.assertEqual(database.get(key), expected[0] if expected else None)
                self.assertEqual(key in database, bool(expected))

    @given(RECORDS)
    @settings(max_examples=25, deadline=None)
    def test_like_tinycdb(self, records: list[tuple[bytes, bytes]]) -> None:
        """Byte for byte what Debian's cdb tool makes of the same records."""
        if TINYCDB is None:
            raise SkipTest("the cdb tool is not installed (Debian package tinycdb)")
        text = b"".join(b"+%d,%d:%s->%s\n" % (len(key), len(data), key, data) for key, data in records) + b"\n"
        other = self.path + ".tinycdb"
        subprocess.run([TINYCDB, "-c", "-t", other + ".tmp", other], input=text, check=True)
        with open(other, "rb") as file:
            self.assertEqual(self.written(records), file.read())
        dump = subprocess.run([TINYCDB, "-d", self.path], check=True, capture_output=True).stdout
        self.assertEqual(dump, text)

    def test_large_file(self) -> None:
        """A file that is mapped, not read."""
        records = [(b"key%d" % n, b"%d" % n * 20) for n in range(2000)]
        self.assertGreater(len(self.written(records)), 100_000)
        with CDB(self.path) as database:
            self.assertEqual(list(database), records)
            self.assertTrue(all(database.get(key) == data for key, data in records))
            self.assertIsNone(database.get(b"key2000"))
            database.close()

    @given(RECORDS, st.data())
    def test_damaged(self, records: list[tuple[bytes, bytes]], draw: st.DataObject) -> None:
        """Whatever the bytes are, a look-up ends with data, nothing, or CDBError."""
        data = bytearray(self.written([*records, (b"a", b"data")]))
        for _ in range(draw.draw(st.integers(0, 4))):
            place = draw.draw(st.integers(0, len(data) - 4))
            data[place : place + 4] = draw.draw(
                st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0", b"\0\x09\0\0"])
            )
        del data[draw.draw(st.integers(0, len(data))) :]
        with open(self.path, "wb") as file:
            file.write(data)
        try:
            database = CDB(self.path)
        except CDBError:
            self.assertLess(len(data), 2048)
            return
        for look_up in (lambda: database.getall(b"a"), lambda: list(database)):
            try:
                look_up()
            except CDBError as error:
                self.assertIn(self.path, str(error))

    def test_truncated(self) -> None:
        """spec/related.md §1.1: a premature end is an error, never "not found"."""
        data = self.written([(b"a", b"xyz")])
        for size in (0, 100, 2047, 2048, 2050, 2059, 2060, len(data) - 1):
            with open(self.path, "wb") as file:
                file.write(data[:size])
            self.assertRaises(CDBError, lambda: CDB(self.path).get(b"a"))
            if size < 2060:
                self.assertRaises(CDBError, lambda: list(CDB(self.path)))

    def test_record_too_long(self) -> None:
        """A record that reaches into the tables ends a walk over all; one that leaves the file, a look-up too."""
        good = self.written([(b"a", b"xyz")])
        for size in (4, 1 << 31):
            with open(self.path, "wb") as file:
                file.write(good[:2052] + struct.pack("<I", size) + good[2056:])
            self.assertRaises(CDBError, lambda: list(CDB(self.path)))
        self.assertRaises(CDBError, lambda: CDB(self.path).get(b"a"))

    def test_full_table(self) -> None:
        """A damaged table without an empty slot does not make a look-up endless."""
        data = bytearray(self.written([(b"a", b"xyz")]))
        data[2060:] = struct.pack("<II", 1, 2048) * 2
        with open(self.path, "wb") as file:
            file.write(data)
        self.assertIsNone(CDB(self.path).get(b"a"))

    def test_no_file(self) -> None:
        self.assertRaises(FileNotFoundError, CDB, self.path)

    def test_replaced_at_once(self) -> None:
        """§2.6: an open reader keeps the old version; the temporary file goes away."""
        self.written([(b"a", b"old")])
        with CDB(self.path) as before:
            self.written([(b"a", b"new")])
            with CDB(self.path) as after:
                self.assertEqual((before.get(b"a"), after.get(b"a")), (b"old", b"new"))
        self.assertFalse(os.path.exists(self.path + ".tmp"))

    def test_failure_keeps_the_old_one(self) -> None:
        def broken():  # type: ignore[no-untyped-def]
            yield b"a", b"new"
            raise ValueError("no more")

        self.written([(b"a", b"old")])
        self.assertRaises(ValueError, write_cdb, self.path, broken(), self.path + ".other")
        self.assertEqual(CDB(self.path).get(b"a"), b"old")
        self.assertFalse(os.path.exists(self.path + ".other"))

    def test_link_in_the_way(self) -> None:
        """Root may compile in a directory of others: what they put there must not lead it to other files."""
        victim = self.path + ".victim"
        with open(victim, "wb") as file:
            file.write(b"precious")
        os.symlink(os.path.abspath(victim), self.path + ".tmp")
        self.assertRaises(OSError, self.written, [(b"a", b"new")])
        with open(victim, "rb") as file:
            self.assertEqual(file.read(), b"precious")

    def test_synced_before_it_is_seen(self) -> None:
        """§2.6: contents, then the name, then the directory."""
        calls: list[str] = []
        fsync, rename = os.fsync, os.rename

        def sync(fd: int) -> None:
            calls.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")
            fsync(fd)

        self.patch(os, "fsync", sync)
        self.patch(os, "rename", lambda *names: (calls.append("rename"), rename(*names)))
        size = len(self.written([(b"a", b"xyz")]))
        self.assertEqual(calls, [f"file of {size}", "rename", "directory"])

    def test_too_large(self) -> None:
        """§2.6: all positions have 32 bits."""
        self.patch(cdb, "_SIZE_LIMIT", 2100)
        self.assertRaises(CDBError, write_cdb, self.path, [(b"a", b"x" * 100)])
        self.assertRaises(CDBError, write_cdb, self.path, [(b"a", b"x" * 40)])  # the table is too much
        self.assertFalse(os.path.exists(self.path))
        write_cdb(self.path, [(b"a", b"x")])

"""The table of hosts that timed out: spec/qmail.md §15.7, §26.10."""

from __future__ import annotations

import fcntl
import os
import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.remote.tcpto import Record, TimeoutTable, after_answer, after_timeout, should_skip

FREE = Record(bytes(4), 0, 0)
A = bytes((192, 0, 2, 1))


class RuleTests(SynchronousTestCase):
    def test_skip(self) -> None:
        """From the second timeout on, for (60 + jitter) times 64 seconds."""
        self.assertEqual(should_skip([FREE], A, 1000, 0), (False, False))
        self.assertEqual(should_skip([Record(A, 1, 1000)], A, 1001, 0), (False, True))
        table = [FREE, Record(A, 2, 1000)]
        self.assertEqual(should_skip(table, A, 1000 + 3839, 0), (True, True))
        self.assertEqual(should_skip(table, A, 1000 + 3840, 0), (False, True))
        self.assertEqual(should_skip(table, A, 1000 + 5823, 31), (True, True))
        self.assertEqual(should_skip(table, A, 1000 + 5824, 31), (False, True))

    def test_count(self) -> None:
        """Timeouts within two minutes count once; the count stops at 10."""
        self.assertEqual(after_timeout([FREE], A, 1000), (0, Record(A, 1, 1000)))
        self.assertIsNone(after_timeout([Record(A, 1, 1000)], A, 1119))
        self.assertEqual(after_timeout([Record(A, 1, 1000)], A, 1120), (0, Record(A, 2, 1120)))
        self.assertEqual(after_timeout([Record(A, 10, 1000)], A, 9999), (0, Record(A, 10, 9999)))
        self.assertEqual(after_timeout([Record(A, 0, 1000)], A, 1001), (0, Record(A, 1, 1001)))

    def test_place(self) -> None:
        """The first free record, else the one with the smallest time + count x 1024."""
        full = [Record(bytes((10, 0, 0, n)), 1, 5000 + n) for n in range(4)]
        full[0] = Record(full[0].host, 3, 4000)
        full[2] = Record(full[2].host, 2, 3000)
        self.assertEqual(after_timeout([*full, FREE], A, 9000), (4, Record(A, 1, 9000)))
        self.assertEqual(after_timeout(full, A, 9000), (2, Record(A, 1, 9000)))
        self.assertIsNone(after_timeout([], A, 9000))

    def test_answer(self) -> None:
        self.assertEqual(after_answer([FREE, Record(A, 7, 1000)], A), (1, Record(A, 0, 1000)))
        self.assertIsNone(after_answer([FREE], A))
        self.assertIsNone(after_answer([Record(A, 0, 1000)], A))


class TableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()
        self.now = 1_700_000_000.5
        self.write(bytes(1024))
        self.table = TimeoutTable(self.path, lambda: self.now, lambda: 0)

    def write(self, data: bytes) -> None:
        with open(self.path, "wb") as file:
            file.write(data)

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()

    def test_bytes(self) -> None:
        """As qmail-tcpto reads it: IPv4, count, time as little-endian u32 from octet 8 on."""
        self.table.timed_out("192.0.2.1")
        self.table.timed_out("192.0.2.2")
        expected = A + b"\x01\0\0\0" + struct.pack("<I", 1_700_000_000) + bytes(4)
        self.assertEqual(self.read()[:16], expected)
        self.assertEqual(self.read()[16:21], bytes((192, 0, 2, 2, 1)))
        self.assertEqual(self.read()[32:], bytes(1024 - 32))

    def check_back_off(self, address: str) -> None:
        self.assertEqual(self.table.skip(address), (False, False))
        self.table.timed_out(address)
        self.assertEqual(self.table.skip(address), (False, True))
        self.now += 120
        self.table.timed_out(address)
        self.assertEqual(self.table.skip(address), (True, True))
        self.table.answered(address)
        self.assertEqual(self.table.skip(address), (False, True))
        self.now += 1
        self.table.timed_out(address)
        self.now += 120
        self.table.timed_out(address)
        self.assertTrue(self.table.skip(address)[0])
        self.now += 3840
        self.assertFalse(self.table.skip(address)[0])
        self.table.clear()
        self.assertEqual(self.table.skip(address), (False, False))

    def test_back_off(self) -> None:
        self.check_back_off("192.0.2.1")
        self.assertEqual(self.read(), bytes(1024))

    def test_ipv6(self) -> None:
        """There is no room for it in the file, so it is kept in memory, by the same rule."""
        self.check_back_off("2001:db8::1")
        self.assertEqual(self.read(), bytes(1024))

    def test_missing(self) -> None:
        """Without the table nothing is remembered, and nothing is made (as qmail)."""
        os.unlink(self.path)
        self.table.clear()
        self.table.timed_out("192.0.2.1")
        self.assertEqual(self.table.skip("192.0.2.1"), (False, False))
        self.assertFalse(os.path.exists(self.path))

    def test_locked(self) -> None:
        """A lock that another process holds never stops the daemon: this timeout is not counted."""
        with open(self.path, "rb+") as other:
            fcntl.flock(other, fcntl.LOCK_SH)
            self.table.timed_out("192.0.2.1")
            self.assertEqual(self.table.skip("192.0.2.1"), (False, False))
        self.table.timed_out("192.0.2.1")
        self.assertEqual(self.table.skip("192.0.2.1"), (False, True))

    def test_short(self) -> None:
        """A table of another length: whole records count."""
        self.write(bytes(40))
        for last in range(1, 4):
            self.table.timed_out(f"192.0.2.{last}")
        self.assertEqual(len(self.read()), 40)
        self.write(b"")
        self.table.timed_out("192.0.2.1")
        self.assertEqual(self.read(), b"")

    @given(st.binary(max_size=1100), st.ip_addresses(v=4).map(str))
    def test_any_table(self, data: bytes, address: str) -> None:
        """Whatever the file holds: no error, and it keeps its length."""
        self.write(data)
        self.table.skip(address)
        self.table.timed_out(address)
        self.table.answered(address)
        self.assertEqual(len(self.read()), len(data))

"""Files of messages that are gone, brought back by a crash (spec/qmail.md §5.3, §5.4)."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.queue.orphans import remove_orphans
from qtwist.queue.store import Store
from tests.queue_tools import WatchedDisk, files_of, make_queue, put_message, write

GONE = 999_999_999


class OrphanTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.layout = make_queue(self)

    def remove(self, disk: RealDisk | None = None) -> list[str]:
        disk = disk or RealDisk()
        return sorted(remove_orphans(disk, self.layout, Store(disk, self.layout)))

    def leave(self, *rooms: str, number: int = GONE) -> list[str]:
        for room in rooms:
            write(self.layout.path(room, number), b"Fa\0")
        return sorted(self.layout.name(room, number) for room in rooms)

    def test_living_messages_stay(self) -> None:
        """S2 to S5, and a preprocessing that was cut off: whatever may still be of use."""
        put_message(self.layout, b"")
        put_message(self.layout, b"", intd=b"Fa\0")
        put_message(self.layout, b"", intd=b"Fa\0Tb\0", todo=b"")
        put_message(self.layout, b"", todo=b"Fa\0Tb\0", info=b"Fa\0", local=b"Tb\0", remote=b"Tc\0", bounce=b"x")
        put_message(self.layout, b"", info=b"Fa\0")
        put_message(self.layout, b"", info=b"Fa\0", local=b"Tb\0", remote=b"Tc\0", bounce=b"x")
        before = files_of(self.layout)
        self.assertEqual(self.remove(), [])
        self.assertEqual(files_of(self.layout), before)

    def test_without_a_message(self) -> None:
        """A new message that gets the number must not go to the old one's recipients."""
        left = self.leave("info", "local", "remote", "bounce", "intd")
        self.assertEqual(self.remove(), left)
        self.assertEqual(files_of(self.layout), set())

    def test_without_info(self) -> None:
        """S2 with recipients of somebody else; the message is left to the garbage's rule of 36 hours."""
        number = put_message(self.layout, b"")
        left = self.leave("local", "remote", "bounce", number=number)
        self.assertEqual(self.remove(), left)
        self.assertEqual(files_of(self.layout), {self.layout.name("mess", number)})

    def test_lost_message(self) -> None:
        """An envelope whose message is lost stays for people to see; nothing else of it does."""
        left = self.leave("info", "local", "intd")
        write(self.layout.path("todo", GONE), b"Fa\0Tb\0")
        self.assertEqual(self.remove(), left)
        self.assertEqual(files_of(self.layout), {f"todo/{GONE}"})

    def test_for_good(self) -> None:
        """The next crash does not bring them back: their directories are synced after the last removal."""
        self.leave("info", "bounce")
        steps: list[str] = []
        self.remove(WatchedDisk(steps.append))
        last = len(steps) - steps[::-1].index("unlink")
        self.assertEqual(steps[last:].count("fsync_directory"), 2)
        self.assertFalse(os.path.exists(self.layout.path("info", GONE)))

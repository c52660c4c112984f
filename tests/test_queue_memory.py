"""No mail is begun that there is no memory for: control/memoryminfree, doc/running.md."""

from __future__ import annotations

import os
import resource

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import Control
from qtwist.mail.address import Address
from qtwist.policy.memory import MemoryFree
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.queue.memory import Memory
from qtwist.queue.room import INTERVAL
from tests.queue_tools import queue_log

MIB = 1024 * 1024
PAGE = resource.getpagesize()


class MemoryCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.root = self.mktemp()
        self.least = 10 * MIB
        self.limit = -1
        self.memory = Memory(lambda: self.least, self.clock.seconds, root=self.root, limit=lambda: self.limit)
        self.lines = queue_log(self)

    def write(self, name: str, text: str) -> None:
        path = f"{self.root}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def has(self) -> bool:
        self.clock.advance(INTERVAL)
        return self.memory.has()


class MemoryTests(MemoryCase):
    def test_host(self) -> None:
        """proc(5): MemAvailable; a quarter more has to be free before mail is taken again."""
        self.write("proc/meminfo", "MemTotal:  100000 kB\nMemFree:  1 kB\nMemAvailable:  10240 kB\n")
        self.assertTrue(self.has())
        self.write("proc/meminfo", "MemAvailable:  10239 kB\n")
        self.assertFalse(self.has())
        self.assertFalse(self.has())
        self.write("proc/meminfo", "MemAvailable:  12799 kB\n")
        self.assertFalse(self.has())
        self.write("proc/meminfo", "MemAvailable:  12800 kB\n")
        self.assertTrue(self.has())
        self.assertEqual(
            self.lines,
            [
                "only 10484736 octets are free of the host's memory: no mail is taken until there are more "
                "(control/memoryminfree)",
                "there is room of the host's memory again: mail is taken",
            ],
        )

    def test_group(self) -> None:
        """cgroups(7), version 2: the limit of the group or of one above it counts, what caches files does not."""
        self.write("proc/self/cgroup", "0::/system.slice/qtwist.service\n")
        top = "sys/fs/cgroup"
        slice_, service = f"{top}/system.slice", f"{top}/system.slice/qtwist.service"
        self.write(f"{service}/memory.max", "max\n")
        self.write(f"{service}/memory.current", f"{500 * MIB}\n")
        self.write(f"{slice_}/memory.max", f"{600 * MIB}\n")
        self.write(f"{slice_}/memory.current", f"{599 * MIB}\n")
        self.write(f"{slice_}/memory.stat", f"anon 5\ninactive_file {9 * MIB}\nactive_file 7\n")
        self.assertTrue(self.has())
        self.write(f"{slice_}/memory.stat", f"anon 5\ninactive_file {8 * MIB}\nactive_file 7\n")
        self.assertFalse(self.has())
        self.assertIn(f"control group {self.root}/{slice_}:", self.lines[0])

    def test_group_of_version_1(self) -> None:
        self.write("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/mail\n0::/\n")
        group = "sys/fs/cgroup/memory/mail"
        self.write(f"{group}/memory.limit_in_bytes", f"{100 * MIB}\n")
        self.write(f"{group}/memory.usage_in_bytes", f"{95 * MIB}\n")
        self.write(f"{group}/memory.stat", f"cache 7\ninactive_file 1\ntotal_inactive_file {5 * MIB}\n")
        self.assertTrue(self.has())
        self.write(f"{group}/memory.usage_in_bytes", f"{96 * MIB}\n")
        self.assertFalse(self.has())

    def test_own(self) -> None:
        """setrlimit(2), RLIMIT_DATA, which control/softlimit sets."""
        self.limit = 64 * MIB
        self.write("proc/self/statm", f"900000 500 400 3 0 {54 * MIB // PAGE} 0\n")
        self.assertTrue(self.has())
        self.write("proc/self/statm", f"900000 500 400 3 0 {54 * MIB // PAGE + 1} 0\n")
        self.assertFalse(self.has())
        self.assertIn("control/softlimit", self.lines[0])

    def test_nobody_knows(self) -> None:
        """Where there are no such files, or none that make sense, mail is taken."""
        self.assertTrue(self.has())
        self.write("proc/meminfo", "MemTotal: 5 kB\n")
        self.write("proc/self/cgroup", "0::/a\n4:memory:/b\n")
        self.write("sys/fs/cgroup/a/memory.max", "lots\n")
        self.write("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "5\n")
        self.write("proc/self/statm", "1\n")
        self.limit = 5
        self.assertTrue(self.has())

    def test_clock_set_back(self) -> None:
        """An answer does not count for longer because the clock was set."""
        self.write("proc/meminfo", "MemAvailable:  1 kB\n")
        self.clock.advance(1_000_000)
        self.assertFalse(self.memory.has())
        self.clock.rightNow = 5.0
        self.write("proc/meminfo", "MemAvailable:  1000000 kB\n")
        self.assertTrue(self.memory.has())

    def test_this_host(self) -> None:
        """What there is here can be read, and is neither nothing nor everything."""
        real = Memory(lambda: self.least, self.clock.seconds, limit=lambda: 10**12)
        for octets, wanted in ((1, True), (10**18, False)):
            self.least = octets
            self.clock.advance(INTERVAL)
            self.assertEqual(real.has(), wanted)


class PolicyTests(MemoryCase):
    def test_refusals(self) -> None:
        """RFC 5321 section 4.2.4: 421 for a connection, and 452 (section 3.3) for MAIL on one that is there."""
        os.makedirs(f"{self.root}/control")
        policy = MemoryFree(Surroundings(Control(f"{self.root}/control"), self.clock))
        policy.memory = self.memory
        session = Session("x")
        self.write("proc/meminfo", "MemAvailable:  1000000 kB\n")
        self.assertIsNone(policy.connect(session))
        self.write("proc/meminfo", "MemAvailable:  1 kB\n")
        self.clock.advance(INTERVAL)
        for answer, code in ((policy.connect(session), 421), (policy.mail(session, Address(b"a@b")), 452)):
            assert answer is not None
            self.assertEqual((answer.code, answer.text[-8:]), (code, b"(#4.3.1)"))

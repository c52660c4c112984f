"""Kill -9 at random moments under load: nothing that was accepted is lost (spec/qmail.md §5, §26; doc/durability.md).

The suite runs a few seconds of it with a fixed seed. `make soak-faults SECONDS=600` runs as long as asked, with a new
seed, which it prints; `SEED=…` gives the messages and the choice of victims of an earlier run again, though not the
moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from functools import partial

from tests.e2e.harness import ME, PATIENCE, Daemon, DaemonCase, accepts, wait_until
from tests.e2e.test_roles import JOE, RootCase
from tests.soak.ledger import ACCEPTED, REFUSED, UNKNOWN, History, Ledger, tag_of
from tests.soak.load import Load, Sink

#: Seconds, for `make soak-faults`; 0 for a handful of kills.
SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))
SEED = int(os.environ.get("SOAK_SEED") or (random.SystemRandom().randrange(1 << 32) if SECONDS else 1))
FEW = 3
#: Longer than what makes a leftover garbage (§9.8), in seconds.
LONG_AGO = 3 * 86400
ROOMS = ("mess", "info", "todo", "intd", "pid", "local", "remote", "bounce")
#: Whose death is the end of the daemon.
FATAL = ("daemon", "supervisor", "lspawn")


class Soak(DaemonCase):
    """Load, kills and the final account, whatever is killed."""

    victims: tuple[str, ...] = ()

    def prepare(self, name: str) -> None:
        """Give the user `name` the addresses that the load is for."""
        self.name = name
        self.sink = Sink(SEED, 0.03 if SECONDS else 0.0)
        self.addCleanup(self.sink.end)
        self.history = History()
        self.chance = random.Random(SEED)
        self.write_control("relayclients", "127.0.0.1\n")
        self.write_control("smtproutes", f"far.test:[127.0.0.1]:{self.sink.port}\n")
        self.write_control("concurrencyincoming", "100\n")
        self.write_control("timeoutremote", "30\n")
        self.write_control("dnsservers", "127.0.0.1\n")
        self.instruct("maildir", "./Maildir/\n")
        self.instruct("program", '|echo "$LOCAL" >>program.log\n')
        self.instruct("forward", f"&{self.name}-forwarded@{ME}\n")
        self.instruct("bounces", "./Bounces/\n")
        self.instruct("forwarded", "./Forwarded/\n", "")
        self.make_maildir("Forwarded")
        self.make_maildir("Bounces")
        self.seen = 0

    def folder(self, *parts: str) -> str:
        return os.path.join(self.home, "mail", self.name, *parts)

    def own(self, path: str) -> None:
        raise NotImplementedError

    def make_maildir(self, name: str) -> None:
        for path in (name, *(os.path.join(name, part) for part in ("new", "cur", "tmp"))):
            os.mkdir(self.folder(path), 0o700)
            self.own(self.folder(path))

    def instruct(self, extension: str, text: str, rest: str = "-default") -> None:
        path = self.folder(f".qmail-{extension}{rest}")
        with open(path, "w") as file:
            file.write(text)
        self.own(path)

    # --- running it ---

    def launch(self) -> Daemon:
        """Start the daemon; it may have to wait for what the last one left to end."""
        deadline = time.monotonic() + PATIENCE
        while True:
            daemon = Daemon(self)
            try:
                daemon.wait_listening(self.port)
            except AssertionError:
                if time.monotonic() > deadline or daemon.process.poll() is None:
                    raise
                continue
            self.seen = 0
            return daemon

    def read_log(self, daemon: Daemon) -> None:
        """Bring the history up to date."""
        lines, times = daemon.log.lines, daemon.log.times
        for at in range(self.seen, len(lines)):
            self.history.line(lines[at], times[at])
        self.seen = len(lines)

    def processes(self, daemon: Daemon, victim: str) -> list[int]:
        """What there is to kill under that name."""
        raise NotImplementedError

    def kill_one(self, daemon: Daemon, kills: Counter[str]) -> Daemon:
        """Kill a victim; the daemon that runs afterwards."""
        victim = self.chance.choice(self.victims)
        pids = self.processes(daemon, victim)
        if not pids:  # there is no delivery just now
            return daemon
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(pids), signal.SIGKILL)
        kills[victim] += 1
        moment = time.monotonic()
        if victim in FATAL:
            daemon.exit_code()
            wait_until("the old daemon's port to be free", lambda: not accepts(self.port))
        self.read_log(daemon)
        self.history.kill(moment, ends_all=victim in FATAL or victim == "send")
        return self.launch() if victim in FATAL else daemon

    def test_soak(self) -> None:
        began = time.monotonic()
        kills: Counter[str] = Counter()
        daemon = self.launch()
        load = Load(self.port, self.name, ME, SEED)
        load.start()
        self.addCleanup(load.stop)
        pause = threading.Event()
        while time.monotonic() - began < SECONDS if SECONDS else sum(kills.values()) < FEW:
            pause.wait(self.chance.uniform(0.2, 3.0 if SECONDS else 0.6))
            self.read_log(daemon)
            daemon = self.kill_one(daemon, kills)
        load.stop()
        self.drain(daemon)
        self.account(load.ledger, kills, time.monotonic() - began)

    # --- the end ---

    def drain(self, daemon: Daemon) -> None:
        """Deliver all that is left, stop, and see that nothing stays in the queue."""
        for _ in range(30):
            try:
                wait_until("a moment without deliveries", partial(self.is_idle, daemon))
            except AssertionError as error:
                self.read_log(daemon)
                raise AssertionError(f"these never end: {self.history.running()}\n{daemon.log}") from error
            self.assertEqual(daemon.stop(), 0, daemon.log)
            self.read_log(daemon)
            if not self.files("info", "todo"):
                break
            daemon = self.launch()
            daemon.process.send_signal(signal.SIGALRM)
            daemon.log.wait("starting delivery")
        # What a kill has left of messages that never were goes when it is old enough (§9.8).
        leftovers = self.files(*ROOMS)
        if not leftovers:
            return
        then = time.time() - LONG_AGO
        for path in leftovers:
            os.utime(path, (then, then))
        daemon = self.launch()
        wait_until("garbage to be swept out", lambda: not self.files(*ROOMS))
        self.assertEqual(daemon.stop(), 0, daemon.log)
        self.read_log(daemon)

    def is_idle(self, daemon: Daemon) -> bool:
        states = daemon.log.find("^status: ")
        quiet = time.monotonic() - daemon.log.times[-1] > 0.5
        return quiet and re.search(r"local 0/\d+ remote 0/", states[-1]) is not None

    def files(self, *rooms: str) -> list[str]:
        top = os.path.join(self.home, "queue")
        return [
            os.path.join(parent, name)
            for room in rooms
            for parent, _, names in os.walk(os.path.join(top, room))
            for name in names
        ]

    def mails(self, name: str) -> list[str]:
        folder = self.folder(name, "new")
        mails = []
        for entry in os.listdir(folder):
            with open(os.path.join(folder, entry), encoding="latin-1") as file:
                mails.append(file.read(5000))
        return mails

    def account(self, ledger: Ledger, kills: Counter[str], seconds: float) -> None:
        """Count what arrived, and hold it against what was promised."""
        arrived = ledger.arrived
        for folder, kind in (("Maildir", "maildir"), ("Forwarded", "forward"), ("Bounces", "nobody")):
            for mail in self.mails(folder):
                found = re.search(r"^X-Tag: (t\d{6})$", mail, re.MULTILINE)
                assert found is not None, mail
                arrived[found[1], kind] += 1
        if os.path.exists(self.folder("program.log")):
            with open(self.folder("program.log")) as file:
                arrived.update((tag_of(line) or line, "program") for line in file)
        arrived.update({(tag, "remote"): count for tag, count in self.sink.taken.items()})
        duplicates = sum(ledger.duplicates().values())
        killed = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
        print(
            f"\nsoak {type(self).__name__} seed {SEED}: {seconds:.0f} s, {sum(kills.values())} kills ({killed}); "
            f"messages: {ledger.count(ACCEPTED)} accepted, {ledger.count(UNKNOWN)} without an answer, "
            f"{ledger.count(REFUSED)} not taken; {sum(arrived.values())} deliveries and bounces, "
            f"{duplicates} duplicates"
        )
        self.assertGreater(ledger.count(ACCEPTED), 10)
        self.assertEqual(ledger.missing(), [], "accepted and lost")
        self.assertEqual(ledger.unasked(), [], "delivered and never accepted")
        self.assertEqual(ledger.unexplained(self.history), [], "delivered twice without need")


class EmbeddedSoak(Soak):
    """All roles in one process: it is killed and started again."""

    victims = ("daemon",)

    def setUp(self) -> None:
        super().setUp()
        self.prepare(self.user)

    def own(self, path: str) -> None:
        if self.runtime.account.switch:
            os.chown(path, self.runtime.account.uid, self.runtime.account.gid)

    def processes(self, daemon: Daemon, victim: str) -> list[int]:
        return [daemon.process.pid]


class RolesSoak(RootCase, Soak):
    """Started as root: each role is killed in turn, a delivery, the supervisor."""

    victims = ("supervisor", "lspawn", "send", "rspawn", "smtpd", "deliveries", "deliveries")

    def setUp(self) -> None:
        super().setUp()
        self.prepare("joe")

    def own(self, path: str) -> None:
        os.chown(path, JOE, JOE)

    def processes(self, daemon: Daemon, victim: str) -> list[int]:
        return [daemon.process.pid] if victim == "supervisor" else self.roles(daemon).get(victim, [])


del Soak  # it is no test by itself

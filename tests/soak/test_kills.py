"""Kill -9 at random moments under load: nothing that was accepted is lost (spec/qmail.md §5, §26; doc/durability.md).

The suite runs a few seconds of it with a fixed seed. `make soak-faults SECONDS=600` runs as long as asked, with a new
seed, which it prints; `SEED=…` gives the messages and the choice of victims of an earlier run again, though not the
moments. `JOURNAL=1` gives the daemon a journal; $SOAK_TRANSCRIPT names a file for its log, with times.
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
from tests.soak.ledger import ACCEPTED, REFUSED, UNKNOWN, Death, History, Ledger, tag_of
from tests.soak.load import Load, Sink
from tests.soak.snapshot import look_at

#: Seconds, for `make soak-faults`; 0 for a handful of kills.
SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))
SEED = int(os.environ.get("SOAK_SEED") or (random.SystemRandom().randrange(1 << 32) if SECONDS else 1))
#: Whether the daemon has a journal (control/journal).
JOURNAL = os.environ.get("SOAK_JOURNAL", "0")
#: A file that gets all lines of the log, with times.
TRANSCRIPT = os.environ.get("SOAK_TRANSCRIPT")
FEW = 3
#: Longer than what makes a leftover garbage (§9.8), in seconds.
LONG_AGO = 3 * 86400
ROOMS = ("mess", "info", "todo", "intd", "pid", "local", "remote", "bounce")
#: Whose death is the end of the daemon.
FATAL = ("daemon", "supervisor", "lspawn")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet buried does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Soak(DaemonCase):
    """Load, kills and the final account, whatever is killed."""

    victims: tuple[str, ...] = ()
    sender = ""  # the one of them that is the queue manager

    @property
    def queue(self) -> str:
        return os.path.join(self.home, "queue")

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
        self.write_control("journal", f"{JOURNAL}\n")
        self.write_control("dnsservers", "127.0.0.1\n")
        self.instruct("maildir", "./Maildir/\n")
        self.instruct("program", '|echo "$LOCAL" >>program.log\n')
        self.instruct("forward", f"&{self.name}-forwarded@{ME}\n")
        self.instruct("bounces", "./Bounces/\n")
        self.instruct("forwarded", "./Forwarded/\n", "")
        self.make_maildir("Forwarded")
        self.make_maildir("Bounces")
        self.seen = 0
        self.transcript = open(TRANSCRIPT, "w") if TRANSCRIPT else None  # noqa: SIM115
        if self.transcript is not None:
            self.addCleanup(self.transcript.close)

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
        end = len(lines)  # more may come meanwhile
        for at in range(self.seen, end):
            self.history.line(lines[at], times[at])
            if self.transcript is not None:
                self.transcript.write(f"{times[at]:.6f} {lines[at]}\n")
        self.seen = end

    def processes(self, daemon: Daemon, victim: str) -> list[int]:
        """What there is to kill under that name."""
        raise NotImplementedError

    def kill_one(self, daemon: Daemon, kills: Counter[str]) -> Daemon:
        """Kill a victim; the daemon that runs afterwards."""
        victim = self.chance.choice(self.victims)
        pids = self.processes(daemon, victim)
        if not pids:  # there is no delivery just now
            return daemon
        pid = self.chance.choice(pids)
        kills[victim] += 1
        if victim in FATAL:
            senders = self.processes(daemon, self.sender)
            moment = self.kill(pid)
            daemon.exit_code()
            wait_until("the old daemon's port to be free", lambda: not accepts(self.port))
            wait_until("the queue manager to end", lambda: not any(map(is_alive, senders)))
            self.read_log(daemon)
            self.history.died(Death(moment, look_at(self.queue)))
            return self.launch()
        if victim == self.sender:
            # Nobody starts it again before we have looked at what it left.
            os.kill(daemon.process.pid, signal.SIGSTOP)
            try:
                moment = self.kill(pid)
                wait_until("the queue manager to end", lambda: not is_alive(pid))
                self.history.died(Death(moment, look_at(self.queue)))
            finally:
                os.kill(daemon.process.pid, signal.SIGCONT)
        else:
            moment = self.kill(pid)
            self.read_log(daemon)
            self.history.kill(moment)
        return daemon

    def kill(self, pid: int) -> float:
        """Kill a process, which may have died; when that was."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return time.monotonic()

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
        return [
            os.path.join(parent, name)
            for room in rooms
            for parent, _, names in os.walk(os.path.join(self.queue, room))
            for name in names
        ]

    def mails(self, name: str) -> list[tuple[str, str]]:
        """The file names in a maildir, which tell when and by whom they were made, and what is in them."""
        folder = self.folder(name, "new")
        mails = []
        for entry in sorted(os.listdir(folder)):
            with open(os.path.join(folder, entry), encoding="latin-1") as file:
                mails.append((entry, file.read(5000)))
        return mails

    def account(self, ledger: Ledger, kills: Counter[str], seconds: float) -> None:
        """Count what arrived, and hold it against what was promised."""
        arrived = ledger.arrived
        files: dict[tuple[str, str], list[str]] = {}
        for folder, kind in (("Maildir", "maildir"), ("Forwarded", "forward"), ("Bounces", "nobody")):
            for name, mail in self.mails(folder):
                found = re.search(r"^X-Tag: (t\d{6})$", mail, re.MULTILINE)
                assert found is not None, mail
                arrived[found[1], kind] += 1
                files.setdefault((found[1], kind), []).append(name)
        if os.path.exists(self.folder("program.log")):
            with open(self.folder("program.log")) as file:
                arrived.update((tag_of(line) or line, "program") for line in file)
        arrived.update({(tag, "remote"): count for tag, count in self.sink.taken.items()})
        self.history.bury()
        duplicates = sum(ledger.duplicates().values())
        killed = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
        lags = sorted(lag for lag, _ in self.history.lags)
        print(
            f"\nsoak {type(self).__name__} seed {SEED}, journal {JOURNAL}: {seconds:.0f} s, "
            f"{sum(kills.values())} kills ({killed})\n"
            f"messages: {ledger.count(ACCEPTED)} accepted, {ledger.count(UNKNOWN)} without an answer, "
            f"{ledger.count(REFUSED)} not taken; {sum(arrived.values())} deliveries and bounces, "
            f"{duplicates} duplicates\n"
            f"{len(lags)} reports without a mark, up to {max(lags, default=0):.2f} s old"
        )
        for key, text in (unexplained := ledger.unexplained(self.history)).items():
            print(f"delivered twice without need: {text}; {' '.join(files.get(key, ()))}")
        self.assertGreater(ledger.count(ACCEPTED), 10)
        self.assertEqual(ledger.missing(), [], "accepted and lost")
        self.assertEqual(ledger.unasked(), [], "delivered and never accepted")
        self.assertEqual(list(unexplained), [], "delivered twice without need")
        self.assertEqual(self.history.late(), [], "not marked for long")


class EmbeddedSoak(Soak):
    """All roles in one process: it is killed and started again."""

    victims = ("daemon",)
    sender = "daemon"

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
    sender = "send"

    def setUp(self) -> None:
        super().setUp()
        self.prepare("joe")

    def own(self, path: str) -> None:
        os.chown(path, JOE, JOE)

    def processes(self, daemon: Daemon, victim: str) -> list[int]:
        return [daemon.process.pid] if victim == "supervisor" else self.roles(daemon).get(victim, [])


del Soak  # it is no test by itself

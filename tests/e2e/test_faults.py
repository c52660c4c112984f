"""Real faults: a full disk, a broken and a slow one, no descriptors, no processes, hosts that hang, a wrong clock.

Always the same is wanted (spec/qmail.md §1.5, §6.3, §9.6, §15): the client hears 4xx or the delivery is deferred, a log
line names the cause, all works again by itself when the cause is gone, and nothing runs in circles meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from unittest import SkipTest

from qtwist.queue.client import QueueRefused, submit
from tests.e2e.harness import ME, MESSAGE, PATIENCE, Daemon, DaemonCase, program, wait_until
from tests.e2e.test_roles import RootCase
from tests.e2e.tracing import strace

SYNCS = "fsync,fdatasync,syncfs"
FORKS = "clone,clone3,fork,vfork"


class FaultCase(DaemonCase):
    """Faults for a daemon that runs."""

    def answer(self, *recipients: str) -> int:
        """What the server says to a message in the end."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.ehlo()
            for code, _ in (client.mail("joe@client.test"), *(client.rcpt(one) for one in recipients)):
                if code != 250:
                    return code
            return client.data(MESSAGE)[0]

    def alarm(self, daemon: Daemon) -> None:
        """Try all again now, which time would do as well."""
        daemon.process.send_signal(signal.SIGALRM)

    @contextlib.contextmanager
    def injected(self, daemon: Daemon, fault: str) -> Iterator[None]:
        """System calls of the daemon fail, or take long, as strace's ``inject=`` says; SkipTest where it may not."""
        trace = ("-e", f"trace={fault.split(':', maxsplit=1)[0]}", "-e", f"inject={fault}")
        with strace([daemon.process.pid], "-o", os.devnull, *trace):
            yield

    def full_disk(self, folder: str, size: str) -> str:
        """Put `folder` on a file system of its own; the path of the file to fill it with. SkipTest but for root."""
        if os.geteuid() != 0:
            raise SkipTest("only root can mount")
        kept = folder + ".kept"
        os.rename(folder, kept)
        os.mkdir(folder)
        account = self.runtime.account
        options = f"size={size},mode=0700" + (f",uid={account.uid},gid={account.gid}" if account.switch else "")
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False)
        if mounted.returncode:
            raise SkipTest("nothing can be mounted here")
        self.addCleanup(subprocess.run, ["umount", "-l", folder], check=True)
        subprocess.run(["cp", "-a", kept + "/.", folder], check=True)
        return os.path.join(folder, "filler")

    def fill(self, path: str) -> None:
        """Use up what is left of a file system."""
        with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def assert_no_busy_loop(self, daemon: Daemon, seconds: float = 0.5) -> None:
        """Soon the daemon uses next to no processor time."""

        def used() -> float:
            with open(f"/proc/{daemon.process.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        def rests() -> bool:
            before = used()
            threading.Event().wait(seconds)
            return used() - before < 0.2 * seconds

        wait_until("the daemon to rest", rests, 15)


class FullDisk(FaultCase):
    def test_room(self) -> None:
        """Mail is refused before the disk is full, whoever brings it, and taken again when there is room."""
        filler = self.full_disk(os.path.join(self.home, "queue"), "48m")
        daemon = self.start()
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("end msg")
        with open(filler, "wb") as file:
            file.write(bytes(24_000_000))
        wait_until("452", lambda: self.answer(self.address) == 452)
        daemon.log.wait("no mail is taken until there are more .control/queueminfree.")
        error = self.assertRaises(QueueRefused, submit, self.home, [b"hello\n"], b"", [self.address.encode()], {})
        self.assertEqual((error.code, error.letter), (53, b"Z"))
        self.assert_no_busy_loop(daemon)
        os.unlink(filler)
        wait_until("250", lambda: self.answer(self.address) == 250)
        daemon.log.wait("end msg", 2)
        self.wait_empty_queue()

    def test_queue(self) -> None:
        """§6.3: a disk full means 451, and 250 again when there is room."""
        self.write_control("queueminfree", "0\n")
        filler = self.full_disk(os.path.join(self.home, "queue"), "3m")
        daemon = self.start()
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("end msg")
        self.wait_empty_queue()
        self.fill(filler)
        self.assertEqual(self.answer(self.address), 451)
        daemon.log.wait("message not queued: .*No space left on device")
        self.assert_no_busy_loop(daemon)
        os.unlink(filler)
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("end msg", 2)
        self.assertEqual(len(self.maildir()), 2)
        self.wait_empty_queue()

    def test_mailbox(self) -> None:
        """§14.1: what cannot be written to a Maildir is tried again later."""
        filler = self.full_disk(os.path.join(self.home, "mail", self.user, "Maildir"), "200k")
        daemon = self.start()
        self.fill(filler)
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("deferral: .*No_space_left_on_device")
        self.assert_no_busy_loop(daemon)
        os.unlink(filler)
        self.alarm(daemon)
        daemon.log.wait("end msg")
        self.assertEqual(len(self.maildir()), 1)


class BrokenDisk(FaultCase):
    def test_no_sync(self) -> None:
        """§6.3: what a flush has refused was not accepted; the next message finds a disk that works."""
        daemon = self.start()
        with self.injected(daemon, f"{SYNCS}:error=EIO"):
            self.assertEqual(self.answer(self.address), 451)
            daemon.log.wait("message not queued: .*Input/output error")
            self.assertEqual(self.answer(self.address), 451)
            self.assert_no_busy_loop(daemon)
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("end msg")
        self.assertEqual(daemon.stop(), 0)

    def test_quota(self) -> None:
        """§6.3, §14.1: a quota that is used up shows when data are flushed: nothing is accepted, and what
        was before is delivered when there is room again."""
        self.write_control("concurrencylocal", "0\n")
        daemon = self.start()
        self.assertEqual(self.answer(self.address), 250)
        self.assertEqual(daemon.stop(), 0)
        self.write_control("concurrencylocal", "10\n")
        self.write_dotqmail("wait", "|exit 111\n")
        daemon = self.start()
        daemon.log.wait("end msg")
        self.assertEqual(self.answer(f"{self.user}-wait@{ME}"), 250)
        daemon.log.wait("deferral")
        self.write_dotqmail("wait", "./Maildir/\n")
        with self.injected(daemon, f"{SYNCS}:error=EDQUOT"):
            self.assertEqual(self.answer(self.address), 451)
            daemon.log.wait("message not queued: .*Disk quota exceeded")
            self.alarm(daemon)
            daemon.log.wait("deferral: .*Disk_quota_exceeded")
            self.assert_no_busy_loop(daemon)
        self.alarm(daemon)
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("end msg", 3)
        self.assertEqual(len(self.maildir()), 3)
        self.wait_empty_queue()

    def test_slow(self) -> None:
        """While one message waits for the disk, others are greeted and heard."""
        daemon = self.start()
        with self.injected(daemon, f"{SYNCS}:delay_exit=2000000"):
            codes: list[int] = []
            waiting = threading.Thread(target=lambda: codes.append(self.answer(self.address)))
            began = time.monotonic()
            waiting.start()
            with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
                client.ehlo()
                self.assertEqual(client.mail("a@client.test")[0], 250)
                heard = time.monotonic() - began
            waiting.join(PATIENCE)
            self.assertEqual(codes, [250])
            self.assertGreater(time.monotonic() - began, 2)
            self.assertLess(heard, 2)
        daemon.log.wait("end msg")


class NothingLeft(FaultCase):
    def test_descriptors(self) -> None:
        """Connections that take all descriptors cost nobody's mail, and no time; when they go, all is as before."""
        daemon = self.start()
        path = f"/proc/{daemon.process.pid}/fd"
        used = len(os.listdir(path))
        few = f"import resource; resource.prlimit({daemon.process.pid}, resource.RLIMIT_NOFILE, ({used + 12},) * 2)"
        subprocess.run([self.runtime.python, "-c", few], check=True, env=self.environment(), cwd="/", **self.identity())
        idle = [socket.create_connection(("127.0.0.1", self.port), PATIENCE) for _ in range(40)]
        daemon.log.wait("EMFILE")
        self.assert_no_busy_loop(daemon)
        for one in idle:
            one.close()
        wait_until("room for new connections", lambda: len(os.listdir(path)) < used + 6)
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("end msg")

    def test_processes(self) -> None:
        """§11.3: a program that cannot be started is tried again later."""
        self.write_dotqmail("program", "|echo ran >>ran\n")
        self.write_dotqmail("box", "./Maildir/\n")
        daemon = self.start()
        self.assertEqual(self.answer(f"{self.user}-box@{ME}"), 250)
        daemon.log.wait("end msg")  # the threads for deliveries run
        with self.injected(daemon, f"{FORKS}:error=EAGAIN"):
            self.assertEqual(self.answer(f"{self.user}-program@{ME}"), 250)
            daemon.log.wait("^delivery 2: deferral: ")
            self.assert_no_busy_loop(daemon)
        self.alarm(daemon)
        daemon.log.wait("end msg", 2)
        with open(os.path.join(self.home, "mail", self.user, "ran")) as file:
            self.assertEqual(file.read(), "ran\n")


STEPS = ("greeting", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "message", "QUIT")
REPLIES = {
    "greeting": b"220 hang.test",
    "EHLO": b"250 hang.test",
    "MAIL": b"250 ok",
    "RCPT": b"250 ok",
    "DATA": b"354 go",
    "message": b"250 taken",
    "QUIT": b"221 bye",
}


class _Hanging(socketserver.ThreadingTCPServer):
    """A host that says nothing from the step `hangs` on."""

    daemon_threads = True

    def __init__(self, hangs: str) -> None:
        super().__init__(("127.0.0.1", 0), _HangingHandler)
        self.hangs = hangs
        self.hung = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class _HangingHandler(socketserver.StreamRequestHandler):
    server: _Hanging

    def handle(self) -> None:
        for step in STEPS:
            if step == "STARTTLS" != self.server.hangs:
                continue
            if step == self.server.hangs:
                self.server.hung.set()
                break
            reply = REPLIES[step]
            if step == "EHLO" and self.server.hangs == "STARTTLS":
                reply = b"250-hang.test\r\n250 STARTTLS"
            self.wfile.write(reply + b"\r\n")
            end = b".\r\n" if step == "DATA" else None
            while (line := self.rfile.readline(1000)) != end and end is not None and line:
                pass
        with contextlib.suppress(OSError):
            self.rfile.read()


class HangingHosts(FaultCase):
    def test_every_step(self) -> None:
        """§15: wherever a host stops talking, the mail is deferred in time, and nobody else waits for it."""
        routes = []
        for step in STEPS:
            host = _Hanging(step)
            self.addCleanup(host.end)
            routes.append(f"{step.lower()}.test:[127.0.0.1]:{host.server_address[1]}\n")
        full = socket.socket()  # its queue is full: connections are never answered
        self.addCleanup(full.close)
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = [socket.socket() for _ in range(3)]
        for other in others:
            self.addCleanup(other.close)
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect(full.getsockname())
        routes.append(f"connect.test:[127.0.0.1]:{full.getsockname()[1]}\n")
        self.write_control("smtproutes", "".join(routes))
        self.write_control("relayclients", "127.0.0.1\n")
        # Long enough for a machine whose disk has much else to do to accept ten messages.
        self.write_control("timeoutremote", "15\n")
        self.write_control("timeoutconnect", "15\n")
        daemon = self.start()
        for step in (*STEPS, "connect"):
            self.assertEqual(self.answer(f"a@{step.lower()}.test"), 250)
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("success")
        self.assertEqual(daemon.log.find("deferral"), [], "the local mail has waited")
        self.assert_no_busy_loop(daemon)
        daemon.log.wait("success", 2)  # the host that hangs after it has taken the mail
        found = daemon.log.wait("deferral: ", 8)
        for step in STEPS[:-1]:
            self.assertEqual(sum(f"no_answer_to_{step}_in_15" in line for line in found), 1, found)
        self.assertEqual(sum("No_SMTP_connection_could_be_established" in line for line in found), 1, found)
        self.assertEqual(daemon.stop(), 0)

    def test_silent_dns(self) -> None:
        """§15: no answer from the DNS is a deferral; it holds up nobody, not even the stop."""
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))
        self.write_control("dnsservers", f"127.0.0.1:{silent.getsockname()[1]}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        self.assertEqual(self.answer("a@far.test"), 250)
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("success")
        self.assert_no_busy_loop(daemon)
        daemon.log.wait("deferral: CNAME_lookup_failed_temporarily|deferral: .*DNS|deferral: .*temporar")


class Orphans(RootCase):
    def test_hanging_host(self) -> None:
        """A supervisor that dies leaves nobody who holds the queue, even when a remote host hangs (doc/security.md)."""
        host = _Hanging("MAIL")
        self.addCleanup(host.end)
        self.write_control("smtproutes", f"far.test:[127.0.0.1]:{host.server_address[1]}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        roles = self.ready_roles(daemon)
        self.send(["a@far.test"])
        self.assertTrue(host.hung.wait(PATIENCE))
        daemon.process.kill()
        pids = [pid for name in ("lspawn", "send", "rspawn", "smtpd") for pid in roles[name]]
        wait_until("all roles to end", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 12)

    def test_delivery_that_waits_for_rspawn(self) -> None:
        """A stop while rspawn is dead, and mail waits for it, comes to its end."""
        self.write_control("smtproutes", "far.test:[127.0.0.1]:9\n")
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        roles = self.ready_roles(daemon)
        for _ in range(6):  # each time it is started again later
            [rspawn] = self.ready_roles(daemon)["rspawn"]
            os.kill(rspawn, signal.SIGKILL)
            daemon.log.wait("rspawn ended", 1)
            wait_until("its end to be seen", lambda gone=rspawn: gone not in self.roles(daemon).get("rspawn", []))
        self.send(["a@far.test"])
        daemon.log.wait("starting delivery")
        self.assertEqual(daemon.stop(), 0, daemon.log)
        self.assertFalse([pid for pids in roles.values() for pid in pids if os.path.exists(f"/proc/{pid}")])


class WrongClock(FaultCase):
    """libfaketime: a clock that jumps while the daemon runs."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self.fake}

    def setUp(self) -> None:
        self.fake: dict[str, str] = {}
        super().setUp()
        program("faketime", "faketime")
        self.offset = os.path.join(self.home, "clock")
        self.set_clock("+0")
        found = subprocess.run(["faketime", "now", "env"], capture_output=True, text=True, check=True).stdout
        [library] = [line.partition("=")[2] for line in found.splitlines() if line.startswith("LD_PRELOAD=")]
        self.fake = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": self.offset,
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_clock(self, offset: str) -> None:
        """Make it go ahead, or behind, by so much from now on."""
        self.write("clock.new", offset + "\n")
        os.replace(os.path.join(self.home, "clock.new"), self.offset)

    def test_jumps(self) -> None:
        """Mail goes on, whatever the clock says; mail that waits is not lost by a jump back (§9.5)."""
        self.write_dotqmail("later", "|exit 111\n")
        daemon = self.start()
        self.assertEqual(self.answer(f"{self.user}-later@{ME}"), 250)
        daemon.log.wait("deferral")
        for jumps, offset in enumerate(("-2d", "+30d", "+0"), 1):
            self.set_clock(offset)
            self.assertEqual(self.answer(self.address), 250)
            wait_until("the mail to come", lambda wanted=jumps: len(self.maildir()) >= wanted)
            self.assert_no_busy_loop(daemon)
        self.assertEqual(daemon.stop(), 0)


class NoMemory(FaultCase):
    def test_refusals(self) -> None:
        """§6.3: while too little memory is free, connections are told so, and programs here; then all goes on."""
        daemon = self.start()
        self.assertEqual(self.answer(self.address), 250)
        self.write_control("memoryminfree", f"{10**18}\n")
        wait_until("421", lambda: self.greeting()[:4] == b"421 ")
        daemon.log.wait("octets are free of .*no mail is taken until there are more .control/memoryminfree.")
        daemon.log.wait("connection answered 421 not enough memory.*rule=memory")
        error = self.assertRaises(QueueRefused, submit, self.home, [b"hello\n"], b"", [self.address.encode()], {})
        self.assertEqual((error.code, error.letter), (53, b"Z"))
        self.assert_no_busy_loop(daemon)
        self.write_control("memoryminfree", "1\n")
        wait_until("220", lambda: self.greeting()[:4] == b"220 ")
        self.assertEqual(self.answer(self.address), 250)
        self.wait_empty_queue()

    def greeting(self) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as one:
            return one.recv(1000)

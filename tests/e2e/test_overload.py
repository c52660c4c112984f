"""Too much of everything: connections, recipients, headers, .qmail lines, loops, messages (issue 6 item 4).

Small enough for every run; OVERLOAD=10 in the environment (`make soak-overload`) makes it ten times as much.
"""

from __future__ import annotations

import contextlib
import os
import resource
import smtplib
import socket
import threading
import time

from qtwist.files.disk import RealDisk
from qtwist.queue.layout import open_layout
from qtwist.queue.records import format_info, format_recipients
from qtwist.wire.netstring import encode
from tests.e2e.harness import ME, PATIENCE, Daemon, free_port, wait_until
from tests.e2e.test_faults import FaultCase
from tests.queue_tools import write
from tests.socket_tools import talk

TIMES = int(os.environ.get("OVERLOAD", "1"))


class OverloadCase(FaultCase):
    control = {"concurrencyincoming": f"{1000 * TIMES}\n", "maxconnip": "0\n", "maxconnc": "0\n"}

    def memory(self, daemon: Daemon) -> int:
        """Proportional set size in octets."""
        with open(f"/proc/{daemon.process.pid}/smaps_rollup") as file:
            [size] = [line.split()[1] for line in file if line.startswith("Pss:")]
        return int(size) * 1024


class Overload(OverloadCase):
    def test_idle_connections(self) -> None:
        """§16: connections that say nothing, or a byte now and then, cost memory in proportion, and nobody waits."""
        daemon = self.start()
        before = self.memory(daemon)
        count = 500 * TIMES
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000), hard))
        idle = [socket.create_connection(("127.0.0.1", self.port), PATIENCE) for _ in range(count)]
        for one in idle:
            self.addCleanup(one.close)
        for one in idle:
            self.assertEqual(one.recv(3), b"220")
        slow = idle[0]
        for octet in b"EHLO":
            slow.sendall(bytes([octet]))
        began = time.monotonic()
        self.assertEqual(self.answer(self.address), 250)
        daemon.log.wait("end msg")
        self.assertLess(time.monotonic() - began, 5)
        each = (self.memory(daemon) - before) // count
        if TIMES > 1:
            print(f"{count} idle connections: {each} octets of memory each")
        self.assertLess(each, 64 * 1024)
        self.assert_no_busy_loop(daemon)

    def test_too_many(self) -> None:
        """§4: beyond control/concurrencyincoming clients hear 421."""
        self.write_control("concurrencyincoming", "5\n")
        daemon = self.start()
        # Connections from before, of ours that wait for the daemon, may not have ended yet.
        wait_until("five of eight to be let in", lambda: sorted(self.greetings(8)) == [b"220"] * 5 + [b"421"] * 3)
        daemon.log.wait("refused, there are 5 connections already")

    def greetings(self, connections: int) -> list[bytes]:
        """What so many connections at the same time hear first."""
        with contextlib.ExitStack() as stack:
            address = "127.0.0.1", self.port
            idle = [stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(connections)]
            return [one.recv(3) for one in idle]

    def test_long_header_and_lines(self) -> None:
        """§16.6: one line of megabytes in the header, in the body: memory does not follow."""
        daemon = self.start()
        before = self.memory(daemon)
        megabytes = "x" * 8_000_000
        self.send([self.address], f"Subject: {megabytes}\n\n{megabytes}\n")
        daemon.log.wait("end msg")
        self.assertGreater(len(self.maildir()[0]), 16_000_000)
        self.assertLess(self.memory(daemon) - before, 30_000_000)

    def test_dot_qmail_bombs(self) -> None:
        """§13, §14: ten thousand lines, a forward to itself, programs that print for ever and never end."""
        self.write_control("timeoutlocal", "2\n")
        self.write_dotqmail("many", "# x\n" * 10_000 + "./Maildir/\n")
        self.write_dotqmail("loop", f"&{self.user}-loop@{ME}\n")
        self.write_dotqmail("loud", "|yes\n")
        self.write_dotqmail("never", "|sleep 600\n")
        daemon = self.start()
        before = self.memory(daemon)
        bombs = [f"{self.user}-{name}@{ME}" for name in ("many", "loop", "loud", "never")]
        self.send(bombs, sender=self.address)
        self.send([self.address])
        daemon.log.wait("success: did_1", 3)  # a line of many, the other mail, and the notice of what follows
        daemon.log.wait("failure: Mail_loop:")
        daemon.log.wait("deferral: Program_ran_for_more_than_2_seconds")
        daemon.log.wait("deferral: y/y/y")
        self.assertEqual(len(self.maildir()), 3)
        self.assertLess(self.memory(daemon) - before, 30_000_000)
        self.assert_no_busy_loop(daemon)

    def test_flood_of_tiny_messages(self) -> None:
        """A client that floods does not keep others waiting: their message is taken, and delivered, in between."""
        count = 1000 * TIMES
        self.write_dotqmail("flood", "# nothing comes of it\n")
        daemon = self.start()
        flood = threading.Thread(
            target=self.smtp_source,
            args=("-s", "20", "-m", str(count), "-l", "10", "-t", f"{self.user}-flood@{ME}"),
        )
        flood.start()
        self.addCleanup(flood.join)
        daemon.log.wait("new msg", 50)
        self.assertEqual(self.answer(self.address), 250)
        wait_until("the other message", self.maildir)
        self.assertLess(len(daemon.log.find("end msg")), count, "the flood was over before")
        flood.join()
        daemon.log.wait("end msg", count + 1)
        self.wait_empty_queue()


class QueueCase(FaultCase):
    def queued_recipients(self, channel: str) -> int:
        """How many recipients the files of a channel have."""
        folder = os.path.join(self.home, "queue", channel)
        found = 0
        for split in os.listdir(folder):
            for name in os.listdir(os.path.join(folder, split)):
                with open(os.path.join(folder, split, name), "rb") as file:
                    found += file.read().count(b"\0")
        return found


class DeepQueue(OverloadCase):
    """Mail of a week for a host that refuses connections; `python -m bench.backlog` measures it with the roles."""

    def put(self, count: int) -> None:
        """Deferred messages in the queue, as a daemon would have left them (§5.1, state S4): due in a week."""
        layout = open_layout(os.path.join(self.home, "queue"), RealDisk())
        account = self.runtime.account
        week = time.time() + 7 * 86400
        for index in range(count):
            temporary = layout.room("pid") + f"/{index}"
            write(temporary, b"Subject: old\n\nhello\n", 0o644)
            number = os.stat(temporary).st_ino
            os.rename(temporary, layout.path("mess", number))
            write(layout.path("info", number), format_info(b""))
            write(layout.path("remote", number), format_recipients([b"user%d@dead.test" % index]))
            os.utime(layout.path("remote", number), (week, week))
            for room in ("mess", "info", "remote") if account.switch else ():
                os.chown(layout.path(room, number), account.uid, account.gid)

    def test_new_mail(self) -> None:
        """§9.5: it starts at once, new mail is delivered at once, also while all of the old mail is due; memory is for
        numbers and times alone, and TERM does not wait for them all."""
        count = 2000 * TIMES
        self.write_control("smtproutes", "dead.test:[127.0.0.1]:9\n")
        self.put(count)
        began = time.monotonic()
        daemon = self.start()
        started = time.monotonic() - began
        self.assertLess(started, 10 + count / 20_000)
        self.assertEqual(self.delivered_after(daemon, 1), 1)
        quiet = self.memory(daemon)
        self.alarm(daemon)
        daemon.log.wait("starting delivery .* to remote", 50)
        self.assertEqual(self.delivered_after(daemon, 2), 2)
        busy = self.memory(daemon)
        self.assertLess(busy - quiet, 30_000_000 + 1024 * count)
        began = time.monotonic()
        self.assertEqual(daemon.stop(), 0)
        ended = time.monotonic() - began
        self.assertLess(ended, 10 + count / 5000)
        self.assertEqual(len(self.queued()), count)
        if TIMES > 1:
            print(f"{count} messages: {started:.1f} s, {quiet >> 20} MiB; all due {busy >> 20} MiB; TERM {ended:.1f} s")

    def delivered_after(self, daemon: Daemon, count: int) -> int:
        """Send a message; how many there are in the mailbox, which has to have it in seconds."""
        began = time.monotonic()
        self.assertEqual(self.answer(self.address), 250)
        wait_until("the new message", lambda: len(self.maildir()) == count)
        self.assertLess(time.monotonic() - began, 10)
        return len(self.maildir())


class Recipients(QueueCase):
    """Ten thousand recipients of one message are taken, as by qmail; one more is refused."""

    control = {"concurrencylocal": "0\n", "concurrencyremote": "0\n"}
    count = 10_000

    def addresses(self, count: int) -> list[str]:
        return [f"{self.user}-{number}@{ME}" for number in range(count)]

    def test_smtp(self) -> None:
        """§16.1: control/maxrecipients is 10,000; the next gets 452, and the message goes to the others."""
        daemon = self.start()
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.ehlo()
            client.mail("joe@client.test")
            lines = b"".join(b"RCPT TO:<%s>\r\n" % one.encode() for one in self.addresses(self.count + 1))
            sending = threading.Thread(target=client.sock.sendall, args=(lines,))  # type: ignore[union-attr]
            sending.start()
            codes = [client.getreply()[0] for _ in range(self.count + 1)]
            sending.join()
            self.assertEqual((codes.count(250), codes[-1]), (self.count, 452))
            self.assertEqual(client.data("x\n")[0], 250)
        daemon.log.wait("info msg")
        wait_until("all recipients", lambda: self.queued_recipients("local") == self.count)
        self.assertEqual(daemon.stop(), 0)

    def test_qmtp_and_qmqp(self) -> None:
        """§17: in one package."""
        ports = {"qmtp": free_port(), "qmqp": free_port()}
        lines = [f"{name} tcp:{port}:interface=127.0.0.1\n" for name, port in ports.items()]
        self.write_control("listen", f"smtp tcp:{self.port}:interface=127.0.0.1\n" + "".join(lines))
        self.write_control("qmqpclients", "127.0.0.1\n")
        daemon = self.start()
        addresses = b"".join(encode(one.encode()) for one in self.addresses(self.count))
        answers = talk(ports["qmtp"], encode(b"\nx\n") + encode(b"joe@client.test") + encode(addresses))
        self.assertEqual(answers.count(b":Kok "), self.count)
        answer = talk(ports["qmqp"], encode(encode(b"x\n") + encode(b"joe@client.test") + addresses))
        self.assertRegex(answer, rb"^\d+:Kok ")
        daemon.log.wait("info msg", 2)
        wait_until("all recipients", lambda: self.queued_recipients("local") == 2 * self.count)
        self.assertEqual(daemon.stop(), 0)


class DotQmail(QueueCase):
    def test_ten_thousand_forwards(self) -> None:
        """§13.3: they are one message with ten thousand recipients."""
        self.write_control("concurrencyremote", "0\n")
        self.write_dotqmail("all", "".join(f"&a{number}@far.test\n" for number in range(10_000)))
        daemon = self.start()
        self.assertEqual(self.answer(f"{self.user}-all@{ME}"), 250)
        daemon.log.wait("success: did_0\\+10000\\+0/qp_")
        daemon.log.wait("info msg", 2)
        wait_until("ten thousand recipients", lambda: self.queued_recipients("remote") == 10_000)
        self.assertEqual(daemon.stop(), 0)

    def test_loop_over_two_accounts(self) -> None:
        """§14.5: two addresses that forward to each other: Delivered-To ends it, and the sender hears of it once."""
        self.write_dotqmail("ping", f"&{self.user}-pong@{ME}\n")
        self.write_dotqmail("pong", f"&{self.user}-ping@{ME}\n")
        daemon = self.start()
        self.send([f"{self.user}-ping@{ME}"], sender=self.address)
        daemon.log.wait("failure: Mail_loop")
        wait_until("the notice", self.maildir)
        self.wait_empty_queue()
        [notice] = self.maildir()
        self.assertIn(b"Mail loop", notice)
        self.assertEqual(len(daemon.log.find("new msg")), 4)  # there, back, there again where it ends, and the notice


class TwoHosts(FaultCase):
    def test_loop(self) -> None:
        """§16.6: mail that two hosts send to each other for ever ends at a hundred hops, in a notice."""
        self.write_control("rcpthosts", f"{ME}\nloop.test\n")
        self.write_control("smtproutes", f"loop.test:[127.0.0.1]:{self.port}\n")
        daemon = self.start()
        self.send(["a@loop.test"], sender=self.address)
        daemon.log.wait("failure: .*too_many_hosts.*|failure: .*looping.*")
        wait_until("the notice", self.maildir)
        self.wait_empty_queue()
        [notice] = self.maildir()
        self.assertIn(b"looping", notice)
        self.assertLess(len(daemon.log.find("new msg")), 110)

"""Strangers kept out, by a running daemon: as an ordinary user, and in roles under their own accounts (issue 8)."""

from __future__ import annotations

import contextlib
import functools
import os
import smtplib
import socket
import subprocess
import sys

from qtwist.wire.netstring import encode
from tests.command_tools import CHECKOUT
from tests.e2e.harness import ME, PATIENCE, Daemon, DaemonCase, accepts, free_port, wait_until
from tests.e2e.test_roles import ANN, JOE, RootCase


class AsAUser(DaemonCase):
    def let_in(self) -> smtplib.SMTP:
        """A connection that gets its greeting: the one before it may not have ended for the server yet."""
        clients: list[smtplib.SMTP] = []

        def connects() -> bool:
            with contextlib.suppress(smtplib.SMTPConnectError):
                clients.append(smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE))
            return bool(clients)

        wait_until("the one connection", connects)
        return clients[0]

    def test_a_day_at_the_door(self) -> None:
        """Denied, limited, unknown, greylisted; and explained afterwards."""
        events = os.path.join(self.home, "log", "events")
        self.options = ("--events", events)
        os.makedirs(os.path.dirname(events), exist_ok=True)
        account = self.runtime.account
        if account.switch:
            os.chown(os.path.dirname(events), account.uid, account.gid)
        self.write_control("rcptcheck", "1\n")
        daemon = self.start()
        self.write_control("greylisting", "block_expire 0\n")
        self.write_control("tcp.smtp", '127.:allow,MAXCONNIP="1",A="b"\n')
        with self.let_in() as client:
            with self.assertRaises(smtplib.SMTPConnectError) as refused:
                smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE)
            self.assertEqual(refused.exception.smtp_code, 421)
            client.helo("x.test")
            client.mail("a@b.test")
            self.assertEqual(client.rcpt(self.address)[0], 250)
            self.assertEqual(client.rcpt(f"postmaster@{ME}")[0], 250)
            self.assertEqual(client.rcpt(f"no-such-user@{ME}")[0], 550)
            self.write_control("greylisting", "block_expire 1\n")
            self.assertEqual(client.rcpt(f"mailer-daemon@{ME}")[0], 451)
        self.write_control("tcp.smtp", "127.0.0.0/8:deny\n")
        with self.assertRaises(smtplib.SMTPServerDisconnected):
            smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE)
        self.assertEqual(daemon.stop(), 0)
        told = self.run_command("qtwist", "log", "why", "--home", self.home, "127.0.0.1")
        for rule in ("limits", "rcptcheck", "greylisting", "tcprules"):
            self.assertIn(f"    {rule}: ", told)
        told = self.run_command("qtwist", "log", "why", "--home", self.home, f"no-such-user@{ME}")
        self.assertIn("no such recipient", told)


class AsRoles(RootCase):
    def rcpt(self, *recipients: str) -> list[int]:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.helo("x.test")
            client.mail("a@b.test")
            return [client.rcpt(recipient)[0] for recipient in recipients]

    def workers(self, daemon: Daemon) -> list[int]:
        """The process ids of the two that serve SMTP, when both are there."""
        wait_until("two servers", lambda: len(self.roles(daemon).get("smtpd", ())) == 2)
        return self.roles(daemon)["smtpd"]

    def test_recipients_of_homes_that_smtpd_cannot_read(self) -> None:
        """§12, §13: lspawn has the owners look. Homes are 0700; a broken one is temporary; root's mail is not taken."""
        self.write_control("rcptcheck", "1\n")
        self.instructions("joe", JOE, "|exit 0\n", "-list-default")
        self.instructions("ann", ANN, "", "-shop")
        self.start()
        self.assertEqual(
            self.rcpt(f"joe@{ME}", f"joe-list-7@{ME}", f"joe-x@{ME}", f"ann-shop@{ME}", f"ann-shopping@{ME}",
                      f"nobody-here@{ME}", f"postmaster@{ME}", f"superuser@{ME}"),
            [250, 250, 550, 250, 550, 550, 250, 451],
        )  # fmt: skip
        os.chmod(os.path.join(self.home, "mail", "ann"), 0o777)
        self.assertEqual(self.rcpt(f"ann-new@{ME}"), [451])

    def test_greylisting_shared_by_workers(self) -> None:
        """Both processes use the one database, which is theirs alone, and it outlives all of them."""
        self.write_control("greylisting", "")
        daemon = self.start()
        workers = self.workers(daemon)
        self.assertEqual({code for _ in range(6) for code in self.rcpt(f"joe@{ME}")}, {451})
        seen = os.path.join(self.home, "greylist", "seen")
        self.assertEqual(os.stat(seen).st_uid, self.accounts["qmaild"].pw_uid)
        self.assertEqual(os.stat(seen).st_mode & 0o077, 0)
        for pid in workers:
            os.kill(pid, 9)
        wait_until("new servers", lambda: not set(self.workers(daemon)) & set(workers))
        self.write_control("greylisting", "block_expire 0\n")
        self.assertEqual(self.rcpt(f"joe@{ME}"), [250])
        self.write_control("greylisting", "")
        self.assertEqual(self.rcpt(f"joe@{ME}"), [250])

    def ask(self, zone_text: str) -> None:
        """Have the daemon ask a server that knows these records."""
        zone = os.path.join(self.directory, "zone")
        with open(zone, "w", encoding="ascii") as file:
            file.write(zone_text)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.dns_server", zone], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(server.communicate)
        self.addCleanup(server.kill)
        assert server.stdout is not None
        self.write_control("dnsservers", server.stdout.readline().split()[-1] + "\n")

    def test_names_count_for_pop3_and_qmqp(self) -> None:
        """Their roles may ask the DNS when a rule is about a name, and the filter against the network is left away."""
        self.ask("1.0.0.127.in-addr.arpa PTR Joe.good.test\njoe.good.test A 127.0.0.1\n")
        ports = {role: free_port() for role in ("pop3", "qmqp")}
        listen = [f"{role} tcp:{port}:interface=127.0.0.1\n" for role, port in (("smtp", self.port), *ports.items())]
        self.write_control("listen", "".join(listen))
        self.write_control("qmqpclients", "127.0.0.1\n")
        for role in ports:
            self.write_control(f"tcp.{role}", "=.good.test:allow\n:deny\n")
        daemon = self.start()
        for port in ports.values():
            wait_until("all servers", functools.partial(accepts, port))
        with socket.create_connection(("127.0.0.1", ports["pop3"]), PATIENCE) as client:
            self.assertEqual(client.recv(3), b"+OK", daemon.log)
        request = encode(b"Subject: x\n\n") + encode(b"a@b.test") + encode(f"joe@{ME}".encode())
        with socket.create_connection(("127.0.0.1", ports["qmqp"]), PATIENCE) as client:
            client.sendall(encode(request))
            self.assertIn(b":Kok ", client.makefile("rb").read(), daemon.log)
        daemon.log.wait(r"end msg")
        self.assertIn(b"Received: from joe.good.test (127.0.0.1)\n", self.mail_of("joe")[0])
        for role in ports:
            self.write_control(f"tcp.{role}", "=.good.test:deny\n")
        for port in ports.values():
            # It may be sent away before its own system has told it that it was there: connect() fails then.
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                self.assertEqual(client.recv(3), b"")
        daemon.log.wait(r"connection answered 421 rule=tcprules \(=.good.test:deny of control/tcp.(pop3|qmqp)\)", 2)

    def test_lists_are_asked_by_roles_that_may(self) -> None:
        self.ask('1.0.0.127.bl.test A 127.0.0.2\n1.0.0.127.bl.test TXT "listed for a test"\n')
        self.write_control("dnsbllist", "-bl.test\n")
        daemon = self.start()
        self.assertEqual(self.rcpt(f"joe@{ME}"), [553], daemon.log)

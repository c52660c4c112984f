"""Home and its services in one process, as a .tac file builds them; and what is said when they cannot start."""

from __future__ import annotations

import fcntl
import os
import re
import smtplib
import socket
import struct
import sys
import types
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from qtwist.control import ROLES, ControlError
from qtwist.home import SERVED, Home
from qtwist.interfaces import Delivery, ISpawner
from qtwist.mail.envelope import Report
from qtwist.queue.layout import create_queue
from qtwist.roles import StartError

DOCUMENT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "doc", "extending.md")


def example(mark: str) -> str:
    """The Python text behind the comment `mark` in doc/extending.md."""
    with open(DOCUMENT, encoding="utf-8") as file:
        found = re.search(rf"<!-- {mark}: the tests run this -->\n```python\n(.*?)```", file.read(), re.DOTALL)
    assert found is not None, mark
    return found[1]


@implementer(ISpawner)
class NotingSpawner:
    """Takes every message, and notes what it said."""

    limit = 5

    def __init__(self) -> None:
        self.messages: list[tuple[Delivery, bytes]] = []
        self.arrived: Deferred[None] = Deferred()

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        self.messages.append((delivery, os.pread(delivery.fd, 65536, 0)))
        os.close(delivery.fd)
        if not self.arrived.called:
            self.arrived.callback(None)
        done: Deferred[Report] = Deferred()
        done.callback(Report.success())
        return done

    def stop(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


class HomeCase(TestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        for part in ("control", "users", "alias"):
            os.makedirs(os.path.join(self.path, part))
        create_queue(os.path.join(self.path, "queue"))
        self.control("me", "mx.test\n")
        self.control("listen", "smtp tcp:0:interface=127.0.0.1\n")

    def control(self, name: str, text: str) -> None:
        with open(os.path.join(self.path, "control", name), "w", encoding="ascii") as file:
            file.write(text)

    def home(self) -> Home:
        return Home(self.path, maillog=os.path.join(self.path, "log", "send"))

    def log(self) -> str:
        with open(os.path.join(self.path, "log", "send"), encoding="ascii") as file:
            return file.read()

    def run_service(self, service: Any) -> None:
        service.privilegedStartService()
        service.startService()
        self.addCleanup(self.stop_service, service)

    def stop_service(self, service: Any) -> Deferred[Any]:
        return maybeDeferred(service.stopService) if service.running else maybeDeferred(lambda: None)

    def talk(self, port: int, *recipients: str) -> Deferred[Any]:
        def client() -> dict[str, Any]:
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as smtp:
                return smtp.sendmail("joe@client.test", list(recipients), "Subject: x\r\n\r\nhello\r\n")

        return deferToThread(client)


class ServiceTests(HomeCase):
    async def test_application_of_the_documentation(self) -> None:
        """doc/extending.md: the example policy in an application of its own."""
        quiet = types.ModuleType("quiet")
        exec(example("example"), quiet.__dict__)
        self.patch(sys, "modules", {**sys.modules, "quiet": quiet})
        self.control("rcpthosts", "mx.test\nspam.test\n")
        self.patch(os, "environ", dict(os.environ))
        names: dict[str, Any] = {}
        exec(example("application").replace("/srv/mail", self.path), names)
        names["home"].maillog = os.path.join(self.path, "log", "send")
        send, smtpd = IService(names["application"])
        send._local = spawner = NotingSpawner()
        self.run_service(IService(names["application"]))
        refused = await self.talk(smtpd.ports[0].getHost().port, "joe@spam.test", "joe@mx.test")
        self.assertEqual(refused, {"joe@spam.test": (550, b"5.7.1 no thanks")})
        await spawner.arrived
        await maybeDeferred(IService(names["application"]).stopService)
        self.assertEqual([delivery.recipient for delivery, _ in spawner.messages], [b"joe@mx.test"])
        self.assertIn("end msg", self.log())

    async def test_everything_together(self) -> None:
        home = self.home()
        service = home.service()
        spawner = NotingSpawner()
        for one in service:
            if hasattr(one, "_local"):
                one._local = spawner
        self.run_service(service)
        [port] = [port for one in service for port in getattr(one, "ports", [])]
        await self.talk(port.getHost().port, "joe@mx.test")
        await spawner.arrived
        await maybeDeferred(service.stopService)
        self.assertRegex(spawner.messages[0][1], rb"^Received: \(qmail \d+ invoked from network\)")
        self.assertEqual(self.log().splitlines()[-1], "status: exiting")

    async def test_a_policy_of_the_control_file(self) -> None:
        """control/policies names classes by module; a name that leads nowhere is told with file and line."""
        self.control("policies", "# ours\nno.such.Policy\n")
        error = self.assertRaises(ControlError, self.home().smtpd)
        self.assertIn("policies, line 2: found 'no.such.Policy' (ModuleNotFoundError", str(error))


class CheckTests(HomeCase):
    """What `twistd qtwist` says before it starts; one line each, naming the place."""

    def refused(self, kind: type[Exception], *words: str) -> None:
        error = self.assertRaises(kind, self.home().check)
        text = str(error)
        self.assertNotIn("\n", text)
        for word in words:
            self.assertIn(word, text)

    def test_right(self) -> None:
        self.home().check()

    def test_no_home(self) -> None:
        self.path = os.path.join(self.path, "elsewhere")
        self.refused(StartError, "elsewhere/control: no such directory", "qtwist init")

    def test_no_queue(self) -> None:
        os.rename(os.path.join(self.path, "queue"), os.path.join(self.path, "moved"))
        self.refused(StartError, "queue: no such directory")

    def test_damaged_queue(self) -> None:
        os.unlink(os.path.join(self.path, "queue", "lock", "trigger"))
        self.refused(StartError, "lock/trigger")

    def test_wrong_value(self) -> None:
        self.control("databytes", "lots\n")
        self.refused(ControlError, "control/databytes, line 1: found 'lots', expected a number")

    def test_role_that_is_not_served(self) -> None:
        self.control("listen", "smtp tcp:0\nimap tcp:0\n")
        self.refused(ControlError, "listen, line 2: found 'imap tcp:0', expected a role (smtp, ")
        self.assertEqual(set(SERVED), set(ROLES))

    def test_no_name(self) -> None:
        os.unlink(os.path.join(self.path, "control", "me"))
        self.refused(ControlError, "control/me")

    def test_lock_is_taken(self) -> None:
        with open(os.path.join(self.path, "queue", "lock", "sendmutex"), "wb") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            self.refused(StartError, "sendmutex: locked, another qtwist or qmail-send is running")

    def test_endpoint_that_makes_no_sense(self) -> None:
        self.control("listen", "smtp tcp:port=x\n")
        service = self.home().smtpd()
        error = self.assertRaises(ControlError, service.privilegedStartService)
        self.assertIn("listen, line 1: found 'tcp:port=x'", str(error))

    def test_many_clients_at_once(self) -> None:
        """Those beyond the queue of a port would wait a second and more for their next SYN; Twisted has 50."""
        for options, expected in (("", 1024), (":backlog=7", 7)):
            self.control("listen", f"smtp tcp:0:interface=127.0.0.1{options}\n")
            service = self.home().smtpd()
            self.run_service(service)
            # tcp_info of a port that listens: tcpi_sacked is the length of its queue (tcp(7), ss -l).
            sock = socket.fromfd(service.ports[0].fileno(), socket.AF_INET, socket.SOCK_STREAM)
            self.addCleanup(sock.close)
            [length] = struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)
            with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
                self.assertEqual(length, min(expected, int(file.read())))

    def test_port_in_use(self) -> None:
        first = self.home().smtpd()
        self.run_service(first)
        port = first.ports[0].getHost().port
        self.control("listen", f"smtp tcp:{port}:interface=127.0.0.1\n")
        error = self.assertRaises(StartError, self.home().smtpd().privilegedStartService)
        self.assertIn(
            f"listen, line 1: cannot listen on tcp:{port}:interface=127.0.0.1: Address already in use", str(error)
        )

"""The daemon under those who look after it: systemd's protocols, daemontools, qmailctl; its events as JSON.

*Life with qmail* 2.8, spec/related.md §5, doc/running.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from typing import Any

from qtwist.commands.service_files import log_run_script, run_script
from tests.e2e.harness import ME, PATIENCE, Daemon, DaemonCase, accepts, program, wait_until
from tests.e2e.test_roles import RootCase, words

# Opens the port as systemd would, then becomes the daemon.
ACTIVATOR = """
import os, socket, sys
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("127.0.0.1", int(sys.argv[1])))
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="smtp")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ManagerCase(DaemonCase):
    """A socket that stands for the service manager's."""

    abstract = False

    def setUp(self) -> None:
        super().setUp()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.settimeout(PATIENCE)
        path = os.path.join(self.directory, "notify")
        self.manager.bind("\0" + path if self.abstract else path)
        self.address = "@" + path if self.abstract else path
        if not self.abstract:
            # Root's alone, as it may be: whoever starts as root connects before it is somebody else.
            os.chmod(path, 0o600)
            identity = self.identity()
            if "user" in identity:
                os.chown(path, identity["user"], -1)

    def environment(self) -> dict[str, str]:
        more = {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": "400000"} if hasattr(self, "manager") else {}
        return {**super().environment(), **more}

    def next_word(self) -> str:
        """The next thing that the daemon says, that it is alive left aside."""
        while True:
            text = self.manager.recv(4096).decode()
            if text != "WATCHDOG=1":
                return text

    def check_life(self) -> None:
        daemon = self.start()
        self.assertEqual(self.next_word(), "READY=1")
        for _ in range(3):
            self.assertEqual(self.manager.recv(4096), b"WATCHDOG=1")
        daemon.process.send_signal(signal.SIGHUP)
        self.assertRegex(self.next_word(), r"\ARELOADING=1\nMONOTONIC_USEC=\d+\Z")
        self.assertEqual(self.next_word(), "READY=1")
        pids = [daemon.process.pid, *self.descendants(daemon.process.pid)]
        for pid in pids[1:]:
            with open(f"/proc/{pid}/environ", "rb") as file:
                self.assertNotIn(b"NOTIFY", file.read(), words(pid))
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(self.next_word(), "STOPPING=1")

    def descendants(self, pid: int) -> list[int]:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            found = [int(word) for word in file.read().split()]
        return [*found, *(one for child in found for one in self.descendants(child))]


class NotifyTests(ManagerCase):
    def test_one_process(self) -> None:
        self.check_life()


class AbstractNotifyTests(ManagerCase):
    abstract = True

    def test_one_process(self) -> None:
        self.check_life()


class RootNotifyTests(ManagerCase, RootCase):
    def test_roles(self) -> None:
        """It is said by the supervisor, when all roles run; none of them knows of it."""
        self.check_life()


class ActivationTests(DaemonCase):
    """control/listen names a socket that was opened by somebody else."""

    def setUp(self) -> None:
        super().setUp()
        self.write_control("listen", "smtp systemd:domain=INET:name=smtp\n")
        self.wrapper = (self.runtime.python, "-c", ACTIVATOR, str(self.port))

    def test_mail(self) -> None:
        daemon = self.start()
        self.send([f"{self.mailbox()}@{ME}"])
        daemon.log.wait("success")
        self.assertEqual(daemon.stop(), 0)

    def test_no_socket(self) -> None:
        """Started by itself, it says what is missing."""
        self.wrapper = ()
        daemon = Daemon(self)
        self.assertEqual(daemon.exit_code(), 1)
        self.assertIn("control/listen, line 1", str(daemon.log))

    def mailbox(self) -> str:
        return self.user


class RootActivationTests(ActivationTests, RootCase):
    def mailbox(self) -> str:
        return "joe"


class EventTests(DaemonCase):
    """JSON beside qmail's lines: one id for each connection, message and attempt."""

    def setUp(self) -> None:
        super().setUp()
        self.events_path = os.path.join(self.folder(), "events")
        self.options = ("--events", self.events_path)

    def folder(self) -> str:
        folder = os.path.join(self.home, "log")
        os.makedirs(folder, exist_ok=True)
        return folder

    def events(self) -> list[dict[str, Any]]:
        with open(self.events_path, encoding="ascii") as file:
            return [json.loads(line) for line in file]

    def test_a_message(self) -> None:
        daemon = self.start()
        self.send([f"{self.mailbox()}@{ME}"])
        daemon.log.wait("end msg")
        wait_until("the last event", lambda: any(event["text"] == "end of message" for event in self.events()))
        events = self.events()
        [accepted] = [event for event in events if "accepted message" in event["text"]]
        [new] = [event for event in events if event["text"] == "new message"]
        [starting] = [event for event in events if event["text"] == "starting delivery"]
        [ended] = [event for event in events if event["text"] == "delivery"]
        self.assertEqual(accepted["number"], new["number"])
        self.assertEqual(starting["number"], new["number"])
        self.assertEqual(starting["delivery"], ended["delivery"])
        self.assertEqual(ended["outcome"], "success")
        self.assertEqual(new["sender"], "joe@client.test")
        beginnings = [event for event in events if "connection from 127.0.0.1" in event["text"]]
        self.assertIn(accepted["id"], [event["id"] for event in beginnings])
        self.check_origin(accepted, new)
        # Each is told once, and HUP opens a new file.
        self.assertEqual(len(events), len({json.dumps(event) for event in events}))
        os.rename(self.events_path, self.events_path + ".old")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until("a new file", lambda: os.path.exists(self.events_path))

    def check_origin(self, accepted: dict[str, Any], new: dict[str, Any]) -> None:
        self.assertNotIn("role", accepted)

    def mailbox(self) -> str:
        return self.user


class RootEventTests(EventTests, RootCase):
    def folder(self) -> str:
        folder = super().folder()
        account = self.accounts["qmaill"]
        os.chown(folder, account.pw_uid, account.pw_gid)
        return folder

    def check_origin(self, accepted: dict[str, Any], new: dict[str, Any]) -> None:
        self.assertEqual(accepted["role"], "smtpd")
        self.assertEqual(new["role"], "send")
        self.assertIn("qtwist.processes.role send", words(new["pid"]))

    def mailbox(self) -> str:
        return "joe"


class LimitTests(RootCase):
    def test_softlimit(self) -> None:
        """control/softlimit, or a default that leaves the queue manager without a bound."""
        self.write_control("softlimit", "smtpd:300000000\n")
        daemon = self.start()
        roles = self.ready_roles(daemon)
        expected = {"smtpd": "300000000", "rspawn": str(512 * 1024 * 1024), "send": "unlimited"}
        for name, octets in expected.items():
            # A process shows its command line before it has set its bounds.
            wait_until(f"bounds of {name}", lambda: self.bounds(roles[name][0]) == [octets, octets])  # noqa: B023

    def bounds(self, pid: int) -> list[str]:
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            [line] = [line for line in file if line.startswith("Max data size")]
        return line.split()[3:5]


class QmailctlTests(RootCase):
    """qmailctl with a daemon that was started as root and is looked after by nobody."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.end)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "QTWISTHOME": self.home}

    def end(self) -> None:
        with contextlib.suppress(AssertionError):
            self.ctl("stop")

    def ctl(self, verb: str) -> str:
        done = subprocess.run(
            self.runtime.command("qmailctl", verb),
            check=False,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.5) as connection:
                return connection.recv(3) == b"220"
        except OSError:
            return False

    def test_life(self) -> None:
        self.assertIn(f"{self.home}: down\n", self.ctl("stat"))
        self.ctl("start")
        wait_until("a greeting", self.greets)
        first = self.ctl("stat").splitlines()[0]
        self.assertRegex(first, rf"\A{self.home}: up \(pid \d+\) \d+ seconds\Z")
        supervisor = int(first.split("pid ")[1].split(")")[0])
        self.assertIn("qtwist --home", words(supervisor))

        self.ctl("pause")
        wait_until("a pause", lambda: "seconds, paused\n" in self.ctl("stat"))
        self.assertFalse(self.greets())
        self.ctl("cont")
        wait_until("a greeting", self.greets)

        self.instructions("joe", 60101, "|test -e ready || exit 111; cat >arrived\n", "-later")
        self.send([f"joe-later@{ME}"])
        wait_until("the message to become files", lambda: "messages in queue: 1\n" in self.ctl("queue"))
        arrived = os.path.join(self.home, "mail", "joe", "arrived")
        with open(os.path.join(self.home, "mail", "joe", "ready"), "w"):
            pass

        def arrives() -> bool:
            self.ctl("doqueue")
            return os.path.exists(arrived)

        wait_until("another try", arrives)
        self.ctl("reload")

        servers = self.servers(supervisor)
        self.ctl("upgrade")
        wait_until(
            "other servers", lambda: not servers & self.servers(supervisor) and len(self.servers(supervisor)) == 2
        )

        self.ctl("pause")
        self.ctl("restart")
        wait_until("a greeting", self.greets)
        self.assertFalse(os.path.exists(f"/proc/{supervisor}"))
        self.ctl("stop")
        self.assertFalse(accepts(self.port))
        self.assertIn(f"{self.home}: down\n", self.ctl("stat"))

    def servers(self, supervisor: int) -> set[int]:
        found = set()
        for name in os.listdir("/proc"):
            if name.isdecimal() and f"qtwist.processes.role smtpd {self.home} " in words(int(name)):
                found.add(int(name))
        return found


class DaemontoolsTests(RootCase):
    """supervise, svc, svstat and multilog of daemontools."""

    def setUp(self) -> None:
        super().setUp()
        self.svc = program("svc", "daemontools")
        supervise = program("supervise", "daemontools")
        self.service = os.path.join(self.directory, "qtwist")
        self.log = os.path.join(self.directory, "multilog")
        account = self.accounts["qmaill"]
        os.mkdir(self.log)
        os.chown(self.log, account.pw_uid, account.pw_gid)
        twistd = self.runtime.command("twistd")
        os.makedirs(os.path.join(self.service, "log"))
        for name, text in (
            ("run", run_script(twistd, self.home)),
            ("log/run", log_run_script(account.pw_name, os.path.join(self.log, "main"))),
        ):
            path = os.path.join(self.service, name)
            with open(path, "w") as file:
                file.write(text)
            os.chmod(path, 0o755)
        reader, writer = os.pipe()  # between the two, as svscan has it
        self.logger = self.supervise(supervise, os.path.join(self.service, "log"), stdin=reader)
        self.supervisor = self.supervise(supervise, self.service, stdout=writer)
        os.close(reader)
        os.close(writer)
        self.addCleanup(self.end)

    def supervise(self, supervise: str, directory: str, **streams: int) -> subprocess.Popen[bytes]:
        environ = {**self.environment(), "PATH": os.environ["PATH"]}
        return subprocess.Popen([supervise, directory], env=environ, start_new_session=True, **streams)  # type: ignore[call-overload, no-any-return]

    def end(self) -> None:
        for process, directory in ((self.supervisor, self.service), (self.logger, os.path.join(self.service, "log"))):
            subprocess.run([self.svc, "-dx", directory], check=False)
            process.wait(PATIENCE)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "QTWISTHOME": self.home, "QTWISTSERVICE": getattr(self, "service", "")}

    def ctl(self, verb: str) -> str:
        done = subprocess.run(
            self.runtime.command("qmailctl", verb),
            check=False,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def logged(self) -> str:
        try:
            with open(os.path.join(self.log, "main", "current"), encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def test_life(self) -> None:
        wait_until("a listener", lambda: accepts(self.port))
        self.send([f"joe@{ME}"])
        wait_until("a delivery", lambda: "delivery 1: success: did_1+0+0/" in self.logged())
        self.assertRegex(self.logged(), r"(?m)^@[0-9a-f]{24} new msg \d+$")
        self.assertRegex(self.ctl("stat"), rf"(?m)^{self.service}: up \(pid \d+\) \d+ seconds$")
        self.ctl("hup")
        self.ctl("doqueue")
        self.ctl("pause")
        self.assertIn(", paused", self.ctl("stat"))
        self.ctl("cont")
        self.send([f"joe@{ME}"])
        wait_until("a second delivery", lambda: len(self.mail_of("joe")) == 2)
        before = self.ctl("stat").splitlines()[0]
        self.ctl("upgrade")
        self.ctl("restart")

        def restarted() -> bool:
            now = self.ctl("stat").splitlines()[0]
            return "up (pid" in now and now.split("pid ")[1].split(")")[0] != before.split("pid ")[1].split(")")[0]

        wait_until("another process", restarted)
        wait_until("a listener", lambda: accepts(self.port))
        self.ctl("stop")
        wait_until("the end", lambda: ": down" in self.ctl("stat").splitlines()[0])
        self.assertIn("status: exiting", self.logged())
        self.assertFalse(accepts(self.port))

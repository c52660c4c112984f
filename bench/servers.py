"""The mail servers that are measured side by side: prepared, started, stopped."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys

from bench.machine import ACCOUNTS, CHECKOUT, DISK, MAIN, PATH, PATIENCE, PERSON, PLACE, SINK_PORT, greets, run, wait


class Peer:
    """A mail server: started, loaded, stopped. `port` is where it takes mail."""

    name = ""
    port = 0
    log = ""
    end = b""

    def __init__(self, group: str) -> None:
        self.group = group
        self.home = f"{DISK}/{self.name}"

    def enter(self) -> None:
        """In a child: belong to this peer's control group, with as many descriptors as connections may need."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, 20_000))
        with open(f"{self.group}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))

    @classmethod
    def missing(cls) -> str | None:
        """Why this one cannot run here, if so."""
        return None

    def prepare(self) -> None:
        """Once, before the first start."""

    def close(self) -> None:
        """Once, after the last stop."""

    def renew(self) -> None:
        """After a stop: the queue is empty again."""
        self.close()
        shutil.rmtree(self.home)
        self.prepare()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def route(self, port: int) -> None:
        """Before a start: where mail for other hosts goes, a port of this one."""
        raise NotImplementedError

    def finished(self) -> int:
        """How many messages the log says have left the queue since the start."""
        with open(self.log, "rb") as file:
            return file.read().count(self.end)

    def wait_listening(self) -> None:
        wait(f"{self.name} to listen", lambda: greets(self.port))

    def recipient(self) -> str:
        return f"{PERSON}@bench.test"

    def maildir(self) -> str:
        return f"{DISK}/person/Maildir"


class Qtwist(Peer):
    """This checkout, started as root: roles under their accounts."""

    name = "qtwist"
    port = SINK_PORT + 1
    log = f"{PLACE}/qtwist.log"
    end = b"end msg "
    journal = False
    code = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
    python_path = CHECKOUT

    def prepare(self) -> None:
        python = sys.executable
        environ = {"PATH": PATH, "PYTHONPATH": CHECKOUT}
        words = ["init", self.home, "--me", "bench.test", "--port", str(self.port), "--user", PERSON]
        run(python, "-c", MAIN.format("qtwist"), *words, env=environ)
        for folder, folders, files in os.walk(self.home):
            for name in (*folders, *files):
                os.lchown(os.path.join(folder, name), 0, 0)
        os.chown(self.home, 0, 0)
        person = pwd.getpwnam(PERSON)
        os.chown(f"{self.home}/alias", person.pw_uid, person.pw_gid)
        line = f"{PERSON}:{PERSON}:{person.pw_uid}:{person.pw_gid}:{DISK}/person"
        self.control("../users/assign", f"={line}:::\n.\n")
        run(python, "-c", MAIN.format("newu"), env={**environ, "QTWISTHOME": self.home})
        self.control("accounts", "".join(f"{role}:{name}\n" for role, name in ACCOUNTS.items()))
        self.route(SINK_PORT)
        self.control("relayclients", "127.0.0.1\n")
        self.control("journal", "1\n" if self.journal else "0\n")
        self.control("concurrencyincoming", "10000\n")
        self.control("concurrencylocal", "50\n")
        self.control("concurrencyremote", "50\n")

    def route(self, port: int) -> None:
        self.control("smtproutes", f":[127.0.0.1]:{port}\n")

    def control(self, name: str, text: str) -> None:
        with open(f"{self.home}/control/{name}", "w") as file:
            file.write(text)

    def start(self) -> None:
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self.code, "-n", "--pidfile=", "qtwist", "--home", self.home],
                env={"PATH": PATH, "PYTHONPATH": self.python_path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=self.enter,  # noqa: PLW1509  # there are no threads here
                cwd="/",
            )
        self.wait_listening()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)


class Journaled(Qtwist):
    """The same with control/journal."""

    name = "journaled"
    port = SINK_PORT + 3
    log = f"{PLACE}/journaled.log"
    journal = True


class Postfix(Peer):
    """Debian's Postfix with its defaults, on a configuration of its own."""

    name = "postfix"
    port = SINK_PORT + 2
    log = f"{PLACE}/postfix.log"
    end = b": removed\n"

    def prepare(self) -> None:
        for folder in ("etc", "spool", "data"):
            os.makedirs(f"{self.home}/{folder}")
        os.chown(f"{self.home}/data", pwd.getpwnam("postfix").pw_uid, -1)
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": f"{self.home}/spool",
            "data_directory": f"{self.home}/data",
            "command_directory": "/usr/sbin",
            "daemon_directory": "/usr/lib/postfix/sbin",
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "myhostname": "bench.test",
            "mydestination": "bench.test",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "home_mailbox": "Maildir/",
            "mailbox_command": "",
            "alias_maps": "",
            "alias_database": "",
            "mynetworks": "127.0.0.0/8",
            "message_size_limit": "0",
            "mailbox_size_limit": "0",
            "smtp_tls_security_level": "may",
            "maillog_file": self.log,
            "maillog_file_prefixes": "/var",
            "smtpd_client_connection_count_limit": "0",
        }
        with open(f"{self.home}/etc/main.cf", "w") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        self.route(SINK_PORT)
        with open("/usr/share/postfix/master.cf.dist") as file:
            lines = file.read().replace("\nsmtp      inet ", f"\n127.0.0.1:{self.port} inet ")
        with open(f"{self.home}/etc/master.cf", "w") as file:
            file.write(lines + "\npostlog unix-dgram n - n - 1 postlogd\n" * ("postlogd" not in lines))

    def route(self, port: int) -> None:
        with open(f"{self.home}/etc/main.cf", "a") as file:
            file.write(f"relayhost = [127.0.0.1]:{port}\n")  # the last one counts

    def postfix(self, word: str) -> None:
        done = subprocess.run(
            ["postfix", "-c", f"{self.home}/etc", word],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": PATH},
            preexec_fn=self.enter,
        )
        if done.returncode:
            raise SystemExit(f"postfix {word}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log)
        self.postfix("start")
        self.wait_listening()

    def stop(self) -> None:
        self.postfix("stop")


class Notqmail(Peer):
    """A notqmail that somebody has built and installed, under tcpserver; a copy of it lies on the benchmark's disk.

    Its programs know their home by a name that was compiled in: there the copy is mounted, for this process and those
    that it starts (:func:`bench.machine.prepare_machine` has given them mounts of their own).
    """

    name = "notqmail"
    port = SINK_PORT + 7
    log = f"{PLACE}/notqmail.log"
    end = b"end msg "
    #: The home that its programs know.
    installed = "/var/qmail"

    @classmethod
    def missing(cls) -> str | None:
        for program in ("qmail-start", "qmail-smtpd", "qmail-newu"):
            if not os.access(f"{cls.installed}/bin/{program}", os.X_OK):
                return f"{cls.installed}/bin/{program} is not there"
        if any(files for _, _, files in os.walk(f"{cls.installed}/queue/mess")):
            return f"{cls.installed}/queue has mail, which the copy would send"
        if shutil.which("tcpserver", path=PATH) is None:
            return "tcpserver is not there (Debian package ucspi-tcp)"
        return None

    def prepare(self) -> None:
        os.makedirs(f"{self.home}/users")
        os.makedirs(f"{self.home}/control")
        run("cp", "-a", *(f"{self.installed}/{name}" for name in ("bin", "queue", "alias")), self.home)
        run("mount", "--bind", self.home, self.installed)
        person = pwd.getpwnam(PERSON)
        line = f"={PERSON}:{PERSON}:{person.pw_uid}:{person.pw_gid}:{DISK}/person:::\n.\n"
        settings = {
            "control/me": "bench.test",
            "control/locals": "bench.test",
            "control/rcpthosts": "bench.test",
            "control/concurrencylocal": "50",
            "control/concurrencyremote": "50",
            "users/assign": line,
        }
        for name, text in settings.items():
            with open(f"{self.home}/{name}", "w") as file:
                file.write(text.rstrip("\n") + "\n")
        run(f"{self.installed}/bin/qmail-newu")
        self.route(SINK_PORT)

    def close(self) -> None:
        run("umount", self.installed)

    def route(self, port: int) -> None:
        with open(f"{self.home}/control/smtproutes", "w") as file:
            file.write(f":[127.0.0.1]:{port}\n")

    def start(self) -> None:
        server = pwd.getpwnam("qmaild")
        commands = (
            [f"{self.installed}/bin/qmail-start", "./Maildir/"],
            ["tcpserver", "-HRl0", "-c", "10000", "-b", "1024", "-u", str(server.pw_uid), "-g", str(server.pw_gid),
             "127.0.0.1", str(self.port), f"{self.installed}/bin/qmail-smtpd"],
        )  # fmt: skip
        with open(self.log, "wb") as log:
            self._processes = [
                subprocess.Popen(
                    command,
                    env={"PATH": f"{self.installed}/bin:{PATH}", "RELAYCLIENT": ""},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=self.enter,  # noqa: PLW1509  # there are no threads here
                    cwd="/",
                )
                for command in commands
            ]
        self.wait_listening()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(PATIENCE)

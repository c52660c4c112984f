"""The daemon started as root: who runs as whom, who may do what, and what happens when one of them dies.

spec/qmail.md §1.2, §8, §11.2, §26.8; doc/security.md.
"""

from __future__ import annotations

import os
import poplib
import re
import signal
import smtplib
import ssl
import subprocess
from typing import Any
from unittest import SkipTest

from tests.accounts import ROLES, accounts
from tests.certificates import Authority
from tests.e2e.harness import ME, PATIENCE, Daemon, DaemonCase, accepts, free_port, wait_until

#: User ids of people, without accounts: users/assign knows them.
JOE = 60101
ANN = 60102
TOM = 60103


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def words(pid: int) -> str:
    """The command line; empty for a process that has died."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class RootCase(DaemonCase):
    """A home of root's, with the mailboxes of joe and ann."""

    def setUp(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("needs root: the roles run under accounts of their own")
        self.accounts = accounts()
        super().setUp()
        os.chmod(self.directory, 0o755)
        for parent, folders, files in os.walk(self.home):
            for name in (*folders, *files):
                os.lchown(os.path.join(parent, name), 0, 0)
        os.chown(self.home, 0, 0)
        alias = self.accounts["person"]
        os.chown(os.path.join(self.home, "alias"), alias.pw_uid, alias.pw_gid)
        self.write_control("accounts", "".join(f"{role}:{name}\n" for role, name in ROLES.items()))
        self.write_control("smtpdworkers", "2\n")
        lines = [self.make_person(name, uid) for name, uid in (("joe", JOE), ("ann", ANN))]
        lines.append("=superuser:root:0:0:/root:::\n")
        self.write("users/assign", "".join(lines) + ".\n")
        self.run_as_root("newu")

    def identity(self) -> dict[str, Any]:
        return {}

    def make_person(self, name: str, uid: int) -> str:
        """A home directory with a Maildir; the lines for users/assign."""
        folder = os.path.join(self.home, "mail", name)
        for path in ("", "Maildir", "Maildir/new", "Maildir/cur", "Maildir/tmp"):
            os.mkdir(os.path.join(folder, path), 0o700)
            os.chown(os.path.join(folder, path), uid, uid)
        return f"={name}:{name}:{uid}:{uid}:{folder}:::\n+{name}-:{name}:{uid}:{uid}:{folder}:-::\n"

    def run_as_root(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            self.runtime.command(name, *arguments),
            check=False,
            env={**self.environment(), "QTWISTHOME": self.home},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def instructions(self, name: str, uid: int, text: str, extension: str = "") -> None:
        path = os.path.join(self.home, "mail", name, ".qmail" + extension)
        with open(path, "w") as file:
            file.write(text)
        os.chown(path, uid, uid)

    def mail_of(self, name: str) -> list[bytes]:
        new = os.path.join(self.home, "mail", name, "Maildir", "new")
        messages = []
        for entry in sorted(os.listdir(new)):
            with open(os.path.join(new, entry), "rb") as file:
                messages.append(file.read())
        return messages

    def roles(self, daemon: Daemon) -> dict[str, list[int]]:
        """The process ids of the roles by name, ``lspawn`` among them; what delivers is under ``deliveries``."""
        found: dict[str, list[int]] = {"lspawn": [], "deliveries": []}
        for lspawn in children(daemon.process.pid):
            if "lspawn.py" in words(lspawn):
                found["lspawn"].append(lspawn)
                for pid in children(lspawn):
                    line = words(pid)
                    role = re.search(r"qtwist\.processes\.role (\w+)", line)
                    if line:  # else it has just died
                        found.setdefault(role[1] if role else "deliveries", []).append(pid)
        return found

    def ready_roles(self, daemon: Daemon) -> dict[str, list[int]]:
        """:meth:`roles` when all of them run."""
        wait_until(
            "all roles to run",
            lambda: (
                {name: len(pids) for name, pids in self.roles(daemon).items() if name != "deliveries"}
                == {"lspawn": 1, "send": 1, "auth": 1, "rspawn": 1, "smtpd": 2}
            ),
        )
        return self.roles(daemon)

    def try_as(self, role: str, code: str) -> str:
        """What Python code prints when it runs with the rights of a role."""
        account = self.accounts[role]
        done = subprocess.run(
            [self.runtime.python, "-c", f"import os, signal, socket\nhome = {self.home!r}\n{code}"],
            check=False,
            cwd="/",
            env=self.environment(),
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


class DeliveryTests(RootCase):
    def test_as_the_user(self) -> None:
        """§11.2: setgid, the one group, setuid; the mailbox, the program and its file are the user's."""
        self.instructions("ann", ANN, "|id -u >who; id -g >>who; id -G >>who; umask >>who\n", "-program")
        daemon = self.start()
        self.send([f"joe@{ME}", f"ann-program@{ME}"])
        daemon.log.wait("end msg")
        [message] = self.mail_of("joe")
        self.assertRegex(message, rb"Received: \(qmail \d+ invoked from network\)")
        new = os.path.join(self.home, "mail", "joe", "Maildir", "new")
        self.assertEqual(os.stat(os.path.join(new, os.listdir(new)[0])).st_uid, JOE)
        with open(os.path.join(self.home, "mail", "ann", "who")) as file:
            self.assertEqual(file.read(), f"{ANN}\n{ANN}\n{ANN}\n0077\n")

    def test_forward_and_bounce(self) -> None:
        """Forwarded mail comes from the user, a bounce from the queue manager; both by the queue's door (§6.2)."""
        self.instructions("joe", JOE, f"&ann@{ME}\n", "-forward")
        daemon = self.start()
        self.send([f"joe-forward@{ME}"])
        self.send([f"joe-nobody@{ME}"], sender=f"ann@{ME}")
        daemon.log.wait("end msg", 4)
        mails = self.mail_of("ann")
        self.assertEqual(len(mails), 2)
        self.assertEqual(sum(f"invoked by uid {JOE})".encode() in mail for mail in mails), 1)
        self.assertEqual(sum(b"invoked for bounce)" in mail for mail in mails), 1)

    def test_never_as_root(self) -> None:
        """§11.2: an address that is root's is not delivered to; §11.3: that is temporary."""
        daemon = self.start()
        self.send([f"superuser@{ME}"])
        daemon.log.wait("deferral: Nothing_is_delivered_as_root")

    def test_account_of_the_system(self) -> None:
        """§12.3: who is not in users/cdb is looked up by an account without rights."""
        person = self.accounts["person"]
        os.makedirs(person.pw_dir, exist_ok=True)
        os.chown(person.pw_dir, person.pw_uid, person.pw_gid)
        daemon = self.start()
        self.send([f"{person.pw_name}@{ME}"])
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertIn(f"{person.pw_dir}/./Maildir/", line)
        # The look-up runs as qmailp, and what delivered runs as the person.
        users = {int(status(pid)["Uid"].split()[0]) for pid in self.roles(daemon)["deliveries"]}
        self.assertEqual(users, {person.pw_uid, self.accounts["qmailp"].pw_uid})

    def test_remote(self) -> None:
        """The message goes to rspawn as a descriptor."""
        port, folder = self.smtp_sink()
        self.write_control("relayclients", "127.0.0.1\n")
        self.write_control("smtproutes", f"far.test:[127.0.0.1]:{port}\n")
        daemon = self.start()
        self.send(["ann@far.test", "bob@far.test"])
        daemon.log.wait("success: 127.0.0.1_accepted_message", 2)
        [message] = os.listdir(folder)  # one transaction for both
        with open(os.path.join(folder, message)) as file:
            self.assertEqual(file.read().count("@far.test>"), 2)

    def test_many_for_one_user(self) -> None:
        """Deliveries to the same user share processes."""
        daemon = self.start()
        for _ in range(20):
            self.send([f"joe@{ME}"])
            self.assertLess(len(self.roles(daemon)["deliveries"]), 10)
        daemon.log.wait("end msg", 20)
        self.assertEqual(len(self.mail_of("joe")), 20)


class PrivilegeTests(RootCase):
    def test_who_runs(self) -> None:
        """§1.2: every role under its account, without capabilities, and only lspawn as root."""
        daemon = self.start()
        roles = self.ready_roles(daemon)
        expected = {"send": "qmailq", "rspawn": "qmailr", "smtpd": "qmaild"}
        processes = [(daemon.process.pid, "qmaill")]
        processes += [(pid, account) for name, account in expected.items() for pid in roles[name]]
        for pid, account in processes:
            facts = status(pid)
            uid, gid = self.accounts[account].pw_uid, self.accounts[account].pw_gid
            self.assertEqual(facts["Uid"].split(), [str(uid)] * 4, words(pid))
            self.assertEqual(facts["Gid"].split(), [str(gid)] * 4)
            self.assertEqual({int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}, {0})
            self.assertEqual(facts["NoNewPrivs"], "1")
            # A filter against the network for all but rspawn (control/confine), once a role has come up.
            if account != "qmailr":
                wait_until(f"a filter of {account}", lambda pid=pid: status(pid)["Seccomp"] == "2")  # type: ignore[misc]
        [lspawn] = roles["lspawn"]
        self.assertEqual(status(lspawn)["Uid"].split()[0], "0")
        # None takes the processor from another because something has come for it.
        policies = {os.sched_getscheduler(pid) for pid in (lspawn, *(pid for pid, _ in processes))}
        self.assertEqual(policies, {os.SCHED_BATCH})

    def test_lspawn_is_closed(self) -> None:
        """lspawn has no socket of the network, and its environment is empty."""
        daemon = self.start()
        [lspawn] = self.ready_roles(daemon)["lspawn"]
        with open(f"/proc/{lspawn}/environ", "rb") as file:
            self.assertEqual(file.read(), b"")
        inodes = set()
        for name in ("tcp", "tcp6", "udp", "udp6"):
            with open(f"/proc/{lspawn}/net/{name}", encoding="ascii") as file:
                inodes |= {line.split()[9] for line in file.readlines()[1:]}
        links = [os.readlink(f"/proc/{lspawn}/fd/{fd}") for fd in os.listdir(f"/proc/{lspawn}/fd")]
        self.assertEqual([link for link in links if link.removeprefix("socket:[").rstrip("]") in inodes], [])

    def test_what_accounts_may(self) -> None:
        """The rights of each role end where its job ends."""
        daemon = self.start()
        [lspawn] = self.ready_roles(daemon)["lspawn"]
        [send] = self.roles(daemon)["send"]
        denied = "PermissionError: [Errno 13] Permission denied"
        for role in ("qmaild", "qmaill", "qmailp"):
            with self.subTest(role=role):
                self.assertIn(denied, self.try_as(role, "print(os.listdir(home + '/queue'))"))
        for role in ("qmaild", "qmaill", "qmailp", "qmailr", "qmailq"):
            with self.subTest(role=role):
                self.assertIn(denied, self.try_as(role, "print(os.listdir(home + '/mail/joe/Maildir'))"))
                self.assertIn(denied, self.try_as(role, "open(home + '/control/me', 'w')"))
                self.assertIn("Operation not permitted", self.try_as(role, f"os.kill({lspawn}, signal.SIGKILL)"))
        for role in ("qmaild", "qmaill", "qmailp", "qmailr"):
            with self.subTest(role=role):
                self.assertIn(denied, self.try_as(role, "open(home + '/queue/lock/sendmutex', 'r+')"))
                self.assertIn("denied", self.try_as(role, "open(home + '/queue/todo/1', 'w')"))
                self.assertIn("Operation not permitted", self.try_as(role, f"os.kill({send}, signal.SIGKILL)"))
                desk = "s = socket.socket(socket.AF_UNIX); s.connect(home + '/run/control')"
                self.assertIn(denied, self.try_as(role, desk))

    def test_missing_account(self) -> None:
        self.write_control("accounts", "qmaild:no-such-account\n")
        daemon = Daemon(self)
        self.assertEqual(daemon.exit_code(), 1)
        self.assertIn("there is no account no-such-account for the servers", str(daemon.log))

    def test_home_of_somebody(self) -> None:
        """users/cdb decides who is delivered as whom: nobody but root may write it, or a folder above."""
        for name in ("users", "control", "users/cdb", "."):
            with self.subTest(name=name):
                path = os.path.join(self.home, name)
                os.chown(path, JOE, -1)
                daemon = Daemon(self)
                self.assertEqual(daemon.exit_code(), 1)
                self.assertIn(f"belongs to user id {JOE}; expected it to be root's alone", str(daemon.log))
                os.chown(path, 0, -1)


class DeathTests(RootCase):
    def send_some(self, count: int) -> int:
        """How many of `count` messages to joe were accepted, whatever dies meanwhile."""
        accepted = 0
        for _ in range(count):
            try:
                self.send([f"joe@{ME}"])
            except (smtplib.SMTPException, OSError):
                continue
            accepted += 1
        return accepted

    def test_roles_come_back(self) -> None:
        """Each role is killed at work; what was accepted is delivered, at least once (§26.5), and it goes on."""
        daemon = self.start()
        accepted = 0
        for name in ("smtpd", "send", "rspawn", "smtpd", "send"):
            victim = self.ready_roles(daemon)[name][0]
            accepted += self.send_some(5)
            os.kill(victim, signal.SIGKILL)
            accepted += self.send_some(5)
            daemon.log.wait(rf"{name} ended \(signal 9\)")
        self.ready_roles(daemon)
        wait_until("mail to be taken again", lambda: self.send_some(1) == 1)
        accepted += 1
        self.assertGreater(accepted, 5)
        daemon.process.send_signal(signal.SIGALRM)
        wait_until("all mail", lambda: len(self.mail_of("joe")) >= accepted)
        self.wait_empty_queue()

    def test_lspawn_is_the_end(self) -> None:
        """Without lspawn nothing can be started again: the daemon ends, so that whoever watches it starts it anew."""
        daemon = self.start()
        roles = self.ready_roles(daemon)
        os.kill(roles["lspawn"][0], signal.SIGKILL)
        self.assertEqual(daemon.exit_code(), 1)
        pids = [pid for name in ("send", "rspawn", "smtpd") for pid in roles[name]]
        wait_until("all roles to end", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))

    def test_supervisor_is_killed(self) -> None:
        """Nothing stays behind that would hold the ports or the queue."""
        daemon = self.start()
        roles = self.ready_roles(daemon)
        daemon.process.kill()
        pids = [pid for name in ("lspawn", "send", "rspawn", "smtpd") for pid in roles[name]]
        wait_until("all roles to end", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
        self.assertFalse(accepts(self.port))

    def test_delivery_is_killed(self) -> None:
        """A delivery that is killed is tried again."""
        self.instructions("ann", ANN, "|echo $PPID >pid; sleep 60\n", "-wait")
        daemon = self.start()
        self.send([f"ann-wait@{ME}"])
        path = os.path.join(self.home, "mail", "ann", "pid")
        wait_until("the program", lambda: os.path.exists(path) and os.path.getsize(path) > 0)
        with open(path) as file:
            os.kill(int(file.read()), signal.SIGKILL)
        daemon.log.wait("deferral: The_delivery_process_crashed")


class SignalTests(RootCase):
    def test_term(self) -> None:
        daemon = self.start()
        roles = self.ready_roles(daemon)
        self.send([f"joe@{ME}"])
        self.assertEqual(daemon.stop(), 0, daemon.log)
        self.assertEqual(daemon.log.find("status: exiting"), ["status: exiting"])
        self.assertFalse([pid for pids in roles.values() for pid in pids if os.path.exists(f"/proc/{pid}")])

    def test_hup(self) -> None:
        daemon = self.start()
        self.write_control("locals", "new.test\n")
        self.write_control("rcpthosts", "new.test\n")
        daemon.process.send_signal(signal.SIGHUP)

        def arrives() -> bool:
            self.send(["joe@new.test"])
            return bool(self.mail_of("joe"))

        wait_until("the new domain to be local", arrives)

    def test_new_code(self) -> None:
        """USR1: the servers are replaced while the ports stay open; no client is refused."""
        daemon = self.start()
        before = set(self.ready_roles(daemon)["smtpd"])
        client = smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE)
        self.addCleanup(client.close)
        client.mail("ann@client.test")
        client.rcpt(f"joe@{ME}")
        client.putcmd("data")
        self.assertEqual(client.getreply()[0], 354)
        daemon.process.send_signal(signal.SIGUSR1)

        def replaced() -> bool:
            # A server that leaves greets with 421; one that cannot be reached would be another error.
            try:
                smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE).close()
            except smtplib.SMTPConnectError as error:
                self.assertEqual(error.smtp_code, 421)
            return len(set(self.roles(daemon).get("smtpd", [])) - before) >= 1

        wait_until("a new server", replaced)
        client.send(b"Subject: x\r\n\r\nhello\r\n.\r\n")
        self.assertEqual(client.getreply()[0], 250)
        wait_until("new servers", lambda: len(set(self.ready_roles(daemon)["smtpd"]) - before) == 2)


class MailboxTests(RootCase):
    """POP3 in a daemon that was started as root: mailboxes are read by processes of their owners."""

    secret = "correct horse"

    def setUp(self) -> None:
        super().setUp()
        self.pop3 = free_port()
        self.write_control(
            "listen", f"smtp tcp:{self.port}:interface=127.0.0.1\npop3 tcp:{self.pop3}:interface=127.0.0.1\n"
        )
        for name, uid in (("tom", TOM), ("eve", TOM + 1)):
            self.run_as_root("user", "add", name, "--uid", f"{uid}:{uid}", secret=self.secret)

    def run_as_root(self, name: str, *arguments: str, secret: str = "") -> None:
        done = subprocess.run(
            self.runtime.command(name, *arguments),
            check=False,
            env={**self.environment(), "QTWISTHOME": self.home},
            input=secret + "\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def log_in(self, name: str, secret: str = "") -> poplib.POP3:
        client = poplib.POP3("127.0.0.1", self.pop3, timeout=PATIENCE)
        self.addCleanup(client.close)
        client.user(name)
        client.pass_(secret or self.secret)
        return client

    def start(self) -> Daemon:
        daemon = super().start()
        wait_until("POP3 with its logins", lambda: bool(self.roles(daemon).get("auth")) and accepts(self.pop3))
        daemon.log.wait("POP3Factory starting")
        return daemon

    def test_delivered_is_read(self) -> None:
        daemon = self.start()
        texts = [f"Subject: {number}\n\n" + "line\n" * number * 1000 for number in range(1, 4)]
        for text in texts:
            self.send([f"tom@{ME}"], text)
        daemon.log.wait("end msg", 3)
        wait_until("messages that are older than this second", lambda: self.log_in("tom").stat()[0] == 3)
        client = self.log_in("tom")
        sizes = [int(line.split()[1]) for line in client.list()[1]]
        for number, text in enumerate(texts, 1):
            _, lines, octets = client.retr(number)
            self.assertEqual(octets, sizes[number - 1])
            self.assertTrue(b"\n".join(lines).decode().endswith(text[text.index("\n\n") :].rstrip("\n")))
        client.dele(2)
        client.quit()
        names = os.listdir(os.path.join(self.home, "mail", "tom", "Maildir", "cur"))
        self.assertEqual(len(names), 2)
        self.assertEqual(len(set(client_uids(self.log_in("tom")))), 2)

    def test_whose_processes(self) -> None:
        """The process that clients talk to is qmaild's, and has no mailbox; the one that reads it is tom's."""
        daemon = self.start()
        before = set(self.roles(daemon)["deliveries"])
        client = self.log_in("tom")
        client.stat()
        [front] = self.roles(daemon)["pop3d"]
        self.assertEqual(status(front)["Uid"].split()[0], str(self.accounts["qmaild"].pw_uid))
        [auth] = self.roles(daemon)["auth"]
        self.assertEqual(status(auth)["Uid"].split()[0], str(self.accounts["qmailp"].pw_uid))
        [reader] = set(self.roles(daemon)["deliveries"]) - before
        self.assertEqual(status(reader)["Uid"].split(), [str(TOM)] * 4)
        self.assertIn("Permission", self.try_as("qmaild", "open(home + '/users/credentials')"))
        client.quit()
        wait_until("the reader to end", lambda: reader not in self.roles(daemon)["deliveries"])

    def test_refused(self) -> None:
        """A wrong password, a name that is nobody's, and an account whose mail may not be read."""
        self.start()
        for name, secret in (("tom", "wrong"), ("nobody-of-that-name", self.secret)):
            with self.assertRaises(poplib.error_proto) as caught:
                self.log_in(name, secret)
            self.assertIn(b"[AUTH]", caught.exception.args[0])
        self.assertEqual(self.log_in("eve").stat(), (0, 0))

    def test_smtp_login(self) -> None:
        """AUTH in a server that has no right to see the store (RFC 4954)."""
        daemon = self.start()
        far = "somebody@far.test"
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.login("tom", self.secret)
            self.assertEqual(client.mail(f"tom@{ME}")[0], 250)
            self.assertEqual(client.rcpt(far)[0], 250)
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            self.assertRaises(smtplib.SMTPAuthenticationError, client.login, "tom", "guess")
            self.assertEqual(client.mail(f"tom@{ME}")[0], 250)
            self.assertEqual(client.rcpt(far)[0], 553)
        daemon.log.wait("login of tom from 127.0.0.1 by")

    def test_submission(self) -> None:
        """One process for both ports; whose an address is, it finds out without any rights (RFC 6409)."""
        port = free_port()
        with open(os.path.join(self.home, "control", "listen"), "a") as file:
            file.write(f"submission tcp:{port}:interface=127.0.0.1\n")
        daemon = self.start()
        wait_until("submission", lambda: accepts(port))
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
            client.login("tom", self.secret)
            self.assertEqual([client.mail(f"{name}@{ME}")[0] for name in ("eve", "tom-x")], [553, 250])
            client.rset()
            client.sendmail(f"tom@{ME}", [f"tom@{ME}"], "Subject: x\n\nhello\n")
        daemon.log.wait("end msg")
        [message] = self.mail_of("tom")
        self.assertIn(f"\nFrom: <tom@{ME}>\n".encode(), message)
        [process] = self.roles(daemon)["submission"]
        self.assertEqual(status(process)["Uid"].split()[0], str(self.accounts["qmaild"].pw_uid))

    def test_auth_comes_back(self) -> None:
        """Without the role that checks passwords nobody gets in, and nobody is thrown out."""
        daemon = self.start()
        client = self.log_in("tom")
        [auth] = self.roles(daemon)["auth"]
        os.kill(auth, signal.SIGKILL)
        self.assertEqual(client.stat(), (0, 0))

        def logs_in() -> bool:
            try:
                self.log_in("tom")
            except poplib.error_proto as error:
                self.assertIn(b"[SYS/TEMP]", error.args[0])
                return False
            return True

        wait_until("logins again", logs_in)


def client_uids(client: poplib.POP3) -> list[bytes]:
    return [line.split()[1] for line in client.uidl()[1]]


class TLSTests(RootCase):
    """TLS is spoken by qmaild's processes, who alone may read the key."""

    def test_ports_and_a_certificate(self) -> None:
        ports = {role: free_port() for role in ("smtps", "pop3", "pop3s")}
        listen = [f"{role} tcp:{port}:interface=127.0.0.1\n" for role, port in (("smtp", self.port), *ports.items())]
        self.write_control("listen", "".join(listen))
        authority = Authority()
        self.write_control("servercert.pem", authority.certify(ME).decode())
        certificate = os.path.join(self.home, "control", "servercert.pem")
        os.chown(certificate, 0, self.accounts["qmaild"].pw_gid)
        os.chmod(certificate, 0o640)
        daemon = self.start()
        context = ssl.create_default_context(cadata=authority.pem.decode())
        context.check_hostname = False
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.starttls(context=context)
            client.sendmail("a@b.test", [f"joe@{ME}"], "Subject: x\n\n")
        wait_until("smtps", lambda: accepts(ports["smtps"]))
        with smtplib.SMTP_SSL("127.0.0.1", ports["smtps"], timeout=PATIENCE, context=context) as client:
            client.sendmail("a@b.test", [f"joe@{ME}"], "Subject: x\n\n")
        daemon.log.wait(r"end msg", 2)
        self.assertIn(b" with ESMTPS ", self.mail_of("joe")[1])
        wait_until("pop3s", lambda: accepts(ports["pop3s"]))
        poplib.POP3_SSL("127.0.0.1", ports["pop3s"], timeout=PATIENCE, context=context).quit()
        pop3 = poplib.POP3("127.0.0.1", ports["pop3"], timeout=PATIENCE)
        pop3.stls(context=context)
        pop3.quit()
        self.assertEqual(len(self.roles(daemon)["pop3d"]), 1)
        self.assertEqual(daemon.stop(), 0)

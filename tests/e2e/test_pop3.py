"""Mail is read by POP3: poplib, curl, fetchmail, mpop, getmail against the real daemon (RFC 1939; spec §18)."""

from __future__ import annotations

import os
import poplib
import subprocess
import time
from collections.abc import Iterable

from tests.e2e.harness import ME, PATIENCE, DaemonCase, free_port, program, wait_until

SECRET = "open sesame"
OLD = 1_600_000_000

# Lines of a megabyte, NULs, dots, a bare CR, and no end of the last line.
ODD = (
    b"Subject: long\n\n" + b"x" * 1_000_000 + b"\ny\n",
    b"Subject: odd\n\n.\n..\n.a\n\0NUL\0\na\rb\xe4\n\n",
    b"Subject: no end\n\nhalf a line",
    b"",
)


class POP3Case(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        self.pop3_port = free_port()
        with open(os.path.join(self.home, "control", "listen")) as file:
            listen = file.read()
        self.write_control("listen", f"{listen}pop3 tcp:{self.pop3_port}:interface=127.0.0.1\n")
        credentials = os.path.join("users", "credentials")
        self.write(credentials, f"{self.user}:{{PLAIN}}{SECRET}\n")
        os.chmod(os.path.join(self.home, credentials), 0o600)
        self.mailbox = os.path.join(self.home, "mail", self.user, "Maildir")

    def put(self, *messages: bytes, folder: str = "new") -> None:
        """Messages in the Maildir, as if they had come long ago, in this order."""
        for number, message in enumerate(messages):
            path = os.path.join(self.mailbox, folder, f"{OLD + number}.M1P1Q{number}.{ME}")
            with open(path, "wb") as file:
                file.write(message)
            os.utime(path, (OLD + number, OLD + number))
            self.own(path)

    def own(self, path: str) -> None:
        if self.runtime.account.switch:
            os.chown(path, self.runtime.account.uid, self.runtime.account.gid)

    def files(self) -> list[str]:
        return sorted(
            f"{folder}/{name}" for folder in ("new", "cur") for name in os.listdir(os.path.join(self.mailbox, folder))
        )

    def client(self) -> poplib.POP3:
        client = poplib.POP3("127.0.0.1", self.pop3_port, timeout=PATIENCE)
        self.addCleanup(client.close)
        return client

    def logged_in(self) -> poplib.POP3:
        client = self.client()
        client.user(self.user)
        client.pass_(SECRET)
        return client

    def as_account(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a client as the daemon's account, with a home directory of its own: some refuse to be root."""
        home = os.path.join(self.directory, "client")
        if not os.path.isdir(home):
            os.mkdir(home, 0o700)
            self.own(home)
        return subprocess.run(
            command,
            check=False,
            cwd=home,
            env={**os.environ, "HOME": home},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            **self.identity(),
        )

    def settings(self, name: str, lines: Iterable[str]) -> str:
        """A file of settings with a password in it, for a client."""
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        os.chmod(path, 0o600)
        self.own(path)
        return path


def stored(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


class Poplib(POP3Case):
    def test_what_is_delivered_is_read(self) -> None:
        """From the SMTP port to the POP3 port; a file is shown from the second after its own on (§14.3)."""
        daemon = self.start()
        self.send([self.address], "Subject: hello\n\n.dot\nlast\n")
        daemon.log.wait(r"end msg \d+$")
        second = int(time.time())
        wait_until("the next second", lambda: int(time.time()) > second)
        [message] = self.maildir()
        client = self.logged_in()
        self.assertEqual(client.stat(), (1, len(message) + message.count(b"\n")))
        self.assertEqual(stored(client.retr(1)[1]), message)
        client.dele(1)
        self.assertEqual(len(self.files()), 1)
        client.quit()
        self.assertEqual(self.files(), [])
        daemon.log.wait(r"end \(quit\) of '.*': \d+ octets, 1 retrieved, 1 deleted")
        self.assertEqual(daemon.stop(), 0)
        self.assertNotIn(SECRET, "\n".join(daemon.log.lines))

    def test_odd_messages(self) -> None:
        self.patch(poplib, "_MAXLINE", 2_000_000)
        self.put(*ODD)
        self.start()
        client = self.logged_in()
        for number, message in enumerate(ODD, 1):
            whole = message if message.endswith(b"\n") or not message else message + b"\n"
            _, lines, _ = client.retr(number)
            self.assertEqual(stored(lines), whole)
            size = len(whole) + whole.count(b"\n")
            self.assertEqual(client.list(number), b"+OK %d %d" % (number, size))
        self.assertEqual(client.top(2, 1)[1], [b"Subject: odd", b"", b"."])
        client.quit()
        self.assertEqual(self.files(), [f"cur/{OLD + number}.M1P1Q{number}.{ME}:2,S" for number in range(len(ODD))])

    def test_logins(self) -> None:
        """Wrong password, APOP, SASL; the capabilities that clients look for (RFC 2449)."""
        self.start()
        client = self.client()
        client.user(self.user)
        error = self.assertRaises(poplib.error_proto, client.pass_, "wrong")
        self.assertTrue(error.args[0].startswith(b"-ERR [AUTH]"), error)
        capabilities = client.capa()
        self.assertLessEqual({"TOP", "UIDL", "USER", "PIPELINING", "RESP-CODES", "SASL", "UTF8"}, set(capabilities))
        client.apop(self.user, SECRET)
        self.assertEqual(client.stat(), (0, 0))
        client.quit()

    def test_two_sessions(self) -> None:
        """Nothing is lost: what one has deleted is gone for the other, what one has read the other can read."""
        self.put(b"a\n", b"b\n", b"c\n")
        self.start()
        first, second = self.logged_in(), self.logged_in()
        first.dele(1)
        first.retr(2)
        first.quit()
        self.assertRaises(poplib.error_proto, second.retr, 1)
        self.assertEqual(second.retr(2)[1], [b"b"])
        second.dele(1)
        second.dele(2)
        second.quit()
        self.assertEqual(self.files(), [f"cur/{OLD + 2}.M1P1Q2.{ME}:2,"])

    def test_a_client_that_vanishes(self) -> None:
        self.put(b"x" * 30_000_000)
        daemon = self.start()
        client = self.logged_in()
        client.dele(1)
        client.rset()
        client.sock.sendall(b"RETR 1\r\n")
        self.assertEqual(client.sock.recv(3), b"+OK")
        client.close()
        daemon.log.wait(r"end \(lost\) of ")
        self.assertEqual(len(self.files()), 1)
        again = self.logged_in()
        self.assertEqual(again.stat()[0], 1)
        self.assertEqual(daemon.stop(), 0)


class Programs(POP3Case):
    """Programs that nobody here wrote."""

    def test_curl(self) -> None:
        curl = program("curl", "curl")
        self.put(*ODD)
        self.start()
        url = f"pop3://127.0.0.1:{self.pop3_port}/"
        for options in ([], ["--login-options", "AUTH=PLAIN"], ["--login-options", "AUTH=+APOP"]):
            done = subprocess.run(
                [curl, "--silent", "--show-error", "--user", f"{self.user}:{SECRET}", *options, url + "2"],
                check=False,
                capture_output=True,
                timeout=PATIENCE,
            )
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertEqual(done.stdout, ODD[1].replace(b"\n", b"\r\n"))
        done = subprocess.run(
            [curl, "--silent", "--user", f"{self.user}:wrong", url], check=False, capture_output=True, timeout=PATIENCE
        )
        self.assertEqual(done.returncode, 67)  # login denied

    def test_fetchmail(self) -> None:
        fetchmail = program("fetchmail", "fetchmail")
        self.put(*ODD[:3])
        self.start()
        path = os.path.join(self.directory, "client", "got")
        settings = self.settings(
            "fetchmailrc",
            [
                f'poll localhost with proto POP3 port {self.pop3_port} uidl user "{self.user}" password "{SECRET}"',
                f'mda "cat >>{path}" sslproto "" fetchall',
            ],
        )
        command = (fetchmail, "--fetchmailrc", settings, "--nosyslog", "--nodetach", "--silent", "--pidfile")
        done = self.as_account(*command, os.path.join(self.directory, "client", "pid"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        with open(path, "rb") as file:
            text = file.read()
        self.assertEqual(text.count(b"Subject: "), 3)
        # fetchmail breaks the long line, but keeps all of it.
        self.assertGreaterEqual(text.count(b"x"), 1_000_000)
        self.assertTrue(b"\nhalf a line\n" in text, text[-1000:])
        self.assertEqual(self.files(), [])

    def test_mpop(self) -> None:
        mpop = program("mpop", "mpop")
        messages = [b"From: joe@client.test\n" + message for message in ODD[:3]]
        self.put(*messages)
        self.start()
        for auth in ("user", "plain", "apop"):
            settings = self.settings(
                "mpoprc",
                [
                    "account default",
                    "host 127.0.0.1",
                    f"port {self.pop3_port}",
                    f"user {self.user}",
                    f"password {SECRET}",
                    f"auth {auth}",
                    "tls off",
                    "keep on",
                    "received_header off",
                    f"uidls_file ~/{auth}.uids",
                    f"delivery mda cat >> ~/{auth}.got",
                ],
            )
            done = self.as_account(mpop, "-C", settings)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            with open(os.path.join(self.directory, "client", f"{auth}.got"), "rb") as file:
                self.assertEqual(file.read(), b"".join(messages) + b"\n")
        self.assertEqual(len(self.files()), 3)

    def test_getmail(self) -> None:
        getmail = program("getmail", "getmail6")
        messages = [b"From: joe@client.test\nSubject: %d\n\n%d\n.\n" % (number, number) for number in range(3)]
        self.put(*messages)
        self.start()
        target = os.path.join(self.directory, "client", "Maildir")
        for folder in ("", "new", "cur", "tmp"):
            os.makedirs(os.path.join(target, folder))
            self.own(os.path.join(target, folder))
        self.own(os.path.dirname(target))
        settings = self.settings(
            "getmailrc",
            [
                "[retriever]",
                "type = SimplePOP3Retriever",
                "server = 127.0.0.1",
                f"port = {self.pop3_port}",
                f"username = {self.user}",
                f"password = {SECRET}",
                "[destination]",
                "type = Maildir",
                f"path = {target}/",
                "[options]",
                "delete = true",
            ],
        )
        done = self.as_account(getmail, "--rcfile", settings, "--getmaildir", os.path.dirname(target))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        got = []
        for name in os.listdir(os.path.join(target, "new")):
            with open(os.path.join(target, "new", name), "rb") as file:
                got.append(file.read())
        self.assertEqual(len(got), 3)
        for message in messages:
            body = message.partition(b"\n\n")[2]
            self.assertEqual(len([text for text in got if text.endswith(b"\n\n" + body)]), 1)
        self.assertEqual(self.files(), [])

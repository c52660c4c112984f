"""A Postfix of the test's own: an SMTP server on loopback that offers STARTTLS and throws its mail away."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterable
from unittest import SkipTest

from tests.e2e.harness import PATIENCE, DaemonCase, accepts, free_port, program, wait_until

MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = {name}
mydestination =
local_transport = error:nobody
relay_domains =
virtual_mailbox_domains = example.org
virtual_mailbox_maps = static:all
virtual_transport = discard
smtpd_tls_security_level = may
smtpd_tls_cert_file = {directory}/cert.pem
smtpd_tls_key_file = {directory}/cert.pem
smtpd_tls_loglevel = 1
smtpd_relay_restrictions = reject_unauth_destination
"""

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
proxymap unix - - n - - proxymap
relay unix - - n - - smtp
postlog unix-dgram n - n - 1 postlogd
"""


def merged(lines: Iterable[str], settings: Iterable[str]) -> list[str]:
    """`lines` of a main.cf, and `settings` that go before them, each parameter once.

    Each process warns of one that is there twice, as it starts. So does postlogd, to itself: if others have filled its
    socket by then (ten lines, net.unix.max_dgram_qlen), it waits for itself to read, and all of Postfix for it.
    """
    return list({line.partition("=")[0].strip(): line for line in (*lines, *settings)}.values())


class Postfix:
    """Runs until the test is over; `port` is where it listens, as `name`, with the certificate `pem`. `settings` are
    more lines of main.cf, `services` of master.cf."""

    def __init__(self, case: DaemonCase, name: str, pem: bytes, *settings: str, services: Iterable[str] = ()) -> None:
        self._command = program("postfix", "postfix")
        if os.geteuid() != 0:
            raise SkipTest("needs root: Postfix changes its user ids")
        self.port = free_port()
        self._directory = os.path.join(case.directory, "postfix")
        owner = pwd.getpwnam("postfix")
        for path in ("", "queue", "data"):
            os.makedirs(os.path.join(self._directory, path), exist_ok=True)
        os.chmod(case.directory, 0o755)
        os.chown(os.path.join(self._directory, "data"), owner.pw_uid, owner.pw_gid)
        places = {"directory": self._directory, "name": name, "port": self.port}
        lines = merged(MAIN.format(**places).splitlines(), settings)
        for file, text in (("main.cf", lines), ("master.cf", [MASTER.format(**places), *services])):
            with open(os.path.join(self._directory, file), "w") as config:
                config.writelines(f"{line}\n" for line in text)
        with open(os.path.join(self._directory, "cert.pem"), "wb") as certificate:
            certificate.write(pem)
        os.chmod(os.path.join(self._directory, "cert.pem"), 0o600)
        self._run("start")
        case.addCleanup(self._stop)
        wait_until("Postfix to listen", lambda: accepts(self.port))

    def _run(self, verb: str) -> None:
        done = subprocess.run(
            [self._command, "-c", self._directory, verb],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise AssertionError(f"postfix {verb}: {done.stdout}{done.stderr}{self.log()}")

    def _stop(self) -> None:
        """Or kill it, where it does not: a process that logs waits for postlogd, also if that one hangs."""
        with open(os.path.join(self._directory, "queue", "pid", "master.pid")) as file:
            group = int(file.read())
        try:
            self._run("stop")
        except subprocess.TimeoutExpired:
            os.killpg(group, signal.SIGKILL)
            raise
        if "overriding earlier entry" in self.log():
            raise AssertionError(f"a parameter is there twice: {self.log()}")

    def log(self) -> str:
        """What it has logged so far."""
        try:
            with open(os.path.join(self._directory, "log")) as file:
                return file.read()
        except FileNotFoundError:
            return ""

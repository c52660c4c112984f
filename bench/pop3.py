"""POP3 beside Debian's Dovecot: a large mailbox listed and fetched, and logins (issue 7 (h)).

`python -m bench.pop3`, as root. Both serve copies of one Maildir on the file system that `bench/machine.py` makes; the
password is a hash of SHA-512 in both (crypt, as in /etc/shadow). qtwist remembers a password that was right for some
minutes, as Dovecot's auth cache would, which is off by default. The client is a socket that pipelines RETR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.machine import (
    CHECKOUT,
    DISK,
    MAIN,
    PATH,
    PERSON,
    PLACE,
    SINK_PORT,
    control_group,
    disk,
    empty,
    memory,
    prepare_machine,
    run,
    wait,
)
from bench.servers import Peer, Qtwist

PASSWORD = "correct horse battery"
WINDOW = 50  # RETRs that are under way
LOGINS = 200


class Client:
    """One connection that has logged in."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb", 1 << 18)
        self.answer()
        self.ask(f"USER {PERSON}")
        self.ask(f"PASS {PASSWORD}")

    def answer(self) -> bytes:
        line = self._file.readline()
        if not line.startswith(b"+OK"):
            raise SystemExit(f"bench: POP3 says {line!r}")
        return line

    def ask(self, command: str) -> bytes:
        self._socket.sendall(command.encode() + b"\r\n")
        return self.answer()

    def lines(self) -> int:
        """Read to the final dot; how many lines there were."""
        count = 0
        while (line := self._file.readline()) != b".\r\n":
            if not line:
                raise SystemExit("bench: POP3 ended too soon")
            count += 1
        return count

    def listing(self, command: str) -> int:
        self.ask(command)
        return self.lines()

    def fetch_all(self, messages: int) -> None:
        for first in range(1, messages + 1, WINDOW):
            numbers = range(first, min(first + WINDOW, messages + 1))
            self._socket.sendall(b"".join(b"RETR %d\r\n" % number for number in numbers))
            for _ in numbers:
                self.answer()
                self.lines()

    def quit(self) -> None:
        self.ask("QUIT")
        self._socket.close()
        self._file.close()


class QtwistPOP3(Qtwist):
    """qtwist with a POP3 port."""

    pop3 = SINK_PORT + 5

    def prepare(self) -> None:
        super().prepare()
        self.control("listen", f"pop3 tcp:{self.pop3}:interface=127.0.0.1\n")
        environ = {"PATH": PATH, "PYTHONPATH": CHECKOUT, "QTWISTHOME": self.home}
        words = [
            sys.executable,
            "-c",
            MAIN.format("qtwist"),
            "user",
            "add",
            PERSON,
            "--uid",
            PERSON,
            "--directory",
            f"{DISK}/person",
            "--hash",
            password_hash(),
        ]
        run(*words, env=environ)

    def wait_listening(self) -> None:
        wait("qtwist's POP3", lambda: listens(self.pop3))


class Dovecot(Peer):
    """Debian's Dovecot with its defaults, on a configuration of its own."""

    name = "dovecot"
    pop3 = SINK_PORT + 6

    def prepare(self) -> None:
        person = pwd.getpwnam(PERSON)
        os.makedirs(self.home)
        with open(f"{self.home}/passwd", "w") as file:
            file.write(f"{PERSON}:{{CRYPT}}{password_hash()}\n")
        os.chmod(f"{self.home}/passwd", 0o644)
        with open(f"{self.home}/dovecot.conf", "w") as file:
            file.write(f"""
protocols = pop3
listen = 127.0.0.1
base_dir = {self.home}/run
state_dir = {self.home}/state
log_path = {PLACE}/dovecot.log
ssl = no
disable_plaintext_auth = no
first_valid_uid = {person.pw_uid}
last_valid_uid = {person.pw_uid}
mail_location = maildir:{DISK}/person/Maildir
passdb {{
  driver = passwd-file
  args = {self.home}/passwd
}}
userdb {{
  driver = static
  args = uid={person.pw_uid} gid={person.pw_gid} home={DISK}/person
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {self.pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
""")

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["/usr/sbin/dovecot", "-F", "-c", f"{self.home}/dovecot.conf"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=self.enter,  # noqa: PLW1509  # there are no threads here
            cwd="/",
        )
        wait("Dovecot", lambda: listens(self.pop3))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def password_hash() -> str:
    return run("openssl", "passwd", "-6", "-salt", "qtwistbench", PASSWORD).stdout.strip()


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return connection.recv(3) == b"+OK"
    except OSError:
        return False


def fill(maildir: str, messages: int, octets: int) -> None:
    """New mail, and no index of anybody's."""
    empty(maildir)
    person = pwd.getpwnam(PERSON)
    text = b"Subject: x\n\n" + octets // 64 * (63 * b"x" + b"\n")
    for number in range(messages):
        path = f"{maildir}/new/1700000000.M{number}P1.bench"
        with open(path, "wb") as file:
            file.write(text)
        os.chown(path, person.pw_uid, person.pw_gid)


@contextlib.contextmanager
def timed(figures: dict[str, float], name: str, count: int = 0) -> Iterator[None]:
    """Milliseconds, or with a `count` how many a second."""
    began = time.perf_counter()
    yield
    took = time.perf_counter() - began
    figures[name] = count / took if count else took * 1000


def session(port: int, messages: int) -> dict[str, float]:
    """What one mailbox takes: first and second look, all messages, and logins."""
    figures: dict[str, float] = {}
    for name in ("first list ms", "list ms"):
        with timed(figures, name):
            client = Client(port)
            client.ask("STAT")
            if (client.listing("UIDL"), client.listing("LIST")) != (messages, messages):
                raise SystemExit("bench: messages are missing")
        client.quit()
    client = Client(port)
    with timed(figures, "RETR/s", messages):
        client.fetch_all(messages)
    client.quit()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--octets", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures of all rounds there")
    options = parser.parse_args()
    prepare_machine()
    kinds: list[type[QtwistPOP3 | Dovecot]] = [QtwistPOP3]
    if os.path.exists("/usr/lib/dovecot/pop3"):
        kinds.append(Dovecot)
    else:
        print("Dovecot is not installed (Debian package dovecot-pop3d): only qtwist is measured")
    results: dict[str, list[dict[str, float]]] = {}
    with disk(1000):
        peers = [kind(control_group(f"pop3-{kind.name}")) for kind in kinds]
        shutil.rmtree(f"{DISK}/person", ignore_errors=True)
        empty(peers[0].maildir())
        for peer in peers:
            peer.prepare()
        for _ in range(options.rounds):
            for peer in peers:
                fill(peer.maildir(), options.messages, options.octets)
                peer.start()
                try:
                    figures = session(peer.pop3, options.messages)
                    empty(peer.maildir())
                    with timed(figures, "logins/s", LOGINS):
                        for _ in range(LOGINS):
                            Client(peer.pop3).quit()
                    figures["PSS MiB"] = memory(peer.group)
                finally:
                    peer.stop()
                results.setdefault(peer.name, []).append(figures)
    columns = list(next(iter(results.values()))[0])
    print("| server | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, rounds in results.items():
        print(
            f"| {name} | "
            + " | ".join(f"{statistics.median(one[key] for one in rounds):.0f}" for key in columns)
            + " |"
        )
    if options.json:
        rows = [
            {"job": "pop3", "variant": options.messages, "server": name, "rounds": rounds}
            for name, rounds in results.items()
        ]
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

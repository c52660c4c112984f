"""Mail servers side by side: `make bench`, as root (bench/README.md says how to read what comes out).

Every server has its queue and its mailboxes on one ext4 file system with a journal, made in a file for the occasion,
and its own default syncs. The load is Postfix's smtp-source, the remote side smtp-sink, all on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLACE = os.environ.get("QTWIST_BENCH", "/var/tmp/qtwist-bench")
DISK = f"{PLACE}/disk"
IMAGE = f"{PLACE}/image"
PERSON = "qtwbench"
ACCOUNTS = {role: f"qtwtest-{role[-1]}" for role in ("qmaild", "qmaill", "qmailp", "qmailq", "qmailr")}
SINK_PORT = int(os.environ.get("QTWIST_BENCH_PORT", "2590"))  # and the next three
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 300.0
MAIN = "import sys; from qtwist.commands.{} import main; sys.exit(main(sys.argv[1:]))"


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)


def account(name: str, home: str = "/") -> pwd.struct_passwd:
    """The account, made when it is missing."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        run("/usr/sbin/useradd", "--system", "--no-create-home", "--user-group", "--home-dir", home, name)
        return pwd.getpwnam(name)


@contextlib.contextmanager
def disk(megabytes: int, inodes: int = 600_000) -> Iterator[str]:
    """A new ext4 with journal, mounted; yields the block device's name (``loop0``)."""
    os.makedirs(DISK, exist_ok=True)
    subprocess.run(["umount", DISK], check=False, capture_output=True)
    with open(IMAGE, "wb") as file:
        file.truncate(megabytes << 20)
    run("mkfs.ext4", "-q", "-N", str(inodes), IMAGE)
    device = run("losetup", "--show", "-f", IMAGE).stdout.strip()
    try:
        run("mount", device, DISK)
        try:
            yield os.path.basename(device)
        finally:
            run("umount", DISK)
    finally:
        run("losetup", "-d", device)
        os.unlink(IMAGE)


class Meter:
    """What one job costs: seconds, CPU of the server, forks of the machine, flushes and writes of the disk."""

    def __init__(self, device: str, group: str) -> None:
        self._device = device
        self._group = group

    def read(self) -> dict[str, float]:
        with open(f"/sys/block/{self._device}/stat") as file:
            fields = [int(word) for word in file.read().split()]
        with open("/proc/stat") as file:
            forks = next(int(line.split()[1]) for line in file if line.startswith("processes "))
        with open(f"{self._group}/cpuacct.usage") as file:
            cpu = int(file.read()) / 1e6
        return {
            "s": time.monotonic(),
            "CPU ms": cpu,
            "forks": forks,
            "flushes": fields[15] if len(fields) > 15 else 0,
            "KiB": fields[6] / 2,
        }


class Peer:
    """A mail server: started, loaded, stopped. `port` is where it takes mail."""

    name = ""
    port = 0

    def __init__(self, group: str) -> None:
        self.group = group
        self.home = f"{DISK}/{self.name}"

    def enter(self) -> None:
        """In a child: belong to this peer's control group."""
        with open(f"{self.group}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))

    def prepare(self) -> None:
        """Once, before the first start."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

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
    journal = False

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
        self.control("smtproutes", f":[127.0.0.1]:{SINK_PORT}\n")
        self.control("relayclients", "127.0.0.1\n")
        if self.journal:
            self.control("journal", "1\n")
        self.control("concurrencylocal", "50\n")
        self.control("concurrencyremote", "50\n")

    def control(self, name: str, text: str) -> None:
        with open(f"{self.home}/control/{name}", "w") as file:
            file.write(text)

    def start(self) -> None:
        code = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
        with open(f"{PLACE}/{self.name}.log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, "-n", "--pidfile=", "qtwist", "--home", self.home],
                env={"PATH": PATH, "PYTHONPATH": CHECKOUT},
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
    journal = True


class Postfix(Peer):
    """Debian's Postfix with its defaults, on a configuration of its own."""

    name = "postfix"
    port = SINK_PORT + 2

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
            "relayhost": f"[127.0.0.1]:{SINK_PORT}",
            "maillog_file": f"{PLACE}/postfix.log",
            "maillog_file_prefixes": "/var",
            "smtpd_client_connection_count_limit": "0",
        }
        with open(f"{self.home}/etc/main.cf", "w") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        with open("/usr/share/postfix/master.cf.dist") as file:
            lines = file.read().replace("\nsmtp      inet ", f"\n127.0.0.1:{self.port} inet ")
        with open(f"{self.home}/etc/master.cf", "w") as file:
            file.write(lines + "\npostlog unix-dgram n - n - 1 postlogd\n" * ("postlogd" not in lines))

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
        self.postfix("start")
        self.wait_listening()

    def stop(self) -> None:
        self.postfix("stop")


def greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return connection.recv(3) == b"220"
    except OSError:
        return False


def wait(what: str, ready: Callable[[], bool], pause: float = 0.01) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"{PATIENCE:.0f} s passed without {what}")
        time.sleep(pause)


def source(port: int, recipient: str, sessions: int, messages: int, octets: int, *more: str) -> None:
    run(
        "smtp-source", "-s", str(sessions), "-m", str(messages), "-l", str(octets), *more,
        "-f", "sender@client.test", "-t", recipient, f"127.0.0.1:{port}", env={"PATH": PATH},
    )  # fmt: skip


def empty(maildir: str) -> None:
    person = pwd.getpwnam(PERSON)
    shutil.rmtree(os.path.dirname(maildir), ignore_errors=True)
    for path in ("", "/tmp", "/new", "/cur"):
        os.makedirs(maildir + path, 0o700)
        os.chown(maildir + path, person.pw_uid, person.pw_gid)
    os.chown(os.path.dirname(maildir), person.pw_uid, person.pw_gid)
    os.chmod(os.path.dirname(maildir), 0o755)


def local_job(peer: Peer, sessions: int, messages: int, octets: int, once: bool) -> None:
    """SMTP in, Maildir; until the last one is in new/."""
    source(peer.port, peer.recipient(), sessions, messages, octets, *(["-d"] if not once else []))
    new = f"{peer.maildir()}/new"
    wait(f"{messages} messages from {peer.name}", lambda: len(os.listdir(new)) >= messages)


class Sink:
    """smtp-sink, which counts what it gets."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/usr/sbin/smtp-sink", "-c", f"127.0.0.1:{SINK_PORT}", "1024"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            user=account(ACCOUNTS["qmailr"]).pw_uid,
            cwd="/",
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._text = b""
        wait("smtp-sink", lambda: greets(SINK_PORT))

    def count(self) -> int:
        """Messages so far."""
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 65536):
                self._text = (self._text + data)[-200:]
        numbers = [word for word in self._text.replace(b"\r", b" ").split() if word.startswith(b"mesg=")]
        return int(numbers[-1][5:]) if numbers else 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def relay_job(peer: Peer, sink: Sink, sessions: int, messages: int, octets: int) -> None:
    """SMTP in, SMTP out; until the sink has the last one."""
    before = sink.count()
    source(peer.port, "someone@far.test", sessions, messages, octets, "-d")
    wait(f"{messages} messages of {peer.name} at the sink", lambda: sink.count() - before >= messages)


def measure(meter: Meter, messages: int, job: Callable[[], None]) -> dict[str, float]:
    """What one message costs, and how many there are a second."""
    subprocess.run(["sync"], check=True)
    before = meter.read()
    job()
    after = meter.read()
    each = {name: (after[name] - before[name]) / messages for name in after if name != "s"}
    return {"msg/s": messages / (after["s"] - before["s"]), **each}


def table(title: str, results: dict[str, list[dict[str, float]]], first: str) -> None:
    """Medians of the rounds; and how many times as many messages a second the first peer carries."""
    print(f"\n{title}")
    names = ["msg/s", "CPU ms", "forks", "flushes", "KiB"]
    print("| server | " + " | ".join(names) + " | ratio |\n|---|" + "---|" * (len(names) + 1))
    ours = statistics.median(one["msg/s"] for one in results[first])
    for peer, rounds in results.items():
        medians = [statistics.median(one[name] for one in rounds) for name in names]
        cells = [f"{medians[0]:.0f}", *(f"{value:.2f}" for value in medians[1:])]
        print(f"| {peer} | " + " | ".join(cells) + f" | {ours / medians[0]:.2f} |", flush=True)


def prepare_machine() -> None:
    """Make the accounts. SystemExit, with what is missing, where no benchmark can run."""
    if os.geteuid() != 0:
        raise SystemExit("bench: run it as root: it mounts a file system and starts daemons under their accounts")
    for program in ("smtp-source", "smtp-sink", "mkfs.ext4"):
        if shutil.which(program, path=PATH) is None:
            raise SystemExit(f"bench: {program} is missing (Debian packages postfix and e2fsprogs)")
    account(PERSON, f"{DISK}/person")
    for name in ACCOUNTS.values():
        account(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--octets", type=int, default=4096)
    parser.add_argument("--sessions", default="1,10,50")
    parser.add_argument("--only", default="qtwist,journaled,postfix", help="servers, separated by commas")
    parser.add_argument("--jobs", default="local,relay")
    options = parser.parse_args()
    prepare_machine()
    kinds: list[type[Peer]] = [kind for kind in (Qtwist, Journaled, Postfix) if kind.name in options.only.split(",")]
    with disk(3000) as device:
        peers = []
        for kind in kinds:
            group = f"/sys/fs/cgroup/cpuacct/qtwist-bench-{kind.name}"
            os.makedirs(group, exist_ok=True)
            peer = kind(group)
            empty(peer.maildir())
            peer.prepare()
            peers.append(peer)
        for job in options.jobs.split(","):
            # A sink for each job: one that had stood idle during another was seen to stop counting.
            sink = Sink()
            try:
                for sessions in map(int, options.sessions.split(",")):
                    bench(job, sessions, options, device, peers, sink)
            finally:
                sink.stop()


def bench(job: str, sessions: int, options: argparse.Namespace, device: str, peers: list[Peer], sink: Sink) -> None:
    """One table: the peers take turns."""
    results: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    messages = options.messages if sessions > 1 else options.messages // 4
    for _ in range(options.rounds):
        for peer in peers:
            empty(peer.maildir())
            peer.start()
            try:
                meter = Meter(device, peer.group)
                if job == "local":
                    work = lambda: local_job(peer, sessions, messages, options.octets, True)  # noqa: E731,B023
                else:
                    work = lambda: relay_job(peer, sink, sessions, messages, options.octets)  # noqa: E731,B023
                results[peer.name].append(measure(meter, messages, work))
            finally:
                peer.stop()
    title = {"local": "SMTP in, local Maildir, one message per connection", "relay": "SMTP in, relay out"}[job]
    table(f"{title}: {sessions} sessions, {options.octets} octets", results, peers[0].name)


if __name__ == "__main__":
    main()

"""What all benchmarks share of the machine: a disk of their own, accounts, and meters of what is used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLACE = os.environ.get("QTWIST_BENCH", "/var/tmp/qtwist-bench")
DISK = f"{PLACE}/disk"
IMAGE = f"{PLACE}/image"
PERSON = os.environ.get("QTWIST_BENCH_PERSON", "qtwbench")
ACCOUNTS = {role: f"qtwtest-{role[-1]}" for role in ("qmaild", "qmaill", "qmailp", "qmailq", "qmailr")}
SINK_PORT = int(os.environ.get("QTWIST_BENCH_PORT", "2590"))  # and the next five
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 300.0
_CLONE_NEWNS = 0x20000
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
            # A server's last process may end some seconds after the server has said that it has stopped.
            wait(
                "the disk to be free",
                lambda: subprocess.run(["umount", DISK], check=False, capture_output=True).returncode == 0,
                0.1,
            )
    finally:
        subprocess.run(["losetup", "-d", device], check=False)  # umount may have done it
        os.unlink(IMAGE)


def memory(group: str) -> float:
    """PSS of all processes of a control group, in MiB."""
    total = 0
    with open(f"{group}/cgroup.procs") as file:
        pids = file.read().split()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total / 1024


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

    def measure(self, messages: int, job: Callable[[], None]) -> dict[str, float]:
        """What one message costs, how many there are a second, and the memory at the end."""
        subprocess.run(["sync"], check=True)
        before = self.read()
        job()
        after = self.read()
        each = {name: (after[name] - before[name]) / messages for name in after if name != "s"}
        return {"msg/s": messages / (after["s"] - before["s"]), **each, "PSS MiB": memory(self._group)}


def empty(maildir: str) -> None:
    person = pwd.getpwnam(PERSON)
    shutil.rmtree(os.path.dirname(maildir), ignore_errors=True)
    for path in ("", "/tmp", "/new", "/cur"):
        os.makedirs(maildir + path, 0o700)
        os.chown(maildir + path, person.pw_uid, person.pw_gid)
    os.chown(os.path.dirname(maildir), person.pw_uid, person.pw_gid)
    os.chmod(os.path.dirname(maildir), 0o755)


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


def prepare_machine() -> None:
    """Make the accounts, and go where mounts are only ours. SystemExit, with what is missing, where nothing can run."""
    if os.geteuid() != 0:
        raise SystemExit("bench: run it as root: it mounts a file system and starts daemons under their accounts")
    for program in ("smtp-source", "smtp-sink", "mkfs.ext4"):
        if shutil.which(program, path=PATH) is None:
            raise SystemExit(f"bench: {program} is missing (Debian packages postfix and e2fsprogs)")
    if account(PERSON, f"{DISK}/person").pw_dir != f"{DISK}/person":  # Postfix delivers there
        raise SystemExit(f"bench: {PERSON} lives elsewhere: with QTWIST_BENCH give QTWIST_BENCH_PERSON, a new account")
    for name in ACCOUNTS.values():
        account(name)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise SystemExit(f"bench: no mounts of our own: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")


def control_group(name: str) -> str:
    """The path of a control group that counts the CPU of a peer."""
    group = f"/sys/fs/cgroup/cpuacct/{os.path.basename(PLACE)}-{name}"
    os.makedirs(group, exist_ok=True)
    return group

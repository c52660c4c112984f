"""A deep queue: what 200,000 deferred messages cost the start, the memory, the stop, and new mail (issue 7).

`python -m bench.backlog`, as root, where other accounts can run this Python. The queue lies on the file system that
`bench/machine.py` makes. All that lies in it is for a host that refuses connections, and due as qmail's schedule has it
for mail of up to a week (spec/qmail.md §9.5), so that some messages a second are tried all the time. New mail is
measured with an empty queue, as the backlog grows, and while ALRM has made all of it due.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import random
import signal
import time
from collections.abc import Iterator, Sequence

from bench.jobs import Figures
from bench.loads import NOBODY, Sink, local_job, relay_job
from bench.machine import ACCOUNTS, Meter, account, control_group, disk, empty, prepare_machine
from bench.servers import Journaled, Peer, Qtwist
from qtwist.files.disk import RealDisk
from qtwist.queue.layout import Layout, open_layout
from qtwist.queue.records import format_info, format_recipients
from qtwist.send.schedule import next_attempt

#: A host of these messages refuses connections.
DEAD = "dead.test"
_NOBODY = f"[127.0.0.1]:{NOBODY}"
_DAY = 86400.0
_WEEK = 7 * _DAY
_SESSIONS = 10
_OCTETS = 4096
_HEADER = b"Received: (qmail 1 invoked from network); 1 Jan 2026 00:00:00 -0000\nSubject: old\n\n"
_MESSAGE = _HEADER + 50 * b"hello there\n"


def fill(queue: str, numbers: range, owner: pwd.struct_passwd) -> None:
    """Put messages into a queue that nobody works on, as qtwist would have them there (§5.1, state S4)."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        if status:
            raise SystemExit("bench: the queue could not be filled")
        return
    try:
        os.setgroups([])
        os.setgid(owner.pw_gid)
        os.setuid(owner.pw_uid)
        layout = open_layout(queue, RealDisk())
        chance = random.Random(numbers.start)
        now = time.time()
        for index in numbers:
            _put(layout, index, now - chance.uniform(0, 0.95) * _WEEK, now)
        os._exit(0)
    finally:
        os._exit(1)


def _put(layout: Layout, index: int, birth: float, now: float) -> None:
    """One message, deferred at its last try, the latest before `now`."""
    temporary = layout.room("pid") + f"/{index}"
    with open(temporary, "xb") as file:
        file.write(_MESSAGE)
        number = os.fstat(file.fileno()).st_ino
    os.rename(temporary, layout.path("mess", number))
    # The tries are not in step with the births: some due time between now and what a try just now would give.
    due = random.Random(index).uniform(now, next_attempt(birth, now, "remote"))
    for room, contents, when in (
        ("info", format_info(b"sender@bench.test"), birth),
        ("remote", format_recipients([b"user%d@%s" % (index, DEAD.encode())]), due),
    ):
        with open(layout.path(room, number), "xb") as file:
            file.write(contents)
        os.utime(layout.path(room, number), (when, when))


class Processes:
    """Those of a peer's control group, by role."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def role(self, name: str) -> int:
        """The process of a role."""
        with open(f"{self._peer.group}/cgroup.procs") as file:
            for line in file:
                with contextlib.suppress(OSError), open(f"/proc/{line.strip()}/cmdline", "rb") as words:
                    if b"qtwist.processes.role\0" + name.encode() + b"\0" in words.read():
                        return int(line)
        raise SystemExit(f"bench: there is no {name}")

    @staticmethod
    def cpu(pid: int) -> float:
        """Seconds of processor time so far."""
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def pss(pid: int) -> float:
        """MiB."""
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


@contextlib.contextmanager
def running(peer: Peer, say: str) -> Iterator[tuple[Processes, Figures]]:
    """The daemon, from its start to its stop; both are timed."""
    began = time.monotonic()
    peer.start()
    figures = {"start s": time.monotonic() - began}
    processes = Processes(peer)
    send = processes.role("send")
    # What is found at the start is looked through in the background.
    before = -1.0
    while (used := processes.cpu(send)) - before > 0.05:
        before = used
        time.sleep(0.5)
    figures |= {"rest s": time.monotonic() - began, "send MiB": processes.pss(send)}
    print(
        f"{say}: greets after {figures['start s']:.2f} s, rests after {figures['rest s']:.1f} s ({used:.2f} s CPU of "
        f"send), send has {figures['send MiB']:.1f} MiB (PSS)",
        flush=True,
    )
    yield processes, figures
    began = time.monotonic()
    peer.stop()
    figures["stop s"] = time.monotonic() - began
    print(f"{say}: TERM takes {figures['stop s']:.2f} s", flush=True)


def new_mail(peer: Peer, sink: Sink, meter: Meter, messages: int, say: str) -> Figures:
    """Rates from the first octet in to the last message delivered; the figures of local mail."""
    empty(peer.maildir())
    local = meter.measure(messages, lambda: local_job(peer, _SESSIONS, messages, _OCTETS, once=True))
    relay = meter.measure(messages, lambda: relay_job(peer, sink, _SESSIONS, messages, _OCTETS))
    print(
        f"{say}: new mail, {messages} each: local {local['msg/s']:.0f} msg/s, {local['CPU ms']:.2f} ms CPU; "
        f"relay {relay['msg/s']:.0f} msg/s, {relay['CPU ms']:.2f} ms CPU",
        flush=True,
    )
    return local


def run(peer: Qtwist, device: str, sink: Sink, backlogs: Sequence[int], messages: int) -> dict[int, Figures]:
    """What is found, by the number of messages that wait; with the last one, what only a deep queue shows."""
    peer.prepare()
    with open(f"{peer.home}/control/smtproutes") as file:
        routes = file.read()
    peer.control("smtproutes", f"{DEAD}:{_NOBODY}\n{routes}")
    meter = Meter(device, peer.group)
    found: dict[int, Figures] = {}
    filled = 0
    for backlog in (0, *backlogs):
        say = f"{backlog} messages"
        if backlog:  # the first start has given the queue to its accounts
            began = time.monotonic()
            fill(f"{peer.home}/queue", range(filled, backlog), account(ACCOUNTS["qmailq"]))
            print(f"{say} written in {time.monotonic() - began:.0f} s", flush=True)
        filled = backlog
        with running(peer, f"{say}, cold"):
            pass
        with running(peer, say) as (processes, figures):
            figures.update(new_mail(peer, sink, meter, messages, say))
            print(f"{say}: send has {processes.pss(processes.role('send')):.1f} MiB (PSS)", flush=True)
        found[backlog] = figures
    with running(peer, say) as (processes, _):
        peer.signal(signal.SIGALRM)
        new_mail(peer, sink, meter, messages, f"{say}, all due")
        print(f"{say}, all due: send has {processes.pss(processes.role('send')):.1f} MiB (PSS)", flush=True)
    with running(peer, f"{say}, stopped with all of it due"):
        peer.signal(signal.SIGALRM)
        time.sleep(2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", default="2000,20000,200000", help="numbers of messages, each more than the last")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--journal", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", metavar="FILE", help="write the figures of new local mail there, for bench.plots")
    options = parser.parse_args()
    backlogs = sorted(int(word) for word in options.backlog.split(","))
    prepare_machine()
    kind = Journaled if options.journal else Qtwist
    with disk(1000 + backlogs[-1] * 14 // 1000, inodes=100_000 + 4 * backlogs[-1]) as device:
        peer = kind(control_group(kind.name))
        empty(peer.maildir())
        sink = Sink()
        try:
            found = run(peer, device, sink, backlogs, options.messages)
        finally:
            sink.stop()
    if options.json:
        rows = [
            {"job": "backlog", "variant": waiting, "server": kind.name, "rounds": [figures]}
            for waiting, figures in found.items()
        ]
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

"""Where the processor time of one message goes: by process, and by stage within it (issue 7, item 4).

`python -m bench.stages --json FILE`, as root; `python -m bench.plots` draws it. Two runs of the same load each: one
that nobody looks into, for what each process takes (/proc/PID/task/*/schedstat), and one with samples of the stacks
(bench/sampling.py), for how that is shared out among the stages. So the lengths are measured, and only the division
is an estimate: with some thousands of samples, good for one or two in a hundred of a process's time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable

from bench.loads import Sink, local_job, relay_job
from bench.machine import CHECKOUT, PLACE, control_group, disk, empty, prepare_machine
from bench.servers import Journaled

FOLDER = f"{PLACE}/samples"
#: What a module is for: the first beginning that fits counts.
STAGES = (
    *((name, "reactor, sockets") for name in ("-", "writing")),
    *((name, "log") for name in ("events", "send/log", "processes/role", "processes/supervisor")),
    *((name, "SMTP client") for name in ("remote/", "wire/smtp_client", "wire/dot_stuffing", "tls/clients", "dns/")),
    *((name, "SMTP server") for name in ("smtpd/", "wire/smtp_", "tls/")),
    ("policy/", "policies"),
    *(
        (name, "between processes")
        for name in ("queue/client", "queue/pipelining", "queue/request", "queue/door", "queue/entrance", "wire/",
                     "local/packets", "processes/")
    ),
    ("queue/", "queue"),
    ("files/", "files"),
    ("send/", "scheduling"),
    ("local/", "delivery"),
)  # fmt: skip
THREADS = "disk threads"
OTHER = "other"


def stage(module: str) -> str:
    """The stage that a module of qtwist belongs to; "other" for what serves several."""
    return next((name for beginning, name in STAGES if module.startswith(beginning)), OTHER)


def shares(lines: Iterable[str]) -> dict[str, float]:
    """How the time of samples (bench/sampling.py) is shared out among stages: fractions of 1."""
    times: Counter[str] = Counter()
    for line in lines:
        microseconds, _, module = line.rstrip("\n").partition("\t")
        times[stage(module)] += int(microseconds)
    total = sum(times.values())
    return {name: spent / total for name, spent in times.most_common() if spent}


def divided(main: float, threads: float, parts: dict[str, float]) -> dict[str, float]:
    """A process's time by stage: of its main thread as the samples say, and its other threads."""
    found = {name: main * share for name, share in (parts or {OTHER: 1.0}).items()}
    return found | ({THREADS: threads} if threads else {})


def name_of(words: list[str], uid: int) -> str:
    """What a process of the daemon is called, by its command line and its owner."""
    if "qtwist.processes.role" in words:
        return words[words.index("qtwist.processes.role") + 1]
    if any(word.endswith("/lspawn.py") for word in words):
        return "delivery" if uid else "lspawn"
    return "supervisor"


def processor_time(group: str) -> dict[str, tuple[float, float]]:
    """Milliseconds so far of a control group's processes, by name: their main threads, and all others."""
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    with open(f"{group}/cgroup.procs") as file:
        pids = file.read().split()
    for pid in pids:
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline") as file:
                name = name_of(file.read().split("\0"), os.stat(f"/proc/{pid}").st_uid)
            main, others = found[name]
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                    spent = int(file.read().split()[0]) / 1e6
                if thread == pid:
                    main += spent
                else:
                    others += spent
            found[name] = (main, others)
    return found


class Sampled(Journaled):
    """The same, with samples in FOLDER."""

    name = "sampled"
    log = f"{PLACE}/sampled.log"
    python_path = f"{PLACE}/sampler:{CHECKOUT}"
    code = (
        f"import qtwist.local.lspawn as lspawn; lspawn.__file__ = {PLACE + '/sampler/lspawn.py'!r}; " + Journaled.code
    )

    def prepare(self) -> None:
        super().prepare()
        shutil.rmtree(f"{PLACE}/sampler", ignore_errors=True)
        os.makedirs(f"{PLACE}/sampler")
        begin = f"from bench.sampling import begin\nbegin({FOLDER!r}, %s)\n"
        naming = "next(after for word, after in zip(words, words[1:]) if word == 'qtwist.processes.role')"
        # Every Python looks for a sitecustomize; lspawn, which does without, gets there by another file in its place.
        with open(f"{PLACE}/sampler/sitecustomize.py", "w") as file:
            file.write("import sys\nwords = sys.orig_argv\nif 'qtwist.processes.role' in words:\n")
            file.writelines(f"    {line}\n" for line in (begin % naming).splitlines())
            file.write("elif '--home' in words:\n")
            file.writelines(f"    {line}\n" for line in (begin % "'supervisor'").splitlines())
        with open(f"{PLACE}/sampler/lspawn.py", "w") as file:
            file.write(f"import runpy, sys\nsys.path.append({CHECKOUT!r})\n{begin % repr('lspawn')}")
            file.write("from qtwist.local import lspawn\nrunpy.run_path(lspawn.__file__, run_name='__main__')\n")
        self.forget()

    @staticmethod
    def forget() -> None:
        """All samples so far."""
        os.makedirs(FOLDER, exist_ok=True)
        os.chmod(FOLDER, 0o777)
        for path in os.listdir(FOLDER):
            os.unlink(f"{FOLDER}/{path}")

    @staticmethod
    def samples() -> dict[str, list[str]]:
        """By process."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in sorted(os.listdir(FOLDER)):
            name = path.split(".", maxsplit=1)[0].replace("lspawn-child", "delivery")
            with open(f"{FOLDER}/{path}") as file:
                found[name] += file.readlines()
        return found


def load(peer: Journaled, sink: Sink, way: str, sessions: int, messages: int) -> None:
    if way == "local":
        empty(peer.maildir())
        local_job(peer, sessions, messages, 4096, once=True)
    else:
        relay_job(peer, sink, sessions, messages, 4096, once=True)


def measure(way: str, sessions: int, messages: int, sink: Sink) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time per message, by process and stage."""
    plain = Journaled(control_group(Journaled.name))
    plain.start()
    try:
        load(plain, sink, way, sessions, messages // 10)  # what is made at the first message only is there now
        before = processor_time(plain.group)
        load(plain, sink, way, sessions, messages)
        after = processor_time(plain.group)
    finally:
        plain.stop()
    sampled = Sampled(control_group(Sampled.name))
    sampled.start()
    try:
        load(sampled, sink, way, sessions, messages // 10)
        sampled.forget()
        load(sampled, sink, way, sessions, messages)
    finally:
        sampled.stop()
    samples = sampled.samples()
    return {
        name: divided(
            (main - before.get(name, (0, 0))[0]) / messages,
            (others - before.get(name, (0, 0))[1]) / messages,
            shares(samples.get(name, ())),
        )
        for name, (main, others) in after.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--json", metavar="FILE", help="write what was found there, for bench.plots")
    parser.add_argument("--modules", action="store_true", help="tell the modules of each process, too")
    options = parser.parse_args()
    prepare_machine()
    rows = []
    with disk(4000):
        empty(Journaled.maildir(Journaled("")))
        for kind in (Journaled, Sampled):
            kind(control_group(kind.name)).prepare()
        for way in ("local", "relay"):
            sink = Sink()
            try:
                found = measure(way, options.sessions, options.messages, sink)
            finally:
                sink.stop()
            rows.append({"job": "stages", "way": way, "sessions": options.sessions, "processes": found})
            print(f"\n{way}, {options.sessions} sessions, ms of CPU per message\n")
            for name, parts in found.items():
                print(f"{name:12}{sum(parts.values()):8.3f}  " + ", ".join(f"{k} {v:.3f}" for k, v in parts.items()))
            if options.modules:
                for name, lines in Sampled.samples().items():
                    print(name, Counter(line.rstrip().split("\t")[1] for line in lines).most_common(25))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

"""`make fuzz SECONDS=…`: new inputs for all engines and parsers, for as long as asked; SEED=… repeats a run.

Prints what it executed, and each finding with the input that shows it. The exit code is 1 when there is one. Where
atheris is installed, it makes the inputs (:mod:`tests.fuzz.guided`).
"""

from __future__ import annotations

import importlib.util
import random
import re
import secrets
import subprocess
import sys
import time
import traceback

from tests.fuzz.driving import TARGETS, Finding, execute, inputs

#: Executions of one target before the next has its turn.
TURN = 200
#: Findings of one target after which it is left alone.
ENOUGH = 3


def guided(seconds: float, seed: int, only: list[str]) -> int:
    """As :func:`fuzz`, with atheris: one target after the other."""
    targets = [target for target in TARGETS if not only or target in only]
    share = max(1, int(seconds / len(targets)))
    failed = 0
    for target in targets:
        command = [sys.executable, "-m", "tests.fuzz.guided", target, str(share), str(seed)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
        executed = re.search(r"number_of_executed_units: (\d+)", done.stdout + done.stderr)
        count = executed[1] if executed else "?"
        print(f"{target:20} {count:>9} executions, {'a finding' if done.returncode else 'no findings'}", flush=True)
        if done.returncode:
            failed += 1
            print((done.stdout + done.stderr)[-5000:])
    print(f"seed {seed}: {failed} findings, guided by atheris")
    return 1 if failed else 0


def fuzz(seconds: float, seed: int, only: list[str]) -> int:
    """The exit code."""
    end = time.monotonic() + seconds
    sources = {
        target: inputs(target, random.Random(f"{seed} {target}")) for target in TARGETS if not only or target in only
    }
    counts = dict.fromkeys(sources, 0)
    findings = dict.fromkeys(sources, 0)
    while time.monotonic() < end and sources:
        for target, source in list(sources.items()):
            for _ in range(TURN):
                counts[target] += 1
                try:
                    execute(target, next(source))
                except Finding as finding:
                    findings[target] += 1
                    print(f"FINDING {finding}", flush=True)
                    traceback.print_exception(finding.__cause__)
                    if findings[target] == ENOUGH:
                        del sources[target]
                        break
            if time.monotonic() > end:
                break
    for target, count in counts.items():
        print(f"{target:20} {count:9} executions, {findings[target]} findings")
    print(f"seed {seed}: {sum(counts.values())} executions, {sum(findings.values())} findings")
    return 1 if any(findings.values()) else 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    has_atheris = importlib.util.find_spec("atheris") is not None
    if not has_atheris:
        print("atheris is not installed here: inputs come from our own driver, which does not look at what they reach")
    sys.exit(
        (guided if has_atheris else fuzz)(
            float(arguments[0]) if arguments else 60.0,
            int(arguments[1]) if len(arguments) > 1 and arguments[1] else secrets.randbelow(1 << 32),
            arguments[2:],
        )
    )

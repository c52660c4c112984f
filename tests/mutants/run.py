"""`make mutants`: break the code in a copy, one mutant of the tables after the other, and see whether its tests notice.

``python -m tests.mutants.run [WORD ...]``: only those whose file or description has one of the words. Prints a line for
each; the exit code is 1 when one was not noticed, cannot be applied, or when a test fails without any.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.mutants import Mutant
from tests.mutants.tables import MUTANTS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

#: Seconds for the tests of one mutant; one that makes them hang is noticed, too.
PATIENCE = 300
#: Octets of memory that they may have: a loop without an end must not take the machine's.
MEMORY = 4 << 30
#: Copies of the tree that are worked in side by side.
WORKERS = min(4, os.cpu_count() or 1)
#: What the tests need of the tree.
_PARTS = ("qtwist", "twisted", "tests", "tools", "doc", "bench", "pyproject.toml", "README.md", "CHANGES.md")

_TRIAL = f"""
import resource
from twisted.scripts.trial import run
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
run()
"""

_FAILED = re.compile(r"^tests\.\S+$", re.MULTILINE)
_UNCLEAN = re.compile(r"^(?:SyntaxError|ImportError|ModuleNotFoundError|NameError)\b.*", re.MULTILINE)


def copy_tree(target: str) -> None:
    for part in _PARTS:
        source = os.path.join(ROOT, part)
        if os.path.isdir(source):
            shutil.copytree(source, os.path.join(target, part), ignore=shutil.ignore_patterns("__pycache__"))
        elif os.path.exists(source):
            shutil.copy(source, target)


def complaint(tree: str, tests: Sequence[str]) -> str | None:
    """Which test is the first to fail in `tree`; None when none does."""
    modules = [f"tests.{name}" for name in tests]
    command = [sys.executable, "-c", _TRIAL, "--exitfirst", "--reporter=text", *modules]
    environment = dict(os.environ, PYTHONPATH=tree, PYTHONDONTWRITEBYTECODE="1")
    try:
        # In a session of its own: what a broken test leaves behind goes with it.
        with subprocess.Popen(
            command,
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.communicate()
                return f"nothing ends in {PATIENCE} seconds"
    finally:
        shutil.rmtree(os.path.join(tree, "_trial_temp"), ignore_errors=True)
    if not process.returncode:
        return None
    broken = _UNCLEAN.search(output)
    if broken is not None:
        raise RuntimeError(f"no mutant, but no program: {broken[0]}")
    failed = _FAILED.search(output)
    return failed[0].removeprefix("tests.") if failed else output[-300:]


def judge(tree: str, mutant: Mutant) -> str | None:
    """Who notices the mutant; None when nobody does. LookupError when it cannot be applied."""
    path = os.path.join(tree, "qtwist", mutant.file)
    with open(path, encoding="utf-8") as file:
        original = file.read()
    broken = mutant.apply(original)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(broken)
        return complaint(tree, mutant.tests)
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(original)


def main(words: Sequence[str]) -> int:
    chosen = [one for one in MUTANTS if not words or any(word in f"{one.file} {one.what}" for word in words)]
    began = time.monotonic()
    wrong = 0
    folder = tempfile.mkdtemp(prefix="mutants.")
    try:
        os.chmod(folder, 0o755)  # tests of other accounts run in it
        trees: queue.SimpleQueue[str] = queue.SimpleQueue()
        for number in range(WORKERS):
            tree = os.path.join(folder, str(number))
            os.mkdir(tree)
            copy_tree(tree)
            trees.put(tree)

        def without(name: str) -> str | None:
            tree = trees.get()
            try:
                return complaint(tree, [name])
            finally:
                trees.put(tree)

        def one_of_them(mutant: Mutant) -> str:
            tree = trees.get()
            try:
                found = judge(tree, mutant)
            except (LookupError, RuntimeError) as error:
                return f"ERROR        {error}"
            finally:
                trees.put(tree)
            return f"noticed by   {found}" if found else "NOT NOTICED"

        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            names = sorted(set(itertools.chain.from_iterable(one.tests for one in chosen)))
            failing = [f"{name}: {said}" for name, said in zip(names, pool.map(without, names), strict=True) if said]
            if failing:
                print("without any mutant:", *failing, sep="\n")
                return 1
            for mutant, verdict in zip(chosen, pool.map(one_of_them, chosen), strict=True):
                wrong += not verdict.startswith("noticed")
                print(f"{mutant.file:26} {mutant.what:60} {verdict}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen)} mutants in {time.monotonic() - began:.0f} s, {len(chosen) - wrong} noticed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Run a command, and tell which branches of qtwist it and its processes took: ``python -m tools.measure COMMAND``.

Processes of tests run under several accounts, with environments and packages of the tests' own choosing
(tests/e2e/runtime.py); all they have in common is PYTHONPATH. So that gets a folder with a ``sitecustomize`` that
starts coverage.py, and what was measured goes to a folder that every account may write to. What is killed, or runs
without site (lspawn), tells nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_SITECUSTOMIZE = """\
import os

import coverage


def begin(again):
    os.environ["COVERAGE_PROCESS_START"] = {config!r}
    try:
        coverage.process_startup(force=again)
    finally:
        del os.environ["COVERAGE_PROCESS_START"]


begin(False)
os.register_at_fork(after_in_child=lambda: begin(True))
"""

# Copies of the package in other folders (tests/e2e/runtime.py) count as the checkout.
_CONFIG = """\
[run]
branch = true
source_pkgs = qtwist
parallel = true
patch =
    _exit
    execv
data_file = {data}/measured
disable_warnings = no-data-collected, module-not-measured, module-not-imported

[paths]
source =
    {checkout}/qtwist
    */qtwist-e2e-runtime-*/qtwist

[report]
skip_covered = true
sort = cover
exclude_also =
    if TYPE_CHECKING:
    raise NotImplementedError
    @overload
"""


def measure(command: list[str]) -> int:
    """The exit code of `command`, after which a table is printed."""
    folder = tempfile.mkdtemp(prefix="qtwist-measured-")
    try:
        os.chmod(folder, 0o755)
        data = os.path.join(folder, "data")
        os.mkdir(data)
        os.chmod(data, 0o1777)
        config = os.path.join(folder, "config")
        _write(config, _CONFIG.format(data=data, checkout=CHECKOUT))
        _write(os.path.join(folder, "sitecustomize.py"), _SITECUSTOMIZE.format(config=config))
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        code = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path}).returncode
        found = os.path.join(folder, "found.json")
        for verb, *arguments in (["combine", "--quiet", data], ["report"], ["json", "--quiet", "-o", found]):
            report = [sys.executable, "-m", "coverage", verb, f"--rcfile={config}", *arguments]
            code = subprocess.run(report, check=False, cwd=folder).returncode or code
        with open(found) as file:
            totals = json.load(file)["totals"]
        covered, all_of_them = totals["covered_branches"], totals["num_branches"]
        print(f"branches of qtwist: {covered} of {all_of_them} taken, {100 * covered / all_of_them:.1f} %")
        return code
    finally:
        shutil.rmtree(folder)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o644)


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1:]))

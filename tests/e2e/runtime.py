"""A Python that an ordinary account can run the checkout's qtwist with.

Tests may run as root, the daemon must not; and what root's Python needs may lie where no other account can look
(/root/.pyenv, a checkout under a closed folder). Then what is needed is copied to a temporary folder, once per run, and
a Python of the same version that the account can run (the system's, say) works from there.
"""

from __future__ import annotations

import atexit
import compileall
import functools
import os
import shutil
import sys
import sysconfig
import tempfile
from unittest import SkipTest

import attrs

from tools.account import Account, can_run, environment, ordinary_account

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CHECK = "import twisted.scripts.twistd, qtwist.interfaces, cryptography, sys; assert sys.version_info[:2] == (%d, %d)"
# Large, and not what a daemon needs.
LEFT_OUT = (
    *("*.pth", "mypy*", "*mypyc*", "ruff*", "pip", "pip-*"),
    *("setuptools*", "pkg_resources", "hypothesis*"),
)


@attrs.frozen
class Runtime:
    """How to run qtwist's commands: as whom, with which Python, and where the code is."""

    account: Account
    python: str
    path: str  # PYTHONPATH

    def environment(self) -> dict[str, str]:
        return {**environment(), "PYTHONPATH": self.path, "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of ``twistd`` or of one of qtwist's commands (module of qtwist.commands)."""
        if name == "twistd":
            code = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
        else:
            code = f"import sys; from qtwist.commands.{name} import main; sys.exit(main(sys.argv[1:]))"
        return [self.python, "-c", code, *arguments]

    def usable(self) -> bool:
        check = CHECK % sys.version_info[:2]
        return can_run(self.account, [self.python, "-c", check], {"PYTHONPATH": self.path})


def copied() -> str:
    """The path of a folder, open to all, that holds qtwist, its plugin and all packages it needs."""
    folder = tempfile.mkdtemp(prefix="qtwist-e2e-runtime-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    for packages in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        shutil.copytree(packages, folder, ignore=ignore, dirs_exist_ok=True)
    shutil.copytree(os.path.join(CHECKOUT, "qtwist"), os.path.join(folder, "qtwist"), ignore=ignore, dirs_exist_ok=True)
    # What pip has compiled is copied, too. Processes that compile all they import take three times as long to start.
    compileall.compile_dir(os.path.join(folder, "qtwist"), quiet=2)
    plugins = os.path.join(folder, "twisted", "plugins")
    shutil.copy(os.path.join(CHECKOUT, "twisted", "plugins", "qtwist_plugin.py"), plugins)
    # mkdtemp and a strict umask close what was copied; nothing in it is secret.
    for directory, _, files in os.walk(folder):
        os.chmod(directory, 0o755)
        for name in files:
            os.chmod(os.path.join(directory, name), 0o644)
    return folder


def _with_ours(folder: str) -> str:
    """PYTHONPATH with `folder` in front of what we have been told ourselves (`make coverage` does)."""
    return os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])


@functools.cache
def find_runtime() -> Runtime | str:
    """The runtime, or the reason why there is none."""
    account = ordinary_account()
    here = Runtime(account, sys.executable, _with_ours(CHECKOUT))
    if here.usable():
        return here
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    candidates = [
        sys.executable,
        *(f"{folder}/{version}" for folder in ("/usr/bin", "/usr/local/bin", "/opt/python/bin")),
    ]
    able = [python for python in candidates if can_run(account, [python, "-c", "import ssl"])]
    if not able:
        return f"no {version} here that the account {account.name} could run the daemon with"
    there = Runtime(account, able[0], _with_ours(copied()))
    return there if there.usable() else f"{account.name} cannot run qtwist with {able[0]} from a copy either"


def runtime() -> Runtime:
    """The runtime; SkipTest, with the reason, where there is none."""
    found = find_runtime()
    if isinstance(found, str):
        raise SkipTest(found)
    return found

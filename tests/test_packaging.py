"""The package as twistd and pip see it: the plugin is found, nothing shadows Twisted, the ground floor stays light."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

import qtwist
import twisted

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLUGIN = os.path.join(CHECKOUT, "twisted", "plugins", "qtwist_plugin.py")
TWISTD = "import sys; sys.argv = ['twistd', '--help']; from twisted.scripts.twistd import run; run()"


def python(*arguments: str) -> str:
    """What a fresh Python prints that has the checkout on its path, and nothing else of ours."""
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": CHECKOUT},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        raise AssertionError(f"{arguments} ended with {done.returncode}: {done.stderr}")
    return done.stdout


class PluginTests(SynchronousTestCase):
    """The traps of a top-level twisted/ folder."""

    def test_no_package_marker(self) -> None:
        """twisted/__init__.py would hide all of Twisted, twisted/plugins/__init__.py the plugin."""
        for folder in ("twisted", "twisted/plugins"):
            self.assertFalse(os.path.exists(os.path.join(CHECKOUT, folder, "__init__.py")), folder)

    def test_twisted_is_not_shadowed(self) -> None:
        self.assertFalse(os.path.abspath(twisted.__file__).startswith(os.path.join(CHECKOUT, "twisted") + os.sep))

    def test_twistd_lists_qtwist(self) -> None:
        self.assertRegex(python("-c", TWISTD), r"(?m)^ +qtwist +qmail's mail system")

    def test_twist_lists_qtwist(self) -> None:
        self.assertRegex(python("-m", "twisted", "--help"), r"(?m)^ +qtwist +qmail's mail system")

    def test_plugin_is_light(self) -> None:
        """Every run of any twistd imports the plugin, so it imports nothing of ours."""
        with open(PLUGIN) as file:
            tree = ast.parse(file.read())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        self.assertEqual(modules, ["twisted.application.service"])
        self.assertFalse([node for node in ast.walk(tree) if isinstance(node, ast.Import)])


class MetadataTests(SynchronousTestCase):
    def setUp(self) -> None:
        with open(os.path.join(CHECKOUT, "pyproject.toml")) as file:
            self.text = file.read()

    def test_scripts_exist(self) -> None:
        section = self.text.split("[project.scripts]\n")[1].split("\n[")[0]
        scripts = re.findall(r'^[\w-]+ = "([\w.]+):(\w+)"$', section, re.M)
        self.assertTrue(scripts)
        for module, function in scripts:
            self.assertTrue(callable(getattr(importlib.import_module(module), function)), module)

    def test_one_version(self) -> None:
        self.assertIn(f'version = "{qtwist.__version__}"\n', self.text)
        with open(os.path.join(CHECKOUT, "CHANGES.md")) as file:
            self.assertIn(f"## {qtwist.__version__} ", file.read())


class GroundTests(SynchronousTestCase):
    """design.md §1: the ground floor and the commands know no Twisted, so that they start fast."""

    def test_no_twisted_below(self) -> None:
        names = ["qtwist.control"]
        for room in ("wire", "mail", "files", "commands"):
            package = importlib.import_module(f"qtwist.{room}")
            names += [f"qtwist.{room}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
        self.assertIn("qtwist.commands.init", names)
        # One process for each would take long; the first one that brings Twisted in is named all the same.
        code = (
            "import importlib, sys\n"
            "for name in sys.argv[1:]:\n"
            "    importlib.import_module(name)\n"
            "    if 'twisted' in sys.modules: print(name); break\n"
        )
        self.assertEqual(python("-c", code, *names), "")

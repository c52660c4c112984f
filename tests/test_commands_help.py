"""Every command's --help is there, has its parts, and names just the options that the command takes."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands.base import OptionError, getopt
from qtwist.commands.qtwist import VERBS
from tests.command_tools import CHECKOUT

# Its help is made of the table of its verbs.
WITH_VERBS = {"qtwist"}


def scripts() -> dict[str, tuple[ModuleType, str]]:
    """Name, module and function of every command in pyproject.toml."""
    with open(os.path.join(CHECKOUT, "pyproject.toml"), encoding="utf-8") as file:
        section = file.read().split("[project.scripts]\n")[1].split("\n[")[0]
    found = re.findall(r'^([\w-]+) = "([\w.]+):(\w+)"$', section, re.M)
    return {name: (importlib.import_module(module), function) for name, module, function in found}


def letters(options: str) -> set[str]:
    return set(options.replace(":", ""))


def mentioned(text: str) -> set[str]:
    """The letters of the options in a help text: all in its section OPTIONS, and those that the synopsis bundles."""
    synopsis = text.partition("\nSYNOPSIS\n")[2].partition("\n\n")[0]
    section = re.split(r"\n(?=[A-Z])", text.partition("\nOPTIONS\n")[2])[0]
    found = set(re.findall(r"(?<![\w-])-([\w/])", section))
    return found.union(*re.findall(r"\[-([\w/]+)[] ]", synopsis))


class HelpTests(SynchronousTestCase):
    def help_of(self, module: ModuleType, function: str, *words: str) -> str:
        output = io.StringIO()
        self.patch(sys, "stdout", output)
        try:
            code = getattr(module, function)([*words, "--help"])
        except SystemExit as end:
            code = end.code
        self.assertEqual(code, 0, module.__name__)
        return output.getvalue()

    def test_there_is_one(self) -> None:
        """For every command, with the parts that a man page has, no wider than a terminal."""
        self.assertGreater(len(scripts()), 35)
        for name, (module, function) in scripts().items():
            text = self.help_of(module, function)
            self.assertIn(name, text)
            if name not in WITH_VERBS:
                self.assertLessEqual(max(map(len, text.splitlines())), 80, name)
                self.assertRegex(text, rf"\ANAME\n    {name}(, [\w, -]+)? - \w")
                for part in ("SYNOPSIS", "DESCRIPTION", "EXIT CODES"):
                    self.assertIn(f"\n\n{part}\n    ", text, name)

    def test_verbs(self) -> None:
        for verb, (module, _) in VERBS.items():
            text = self.help_of(importlib.import_module(module), "main")
            self.assertIn(f"qtwist {verb}", text)

    def test_options(self) -> None:
        """What the help says is taken, and what is taken is said."""
        checked = 0
        for name, (module, function) in scripts().items():
            options = getattr(module, "OPTIONS", None)
            if options is None or function != "main":
                continue
            checked += 1
            text = self.help_of(module, function)
            if name == "datemail":
                self.assertIn("sendmail --help", text)
                self.assertEqual(options, importlib.import_module("qtwist.commands.sendmail").OPTIONS)
                continue
            said = mentioned(text)
            self.assertEqual(said - letters(options), set(), f"{name}: options in the help that are not taken")
            self.assertEqual(letters(options) - said, set(), f"{name}: options that the help does not name")
            for letter in letters(options):
                self.assertEqual(getopt([f"-{letter}", "x"], options)[0][0][0], letter)
            for letter in set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/") - letters(options):
                self.assertRaises(OptionError, getopt, [f"-{letter}"], options)
        self.assertGreater(checked, 3)

    def test_no_options(self) -> None:
        """A command without OPTIONS names none."""
        for name, (module, function) in scripts().items():
            if name not in WITH_VERBS and not hasattr(module, "OPTIONS"):
                self.assertEqual(mentioned(self.help_of(module, function)), set(), name)

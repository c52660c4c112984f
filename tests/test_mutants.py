"""The table of mutants fits the code: each can be applied, to something that is there (`make mutants` tries them)."""

from __future__ import annotations

import ast
import os

from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

import qtwist
from tests.mutants import Mutant
from tests.mutants.tables import MUTANTS


class MutantTests(SynchronousTestCase):
    def test_each_can_be_applied(self) -> None:
        """What it changes stands there once, and what it makes of it is Python still."""
        texts: dict[str, str] = {}
        for mutant in MUTANTS:
            if mutant.file not in texts:
                with open(os.path.join(os.path.dirname(qtwist.__file__), mutant.file), encoding="utf-8") as file:
                    texts[mutant.file] = file.read()
            ast.parse(mutant.apply(texts[mutant.file]))

    def test_their_tests_are_there(self) -> None:
        for name in {name for mutant in MUTANTS for name in mutant.tests}:
            namedAny(f"tests.{name}")

    def test_one_that_is_gone(self) -> None:
        with self.assertRaisesRegex(LookupError, "is there 0 times"):
            Mutant.of("x", "y.py", "old", "new", "test_z").apply("text")
        with self.assertRaisesRegex(LookupError, "is there 2 times"):
            Mutant.of("x", "y.py", "old", "new", "test_z").apply("old old")

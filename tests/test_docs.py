"""The documentation that is made from tables, or names files, is true."""

from __future__ import annotations

import os
import re

from twisted.trial.unittest import SynchronousTestCase

from tools.reference import page

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(path: str) -> str:
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


class DocumentationTests(SynchronousTestCase):
    def test_control_files(self) -> None:
        self.assertEqual(read("doc/control-files.md"), page(), "run: python -m tools.reference >doc/control-files.md")

    def test_links(self) -> None:
        """Every relative link of a page leads to a file."""
        pages = ["README.md", "CONTRIBUTING.md", "CHANGES.md"]
        pages += [f"doc/{name}" for name in os.listdir(os.path.join(ROOT, "doc")) if name.endswith(".md")]
        links = 0
        for path in pages:
            for target in re.findall(r"\]\(([^)#:]+)\)", read(path)):
                links += 1
                there = os.path.join(ROOT, os.path.dirname(path), target)
                self.assertTrue(os.path.exists(there), f"{path} links to {target}")
        self.assertGreater(links, 3)

    def test_rooms(self) -> None:
        """Every module that flow.md names is there."""
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", read("doc/flow.md")):
            self.assertTrue(os.path.exists(os.path.join(ROOT, "qtwist", name)), name)

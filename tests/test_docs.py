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


def pages() -> list[str]:
    """The pages that people read, as paths in the checkout."""
    names = sorted(name for name in os.listdir(os.path.join(ROOT, "doc")) if name.endswith(".md"))
    return ["README.md", "CONTRIBUTING.md", "CHANGES.md", "bench/README.md", *(f"doc/{name}" for name in names)]


def prose(path: str) -> str:
    """A page without what is quoted in it."""
    return re.sub(r"(?ms)^```.*?^```$|^    .*?$", "", read(path))


def anchors(path: str) -> set[str]:
    """What a link to a heading of the page can name, as GitHub makes it."""
    headings = re.findall(r"(?m)^#+ (.*)$", prose(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class DocumentationTests(SynchronousTestCase):
    def test_control_files(self) -> None:
        self.assertEqual(read("doc/control-files.md"), page(), "run: python -m tools.reference >doc/control-files.md")

    def test_links(self) -> None:
        """Every relative link of a page leads to a file, and to a heading of it where it names one."""
        links = 0
        for path in pages():
            for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose(path)):
                links += 1
                there = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
                self.assertTrue(os.path.exists(os.path.join(ROOT, there)), f"{path} links to {target}")
                if anchor:
                    self.assertIn(anchor, anchors(there), f"{path} links to {target}#{anchor}")
        self.assertGreater(links, 3)

    def test_contents(self) -> None:
        """README.md leads to every page."""
        text = read("README.md")
        for path in pages():
            self.assertTrue(path == "README.md" or f"({path})" in text, path)

    def test_rooms(self) -> None:
        """Every module that flow.md names is there."""
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", read("doc/flow.md")):
            self.assertTrue(os.path.exists(os.path.join(ROOT, "qtwist", name)), name)

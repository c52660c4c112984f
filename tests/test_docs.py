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


class StandardsTests(SynchronousTestCase):
    """doc/rfc.md, the table of standards (issue 9, item 6)."""

    def rows(self) -> list[list[str]]:
        """The cells of each row of its tables, without the headings."""
        lines = [line for line in read("doc/rfc.md").splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        return [row for row in rows if row[0] not in ("RFC", "what")]

    def test_all_that_are_cited(self) -> None:
        """Every RFC that the code or a page cites has a row."""
        listed = {number for row in self.rows() for number in re.findall(r"\b\d{3,4}\b", row[0])}
        cited = {path: cited_in(read(path)) for path in (*modules(), *pages())}
        self.assertGreater(len(set().union(*cited.values())), 50)
        for path, numbers in cited.items():
            self.assertEqual(sorted(numbers - listed), [], f"{path} cites them, doc/rfc.md does not have them")

    def test_rows(self) -> None:
        """Each says how far; what is done names modules and tests that are there, what is not has none."""
        rows = self.rows()
        self.assertGreater(len(rows), 40)
        for row in rows:
            self.assertEqual(len(row), 6, row)
            how_far, why, code, tests = row[2:]
            self.assertIn(how_far, ("full", "partly", "not"), row)
            self.assertTrue(how_far == "full" or why, f"{row}: and why?")
            for folder, cell in (("qtwist", code), ("tests", tests)):
                names = re.findall(r"`([^`]+)`", cell)
                self.assertTrue(names or how_far == "not" or why == "by their successors", row)
                for name in names:
                    self.assertTrue(os.path.isfile(os.path.join(ROOT, folder, name)), f"{name} in {row}")

    def test_how_citations_are_found(self) -> None:
        self.assertEqual(
            cited_in("RFC 5321, 1870,\n3030, and 6152; RFC 2595 §4, spec §18"),
            set(["5321", "1870", "3030", "6152", "2595"]),
        )
        self.assertEqual(cited_in("(RFC 1939 §7, 4096 octets); RFC 6698/7672; RFC822Name"), {"1939", "6698", "7672"})


def modules() -> list[str]:
    """The modules of the package, as paths in the checkout."""
    return [
        os.path.relpath(os.path.join(folder, name), ROOT)
        for folder, _, names in os.walk(os.path.join(ROOT, "qtwist"))
        for name in names
        if name.endswith(".py")
    ]


def cited_in(text: str) -> set[str]:
    """The numbers of the RFCs that a text cites, alone or in a list behind one RFC."""
    lists = re.findall(r"\bRFCs? (\d{3,4}(?:(?:,\s+and\s+|,\s+|\s+and\s+|/)\d{4}\b(?! octets))*)\b", text)
    return {number for one in lists for number in re.findall(r"\d+", one)}

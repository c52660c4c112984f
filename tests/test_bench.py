"""What the benchmarks make of their figures: medians, shares of samples, pictures. Nothing is measured here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from types import FrameType
from unittest import skipIf
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from bench import plots, sampling, stages
from bench.jobs import JOBS
from bench.peers import median

try:
    import matplotlib
except ImportError:
    matplotlib = None  # type: ignore[assignment]

TEXT = "{http://www.w3.org/2000/svg}text"
needs_matplotlib = skipIf(matplotlib is None, "matplotlib is not installed (the extra bench)")


def row(job: str, server: str, variant: int, *rounds: dict[str, float]) -> dict[str, object]:
    return {"job": job, "server": server, "variant": variant, "rounds": list(rounds)}


class MedianTests(SynchronousTestCase):
    def test_rounds_of_several_files_count_together(self) -> None:
        rows = [
            row("local", "postfix", 10, {"msg/s": 1.0}, {"msg/s": 9.0}),
            row("local", "postfix", 10, {"msg/s": 5.0}),
            row("local", "postfix", 1, {"msg/s": 7.0}),
            row("relay", "postfix", 10, {"msg/s": 100.0}),
        ]
        self.assertEqual(plots.medians(rows, "local", "msg/s"), {"postfix": {1: 7.0, 10: 5.0}})

    def test_a_column_that_is_missing_is_no_zero(self) -> None:
        rows = [row("local", "postfix", 1, {"msg/s": 1.0}, {"CPU ms": 2.0}), row("local", "qtwist", 1, {"CPU ms": 3.0})]
        self.assertEqual(plots.medians(rows, "local", "msg/s"), {"postfix": {1: 1.0}})
        self.assertEqual(median([{"CPU ms": 2.0}], "msg/s"), None)
        self.assertEqual(median([{"CPU ms": 2.0}, {}, {"CPU ms": 4.0}], "CPU ms"), 3.0)


class ReadingTests(SynchronousTestCase):
    def written(self, text: str) -> str:
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_rows_of_all_files(self) -> None:
        one, two = row("local", "postfix", 1), row("large", "postfix", 4)
        paths = [self.written(json.dumps([one])), self.written(json.dumps([two]))]
        self.assertEqual(plots.read(paths), [one, two])

    def test_something_else_is_refused_by_name(self) -> None:
        for text in ('{"job": "local"}', '[{"server": "postfix"}]', "[1]"):
            path = self.written(text)
            error = self.assertRaises(ValueError, plots.read, [path])
            self.assertIn(f"{path}: expected a list of jobs", str(error))


class JobTests(SynchronousTestCase):
    def test_what_is_drawn_has_enough_points(self) -> None:
        jobs = {job.name: job for job in JOBS}
        for name in plots.PICTURES.keys() - {"backlog"}:  # bench/backlog.py has its own numbers
            self.assertGreater(len(jobs[name].growth), 5, name)
            self.assertLessEqual(
                {column for column, _ in plots.PICTURES[name].panels}, set(jobs[name].columns), f"columns of {name}"
            )

    def test_issue_7_d(self) -> None:
        """Messages of 1 MiB and of 10 MiB."""
        self.assertEqual(next(job.variants for job in JOBS if job.name == "large"), (1024, 10240))


class StageTests(SynchronousTestCase):
    def test_modules(self) -> None:
        for module, stage in (
            ("-", "reactor, sockets"),
            ("wire/smtp_client", "SMTP client"),
            ("wire/smtp_server", "SMTP server"),
            ("wire/netstring", "between processes"),
            ("queue/pipelining", "between processes"),
            ("queue/journal", "queue"),
            ("control", "other"),
        ):
            self.assertEqual(stages.stage(module), stage, module)

    def test_every_stage_has_a_colour(self) -> None:
        names = {name for _, name in stages.STAGES} | {stages.THREADS, stages.OTHER}
        self.assertEqual(names, set(plots.STAGES))

    def test_samples_weigh_what_they_took(self) -> None:
        lines = ["300\tpolicy/relay\n", "100\tsmtpd/protocol\n", "100\twire/smtp_server\n", "0\tfiles/disk\n"]
        self.assertEqual(stages.shares(lines), {"policies": 0.6, "SMTP server": 0.4})
        self.assertEqual(stages.shares([]), {})

    @given(st.floats(0, 100), st.floats(0, 100), st.lists(st.sampled_from(["-", "policy/x", "mail/y"])))
    def test_nothing_is_lost(self, main: float, threads: float, modules: list[str]) -> None:
        parts = stages.divided(main, threads, stages.shares(f"{100}\t{module}\n" for module in modules))
        self.assertAlmostEqual(sum(parts.values()), main + threads)

    def test_names_of_processes(self) -> None:
        role = ["/usr/bin/python3", "-s", "-m", "qtwist.processes.role", "smtpd", "/home", ""]
        self.assertEqual(stages.name_of(role, 0), "smtpd")
        lspawn = ["/usr/bin/python3", "-I", "-S", "/x/qtwist/local/lspawn.py", "5"]
        self.assertEqual(stages.name_of(lspawn, 0), "lspawn")
        self.assertEqual(stages.name_of(lspawn, 1000), "delivery")
        self.assertEqual(stages.name_of(["/usr/bin/python3", "-c", "code", "--home", "/x"], 0), "supervisor")


class SamplingTests(SynchronousTestCase):
    def frame(self, *paths: str) -> FrameType | None:
        """The innermost frame of code in files of these names, each called by the one before."""
        import sys

        made: Callable[[], object] = sys._getframe
        for path in reversed(paths):
            space: dict[str, Callable[[], object]] = {"inner": made}
            exec(compile("def work(): return inner()", path, "exec"), space)
            made = space["work"]
        found = made()
        assert isinstance(found, FrameType)
        return found

    def test_the_innermost_module_of_ours(self) -> None:
        frame = self.frame("/x/qtwist/processes/role.py", "/y/twisted/tcp.py", "/x/qtwist/smtpd/protocol.py", "/y/z.py")
        self.assertEqual(sampling.module(frame), "smtpd/protocol")

    def test_none_of_ours(self) -> None:
        self.assertEqual(sampling.module(None), "-")

    def test_what_runs_the_reactor_is_not_what_it_is_at(self) -> None:
        space: dict[str, Callable[[], object]] = {}
        exec(compile("import sys\ndef main(): return sys._getframe()", "/x/qtwist/processes/role.py", "exec"), space)
        frame = space["main"]()
        assert isinstance(frame, FrameType)
        self.assertNotEqual(sampling.module(frame), "processes/role")


@needs_matplotlib
class PictureTests(SynchronousTestCase):
    ROWS = [
        *(
            row(job, server, variant, {column: 1.0 + variant for column, _ in picture.panels})
            for job, picture in plots.PICTURES.items()
            for server in ("journaled", "postfix")
            for variant in (0 if job == "backlog" else 1, 10, 1000)
        ),
        {"job": "commands", "server": "postfix", "variant": 500, "rounds": []},
        {
            "job": "stages", "way": "local", "sessions": 10,
            "processes": {"smtpd": {"SMTP server": 0.5, "policies": 0.25}, "auth": {"other": 0.0}},
        },
    ]  # fmt: skip

    _found: dict[str, str] = {}

    def words(self, path: str) -> set[str]:
        return {"".join(text.itertext()) for text in ElementTree.parse(path).iter(TEXT)}

    @property
    def found(self) -> dict[str, str]:
        """All of them, drawn once."""
        if not self._found:
            self._found.update(self.drawn(self.ROWS, "trial run"))
        return self._found

    def drawn(self, rows: list[dict[str, object]], note: str = "") -> dict[str, str]:
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        return {os.path.basename(path): path for path in plots.draw_all(rows, folder, note)}

    def test_all_are_xml_with_words(self) -> None:
        names = {f"performance-{picture.name}.svg" for picture in plots.PICTURES.values()}
        self.assertEqual(set(self.found), names | {"performance-message.svg"})
        self.assertLessEqual(
            {"journaled", "postfix", "1,000", "sessions"}, self.words(self.found["performance-sessions.svg"])
        )
        message = self.words(self.found["performance-message.svg"])
        self.assertLessEqual({"smtpd", "policies", "SMTP server"}, message)
        self.assertNotIn("auth", message)  # it did nothing

    def test_the_same_figures_make_the_same_file(self) -> None:
        again = self.drawn(self.ROWS, "trial run")
        for name, path in self.found.items():
            with open(path, "rb") as one, open(again[name], "rb") as other:
                self.assertEqual(one.read(), other.read(), name)

    def test_small(self) -> None:
        for name, path in self.found.items():
            self.assertLess(os.path.getsize(path), 60_000, name)

    def test_a_note_is_shown(self) -> None:
        for name, path in self.found.items():
            self.assertTrue(any("trial run" in text for text in self.words(path)), name)

    def test_one_variant_is_no_curve(self) -> None:
        self.assertEqual(self.drawn([row("local", "postfix", 10, {"msg/s": 1.0, "CPU ms": 2.0})]), {})

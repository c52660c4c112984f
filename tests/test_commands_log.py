"""`qtwist log why` and `qtwist log trace` (doc/policies.md; issue 8 items 1 and 3)."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands import log
from qtwist.commands.log_reading import Follower, Record, relevant
from qtwist.policy.standard import STANDARD
from tests.command_tools import CHECKOUT

A, B = "a" * 16, "b" * 16


def event(text: str, **fields: object) -> bytes:
    return json.dumps({"time": 1792983845.5, "level": "info", "text": text, **fields}).encode() + b"\n"


EVENTS = [
    event(f"{A}: RCPT answered 553 no rule=badrcptto (x in control/badrcptto)", id=A, ip="192.0.2.9", rule="badrcptto",
          recipient="joe@mx.test", sender="a@b.test"),
    event(f"{B}: accepted message 4711 qp 4711 from <c@d.test>", id=B, ip="192.0.2.90", number=4711),
    event("new message", number=4711, sender="c@d.test"),
    event("starting delivery", number=4711, delivery=7, recipient="ann@mx.test"),
    event("starting delivery", number=47, delivery=8, recipient="tom@mx.test"),
    event("delivery", delivery=7, outcome="success", report="did 1+0+0"),
    event("delivery", delivery=8, outcome="failure", report="no"),
    event("end of message", number=4711),
]  # fmt: skip


class WithLogs(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = self.mktemp()
        os.makedirs(os.path.join(self.home, "log"))
        os.mkdir(os.path.join(self.home, "control"))
        self.path = os.path.join(self.home, "log", "events")

    def put(self, lines: list[bytes]) -> None:
        with open(self.path, "wb") as file:
            file.write(b"".join(lines))

    def run_log(self, *arguments: str) -> tuple[int, str, str]:
        output, errors = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", output)
        self.patch(sys, "stderr", errors)
        code = log.main([arguments[0], "--home", self.home, *arguments[1:]])
        return code, output.getvalue(), errors.getvalue()


class Why(WithLogs):
    def test_a_refusal_explained(self) -> None:
        self.put(EVENTS)
        for what in ("192.0.2.9", "joe@mx.test", "A@B.test", A):
            code, output, _ = self.run_log("why", what)
            self.assertEqual(code, 0)
            self.assertIn(f"connection {A}\n", output)
            self.assertIn("RCPT answered 553 no rule=badrcptto (x in control/badrcptto)\n", output)
            self.assertIn("badrcptto: control/badrcptto or control/badmailto lists the recipient.", output)
            self.assertNotIn(B, output)

    def test_a_message_from_its_connection_to_its_end(self) -> None:
        for what in ("4711", "ann@mx.test", "192.0.2.90", "c@d.test"):
            texts = [record.text for record in relevant(EVENTS, what)]
            self.assertEqual(
                texts,
                ["accepted message 4711 qp 4711 from <c@d.test>", "new message", "starting delivery", "delivery",
                 "end of message"], what,
            )  # fmt: skip

    def test_counted(self) -> None:
        text = f"2026 [qtwist.smtpd#info] {A}: connection answered 421 too many rule=limits (x) ip=192.0.2.9\n".encode()
        self.put([*EVENTS, text, text, text, event(f"{A}: message answered 451 no", id=A)])
        code, output, _ = self.run_log("count")
        counted = [line.split(None, 2) for line in output.splitlines()]
        self.assertEqual(counted, [["3", "421", "limits"], ["1", "451", "(no rule)"], ["1", "553", "badrcptto"]])
        self.assertEqual(code, 0)

    def test_nothing_and_no_file(self) -> None:
        self.assertEqual(self.run_log("why", "x")[0], 111)
        self.put(EVENTS)
        code, _, errors = self.run_log("why", "nobody@nowhere.test")
        self.assertEqual((code, errors.count("nothing about")), (100, 1))
        self.assertEqual(self.run_log("why")[0], 100)

    def test_text_logs(self) -> None:
        """twistd's log, and a directory of multilog's."""
        lines = [
            b"2026-11-23T06:00:00+0000 [qtwist.smtpd#info] "
            + A.encode()
            + b": connection answered 421 ip=192.0.2.9 rule=limits",
            b"2026-11-23T06:00:01+0000 [qtwist.smtpd#info] " + A.encode() + b": timeout",
            b"2026-11-23T06:00:01+0000 [qtwist.smtpd#info] " + B.encode() + b": timeout",
        ]  # fmt: skip
        directory = os.path.join(self.home, "log", "multilog")
        os.mkdir(directory)
        for name, part in (("@400000006502f0542117cf34.s", lines[:1]), ("current", lines[1:])):
            with open(os.path.join(directory, name), "wb") as file:
                file.writelines(b"@400000006502f0542117cf34 " + line + b"\n" for line in part)
        code, output, _ = self.run_log("why", "--log", directory, "192.0.2.9")
        self.assertEqual((code, output.count("  limits: The client"), output.count(B)), (0, 1, 0))
        self.assertIn(": timeout", output)

    def test_nothing_in_a_log_reaches_the_terminal_raw(self) -> None:
        self.put([event("\x1b[2J joe@mx.test \x07", id="\x1b", rule="x")])
        self.assertNotIn("\x1b", self.run_log("why", "joe@mx.test")[1])

    @given(st.binary(max_size=60))
    def test_any_line(self, line: bytes) -> None:
        record = Record.parse(line)
        record.is_about("x"), record.is_trace_of("192.0.2.0/24"), record.rule, record.connection

    @given(st.recursive(st.none() | st.floats() | st.text(max_size=5), lambda inner: st.dictionaries(
        st.sampled_from(["time", "text", "id", "number", "ip", "rule"]), inner, max_size=4), max_leaves=6))  # fmt: skip
    def test_any_json(self, value: object) -> None:
        relevant([json.dumps(value).encode()], "x")

    def test_every_rule_is_explained(self) -> None:
        """By the command, and by a section of doc/policies.md."""
        with open(os.path.join(CHECKOUT, "doc", "policies.md"), encoding="utf-8") as file:
            page = file.read()
        for name in (*STANDARD, "tcprules", "limits"):
            self.assertIn(name, log.RULES)
            self.assertIn(f"\n## {name}\n", page)


class Traced(WithLogs):
    def options(self, what: str) -> argparse.Namespace:
        return argparse.Namespace(home=self.home, log=None, what=what, stop=False)

    def control(self) -> bytes:
        with open(os.path.join(self.home, "control", "trace"), "rb") as file:
            return file.read()

    def test_follows_and_cleans_up(self) -> None:
        with open(os.path.join(self.home, "control", "trace"), "w", encoding="ascii") as file:
            file.write("198.51.100.1\n")
        self.put([event("old", ip="192.0.2.9", direction="<", line="OLD")])
        rounds: list[bytes] = []

        def pause() -> None:
            rounds.append(self.control())
            if len(rounds) == 3:
                raise KeyboardInterrupt
            if len(rounds) == 2:
                os.rename(self.path, self.path + ".old")
            with open(self.path, "ab") as file:
                file.write(event(f"{A}: 192.0.2.9 < NOOP {len(rounds)}", id=A, ip="192.0.2.9", direction="<"))
                file.write(event(f"{B}: 198.51.100.1 < NOOP", id=B, ip="198.51.100.1", direction="<"))
                file.write(f"2026 [qtwist.trace#info] {A}: 192.0.2.9 > 250 ok\n".encode())

        output = io.StringIO()
        self.patch(sys, "stdout", output)
        self.patch(sys, "stderr", io.StringIO())
        self.assertRaises(KeyboardInterrupt, log.trace, self.options("192.0.2.0/24"), pause)
        self.assertEqual(rounds, [b"198.51.100.1\n192.0.2.0/24\n"] * 3)
        self.assertEqual(self.control(), b"198.51.100.1\n")
        lines = output.getvalue().splitlines()
        said = ["192.0.2.9 < NOOP 1", "192.0.2.9 > 250 ok", "192.0.2.9 < NOOP 2", "192.0.2.9 > 250 ok"]
        self.assertEqual(lines, said)

    def test_left_behind(self) -> None:
        with open(os.path.join(self.home, "control", "trace"), "w", encoding="ascii") as file:
            file.write("192.0.2.9\n198.51.100.1\n")
        self.assertEqual(self.run_log("trace", "--stop", "192.0.2.9")[0], 0)
        self.assertEqual(self.control(), b"198.51.100.1\n")

    def test_wrong_use(self) -> None:
        self.put([])
        self.assertEqual(self.run_log("trace", "everybody")[0], 100)
        os.unlink(self.path)
        self.assertEqual(self.run_log("trace", "192.0.2.9")[0], 111)
        self.assertFalse(os.path.exists(os.path.join(self.home, "control", "trace")))

    def test_a_file_that_begins_anew(self) -> None:
        self.put([event("x")] * 3)
        follower = Follower(self.path)
        self.put([event("y")])
        self.assertEqual([record.text for record in (*follower.new(), *follower.new())], ["y"])

"""How control files name services that look at messages (doc/content.md)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control_checks import service
from qtwist.control_services import Service, parse_service


class ServiceTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        """As Postfix and Sendmail write them."""
        for line, wanted in (
            ("/run/clamd.sock", "/run/clamd.sock"),
            ("unix:/run/x", "/run/x"),
            ("local:/run/x", "/run/x"),
            ("127.0.0.1:11333", "127.0.0.1:11333"),
            ("inet:scanner.test:8891", "scanner.test:8891"),
            ("inet:8891@scanner.test", "scanner.test:8891"),
            ("[::1]:8891", "[::1]:8891"),
            ("inet6:8891@[2001:db8::1]", "[2001:db8::1]:8891"),
        ):
            self.assertEqual(parse_service(line, 30).name, wanted)
            self.assertIsNone(service(line.encode()))

    def test_options(self) -> None:
        self.assertEqual(parse_service("/x", 30), Service("/x", "", 0, "tempfail", 30))
        self.assertEqual(parse_service("h:1 accept timeout=5", 30), Service(None, "h", 1, "accept", 5))
        self.assertEqual(parse_service("/x\ttimeout=5  reject", 30), Service("/x", "", 0, "reject", 5))

    def test_wrong(self) -> None:
        for line, why in (
            ("", "nothing is neither the path of a socket nor HOST:PORT"),
            ("run/x", "run/x is neither"),
            ("host", "host is neither"),
            ("host:0", "neither"),
            ("host:65536", "neither"),
            ("::1:25", "neither"),
            ("/x maybe", "maybe is neither tempfail, accept, reject nor timeout=SECONDS"),
            ("/x timeout=0", "neither"),
            ("/x timeout=", "neither"),
        ):
            error = self.assertRaises(ValueError, parse_service, line, 30)
            self.assertIn(why, str(error))
            self.assertIn(why, str(service(line.encode())))

    @given(st.text(max_size=60))
    def test_any_text(self, text: str) -> None:
        try:
            found = parse_service(text, 30)
        except ValueError:
            return
        self.assertTrue((found.path or "").startswith("/") or (found.host and 0 < found.port < 65536))

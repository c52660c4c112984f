"""`qtwist doctor`: what it finds in a good home, and in homes that lack something (issue 9 item 5)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import Control
from qtwist.doctor import checks
from qtwist.doctor.checks import Case, examine, records
from qtwist.interfaces import Answer, DNSTemporaryError
from tests.certificates import Authority
from tests.command_tools import CHECKOUT
from tests.test_remote_hosts import FakeResolver
from tests.test_tls_servers import Files

HERE = "203.0.113.5"  # said to be public in the tests


class Resolver(FakeResolver):
    """Knows PTR records, too."""

    def __init__(self) -> None:
        super().__init__(
            {
                b"example.org": [(10, b"mx.example.org")],
                b"gmail.test": [(20, b"mx2.gmail.test"), (5, b"mx1.gmail.test")],
            },
            {
                b"mx.example.org": [HERE],
                b"mx1.gmail.test": ["2001:db8::1", "192.0.2.7"],
                b"mx2.gmail.test": ["192.0.2.8"],
            },
        )
        self.names: dict[bytes, Any] = {HERE.encode(): [b"mx.example.org"]}

    def ptr(self, address: str) -> Deferred[Answer]:
        return self._answer("ptr", self.names, address.encode())


class DoctorTests(SynchronousTestCase):
    authority = Authority()

    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        self.files = Files(os.path.join(self.home, "control"))
        self.files.put("me", "mx.example.org\n")
        self.files.put("rcpthosts", "example.org\n")
        self.files.put("locals", "example.org\n")
        self.files.put("servercert.pem", self.authority.certify("mx.example.org", days=60))
        self.resolver = Resolver()
        self.reachable = {"192.0.2.7"}
        self.own = [HERE, "127.0.0.1", "::1", "10.0.0.1"]
        self.patch(Case, "public", property(lambda case: [HERE] if HERE in case.own else []))

    def case(self) -> Case:
        return Case(
            self.home,
            Control(self.files.path),
            self.resolver,
            self.own,
            lambda address: succeed(address in self.reachable),
            b"gmail.test",
            time.time(),
        )

    def look(self) -> list[str]:
        """All findings but those about the clock, with their levels."""

        async def gather() -> list[str]:
            return [f"{finding.level} {finding.text}" async for finding in examine(self.case())]

        found = self.successResultOf(Deferred.fromCoroutine(gather()))
        return [line.replace(self.home, "HOME") for line in found if " clock: " not in line]

    def trouble(self) -> list[str]:
        return [line for line in self.look() if not line.startswith("ok ")]

    def test_lists_of_other_servers(self) -> None:
        """A line that means something else here than its writer may have thought."""
        self.files.put("badmailfrom", "spam.test\nnobody\n@spam.test\n.spam.test\n*.spam.test\n!.good.test\n")
        self.assertEqual(
            self.trouble(), ["warn control/badmailfrom: spam.test is no domain there: @spam.test would be"]
        )
        self.files.put("badmailfrom", "^.*@spam.test$\n")
        line = self.trouble()[0]
        self.assertTrue(line.startswith("BAD ") and "badmailfrom, line 1" in line, line)
        self.assertIn("regular expression", line)

    def test_all_is_well(self) -> None:
        found = self.look()
        self.assertEqual([line for line in found if not line.startswith("ok ")], [])
        self.assertEqual(
            [line for line in found if "certificate" not in line],
            [
                "ok control files: nothing wrong",
                "ok control/me: mx.example.org leads to this host",
                "ok control/helohost: mx.example.org leads to this host",
                f"ok {HERE}: its PTR record mx.example.org leads back to it",
                "ok example.org: mail goes to mx.example.org, which is this host",
                "ok port 25 of 192.0.2.7 (gmail.test) can be reached",
                "ok relaying: a stranger is refused",
                "ok permissions: nothing wrong",
            ],
        )

    def test_names(self) -> None:
        self.files.put("helohost", "localhost\n")
        self.resolver._addresses[b"mx.example.org"] = ["192.0.2.200"]
        found = self.trouble()
        self.assertIn("BAD control/helohost: 'localhost' is no full host name, such as mx.example.org", found)
        self.assertIn(
            "warn control/me: mx.example.org leads to 192.0.2.200, none of this host's (right behind NAT only)", found
        )
        self.assertIn(f"BAD {HERE}: its PTR record mx.example.org does not lead back to it", found)
        self.resolver._addresses[b"mx.example.org"] = []
        self.resolver.names.clear()
        found = self.trouble()
        self.assertIn("BAD control/me: mx.example.org has no address in the DNS", found)
        self.assertIn(f"BAD {HERE} has no PTR record: many hosts refuse mail from there", found)
        self.own = ["10.0.0.1"]
        self.assertIn("warn this host has no public address of its own", "\n".join(self.trouble()))

    def test_exchangers(self) -> None:
        self.resolver._mx[b"example.org"] = [(10, b"mx1.gmail.test"), (20, b"mx.example.org")]
        self.files.put("rcpthosts", "example.org\nother.test\n.pattern.test\n")
        self.assertEqual(
            self.trouble(),
            [
                "warn example.org: its best mail exchanger is mx1.gmail.test, not this host",
                "BAD other.test: no MX record, and its address is not this host's",
            ],
        )

    def test_port_25(self) -> None:
        self.reachable.clear()
        [line] = self.trouble()
        self.assertEqual(
            line, "BAD port 25 of gmail.test cannot be reached: does the provider of this host let mail out?"
        )

    def test_no_dns(self) -> None:
        """A check that cannot be made says so; the others go on."""
        self.resolver._mx[b"example.org"] = DNSTemporaryError("timeout")
        self.assertEqual(self.trouble(), ["BAD exchangers: the DNS gives no answer (timeout)"])

    def test_certificates(self) -> None:
        path, two = "HOME/control/servercert.pem", "HOME/control/servercerts/two.test/servercert.pem"
        for pem, wanted in (
            (self.authority.certify("mx.example.org", days=-1), f"BAD {path}: the certificate expired on "),
            (self.authority.certify("mx.example.org", days=13), f"warn {path}: the certificate expires on "),
            (
                self.authority.certify("a.test", "b.test"),
                f"warn {path}: the certificate is for a.test, b.test, not for mx.",
            ),
            (b"nothing", f"BAD {path}: found no certificate that can be read"),
        ):
            self.files.put("servercert.pem", pem)
            found = [line for line in self.trouble() if "control files" not in line]
            self.assertTrue(any(line.startswith(wanted) for line in found), (wanted, found))
        self.files.put("servercert.pem", self.authority.certify("*.example.org"))
        self.files.put("servercerts/two.test/servercert.pem", self.authority.certify("three.test"))
        self.assertEqual(
            self.trouble(),
            [f"warn {two}: the certificate is for three.test, not for two.test"],
        )
        self.files.remove("servercert.pem")
        os.chmod(os.path.join(self.files.path, "servercerts/two.test/servercert.pem"), 0o644)
        found = "\n".join(self.trouble())
        self.assertIn("warn control/servercert.pem: no certificate, so there is no TLS", found)
        self.assertIn(f"BAD {two}: everybody may read the private key", found)

    def test_relaying(self) -> None:
        """Networks that are too wide, a domain that is not ours; user%host leads nowhere."""
        for name, text, good in (
            ("relayclients", "0.0.0.0/0\n", ""),
            ("rcpthosts", "example.org\nelsewhere.example\n", "example.org\n"),
        ):
            self.files.put(name, text)
            self.assertIn("BAD open relay: a stranger may send to joe@elsewhere.example", "\n".join(self.trouble()))
            self.files.put(name, good)
        self.files.put("percenthack", "example.org\n")
        self.assertEqual(self.trouble(), [])

    def test_permissions(self) -> None:
        os.mkdir(os.path.join(self.home, "users"))
        with open(os.path.join(self.home, "users", "credentials"), "w"):
            os.chmod(os.path.join(self.home, "users", "credentials"), 0o644)
        os.chmod(self.files.path, 0o777)
        self.assertEqual(
            self.trouble(),
            [
                "BAD HOME/control may be written by everybody (mode 777)",
                "BAD HOME/users/credentials has passwords, and may be read by others than its owner (mode 644)",
            ],
        )

    def test_clock(self) -> None:
        """What the kernel says; nothing where it does not say."""

        async def gather() -> list[str]:
            return [finding.level async for finding in checks.clock(self.case())]

        self.assertLessEqual(set(self.successResultOf(Deferred.fromCoroutine(gather()))), {"ok", "warn"})

    def test_records(self) -> None:
        self.assertEqual(
            list(records(self.case(), "3 1 1 ab")),
            [
                f"mx.example.org. A {HERE}",
                "5.113.0.203.in-addr.arpa. PTR mx.example.org.    ; at the provider of the address",
                "example.org. MX 10 mx.example.org.",
                'example.org. TXT "v=spf1 mx -all"',
                '_dmarc.example.org. TXT "v=DMARC1; p=none; rua=mailto:postmaster@example.org"',
                '_smtp._tls.example.org. TXT "v=TLSRPTv1; rua=mailto:postmaster@example.org"',
                "_25._tcp.mx.example.org. TLSA 3 1 1 ab    ; in a signed zone only; it changes with the key",
            ],
        )


class CommandTests(SynchronousTestCase):
    def test_as_a_process(self) -> None:
        """With a name server that does not answer: it says so, and prints what it knows."""
        home = os.path.abspath(self.mktemp())
        files = Files(os.path.join(home, "control"))
        files.put("me", "mx.example.org\n")
        files.put("dnsservers", "127.0.0.1:9\n")
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from qtwist.commands.qtwist import main; sys.exit(main())",
                "doctor",
                home,
            ],
            cwd=CHECKOUT,
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )
        self.assertEqual((done.returncode, done.stderr), (100, ""))
        self.assertRegex(done.stdout, r"BAD  names: the DNS gives no answer")
        self.assertIn("ok   relaying: a stranger is refused", done.stdout)
        self.assertIn("\nDNS records to publish:\n\nmx.example.org. A", done.stdout)

"""Wherever domains are compared, U-labels and A-labels are the same domain (RFC 5890 §2.3.2.4; doc/rfc.md)."""

from __future__ import annotations

import os
from base64 import b64encode
from itertools import product

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth.addresses import Addresses
from qtwist.auth.credentials import credentials_of
from qtwist.auth.mailboxes import Mailboxes
from qtwist.auth.store import CredentialStore
from qtwist.control import Control
from qtwist.dns.names import canonical
from qtwist.files.tcprules import Rules, compile_rules
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.holds import DESTINATION, SENDER, Hold, Holds
from qtwist.mail.relay_limits import parse_all, rates_of
from qtwist.remote.routes import find_route
from qtwist.remote.tlsseen import SeenTLS
from qtwist.tls.clients import NO_TLS, ClientTLS
from qtwist.wire.sasl import Certificate
from tests.auth_tools import MailHome
from tests.policy_tools import PolicyCase, codes
from tests.test_send_steering import LATER, SteeringCase
from tests.test_smtpd import NOW
from tests.test_smtpd_etrn import Asking, EtrnCase
from tests.test_submission import FAR, SubmissionCase

U, A = "bücher.example".encode(), b"xn--bcher-kva.example"
BOTH = (U, A)
PAIRS = tuple(product(BOTH, BOTH))


def text(octets: bytes) -> str:
    return octets.decode("utf-8")


class Receiving(PolicyCase):
    """What SMTP servers ask their lists."""

    def last(self, *lines: bytes, host: str = "192.0.2.9") -> int:
        return codes(self.dialogue(*lines, host=host))[-1]

    def put(self, name: str, content: str) -> None:
        with open(os.path.join(self.directory, name), "w", encoding="utf-8") as file:
            file.write(content)

    def test_recipients(self) -> None:
        """rcpthosts, and locals where there is none."""
        for name, (listed, said) in product(("rcpthosts", "locals"), PAIRS):
            self.put("rcpthosts", "mx.test\n")
            if name == "locals":
                os.remove(os.path.join(self.directory, "rcpthosts"))
            self.put(name, text(listed) + "\n")
            self.assertEqual(self.last(b"MAIL FROM:<a@b.test>", b"RCPT TO:<joe@" + said + b">"), 250, (name, said))

    def test_bad_ones(self) -> None:
        """badmailfrom, badrcptto, badhelo."""
        self.put("rcpthosts", text(U) + "\nmx.test\n")
        for listed, said in PAIRS:
            self.put("badmailfrom", "@" + text(listed) + "\n")
            sender = b"MAIL FROM:<a@" + said + b">"
            self.assertEqual(self.last(sender, b"RCPT TO:<joe@mx.test>"), 553)
            self.put("badmailfrom", "")
            self.put("badrcptto", "joe@" + text(listed) + "\n")
            self.assertEqual(self.last(b"MAIL FROM:<a@b.test>", b"RCPT TO:<joe@" + said + b">"), 553)
            self.put("badrcptto", "")
            self.put("badhelo", text(listed) + "\n")
            self.assertEqual(self.last(b"HELO " + said, b"MAIL FROM:<a@b.test>", b"RCPT TO:<joe@mx.test>") // 100, 5)
            self.put("badhelo", "")

    def test_greylisting(self) -> None:
        """Who comes again in the other spelling is no stranger; digits of the local part do not count, as ever."""
        self.put("rcpthosts", text(U) + "\n")
        self.put("greylisting", "block_expire 10\n")
        server = self.factory()
        time = NOW
        server.surroundings.now = lambda: time

        def tried(sender: bytes, recipient: bytes) -> int:
            lines = (b"MAIL FROM:<" + sender + b">", b"RCPT TO:<" + recipient + b">")
            return codes(self.dialogue(*lines, host="192.0.2.9", factory=server))[-1]

        self.assertEqual(tried(b"list-1@" + U, b"joe@" + A), 451)
        time += 601
        self.assertEqual(tried(b"list-22@" + A, b"Joe@" + U), 250)
        self.assertEqual(tried(b"other@" + A, b"joe@" + U), 451)

    def test_rules_by_name(self) -> None:
        """tcp.smtp: a client's name comes from the DNS, in A-labels."""
        for listed in BOTH:
            lines = (b"=mail.%b:deny", b'=.%b:allow,X="1"', b"joe@=%b:deny")
            rules = Rules(compile_rules(b"\n".join(line % listed for line in lines)))
            self.assertFalse(rules.find(b"192.0.2.1", b"mail." + A).allow, listed)
            self.assertFalse(rules.find(b"192.0.2.1", A, b"joe").allow, listed)
            self.assertEqual(rules.find(b"192.0.2.1", b"b." + A).variables, (b"X=1",), listed)


class Submitting(SubmissionCase):
    def put(self, name: str, content: str) -> None:
        with open(os.path.join(self.directory, name), "w", encoding="utf-8") as file:
            file.write(content)

    def test_further_senders(self) -> None:
        client = self.logged_in()
        for listed, said in PAIRS:
            for line in ("tim:boss@" + text(listed), "tim:@" + text(listed)):
                self.put("submissionsenders", line + "\n")
                got = client.codes(b"RSET", b"MAIL FROM:<Boss@" + said + b">", b"RSET", b"MAIL FROM:<boss@x.test>")
                self.assertEqual(got, [250, 250, 250, 553], (line, said))

    def test_own_sender(self) -> None:
        """An own address, in all spellings of a domain that is ours."""
        self.put("locals", text(U) + "\n")
        client = self.logged_in()
        for said in BOTH:
            self.assertEqual(client.codes(b"MAIL FROM:<tim-x@" + said + b">", FAR, b"RSET"), [250, 250, 250])

    def test_guessing(self) -> None:
        """Another spelling is no other name, from wherever: each failure makes the next answer come later."""
        for number, said in enumerate((U, A, U)):
            client = self.greeted(host=f"127.0.{number}.1")
            client.say(b"AUTH PLAIN " + b64encode(b"\0joe@" + said + b"\0x"))
            self.clock.advance(2**number - 0.01)
            self.assertEqual(client.replies(), [], number)
            self.clock.advance(0.02)
            self.assertEqual(client.replies()[0][:3], b"535", number)

    def test_rates(self) -> None:
        """control/relaylimits."""
        for listed, said in PAIRS:
            for who in (b"joe@", b"@"):
                limits = parse_all([who + listed + b":3/30"])
                self.assertEqual(len(rates_of(limits, b"Joe@" + said)), 1, (who, listed, said))


class LoggingIn(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)

    def test_names(self) -> None:
        """The store and the name that is said: in a domain of ours, and in one that is not delivered here."""
        for listed, said in PAIRS:
            self.home.write("control/locals", listed + b"\n")
            self.assertEqual(Mailboxes(self.home.path).names(b"Joe@" + said)[-1], b"joe")
            path = self.mktemp()
            with open(path, "wb") as file:
                file.write(b"joe@" + listed + b":{PLAIN}x\n")
            os.chmod(path, 0o600)
            store = CredentialStore(path)
            self.home.write("control/locals", b"mx.test\n")
            [name] = Mailboxes(self.home.path).names(b"Joe@" + said)
            self.assertEqual(store.get(name), b"{PLAIN}x", (listed, said))
            store.set(b"joe@" + said, b"{PLAIN}y")
            self.assertEqual(list(store.entries().values()), [b"{PLAIN}y"])
            self.assertTrue(store.upgrade(name, b"{PLAIN}y", b"{PLAIN}z"))
            self.assertTrue(store.delete(b"joe@" + said))
            self.assertEqual(store.entries(), {})

    def test_certificate(self) -> None:
        """EXTERNAL: who the client wants to be, and the address in its certificate."""
        for shown, said in PAIRS:
            self.assertIsNotNone(credentials_of(Certificate(b"joe@" + said), [b"Joe@" + shown]))

    def test_own_address(self) -> None:
        """A login that gets no mail here has its own address."""
        addresses = Addresses(self.home.path, self.home.accounts.get)
        self.home.write("control/locals", b"mx.test\n")
        for login, address in PAIRS:
            self.assertTrue(addresses.owns(b"joe@" + login, b"Joe@" + address))
            self.assertFalse(addresses.owns(b"joe@" + login, b"jim@" + address))


class Turning(EtrnCase):
    def put(self, name: str, content: str) -> None:
        with open(os.path.join(self.directory, name), "w", encoding="utf-8") as file:
            file.write(content)

    def test_etrn(self) -> None:
        """The queue manager is asked for the domain in A-labels."""
        for listed, said in PAIRS:
            self.put("etrnclients", f"{text(listed)}:10.0.0.9\n")
            client = self.made()
            self.assertEqual(client.codes(b"ETRN " + said), [253], (listed, said))
            self.assertEqual(client.protocol.factory.asked, [A])  # type: ignore[attr-defined]

    def test_autoturn(self) -> None:
        for listed in BOTH:
            self.put("autoturn", f"{text(listed)}:10.0.0.9\n")
            client = self.made()
            client.hang_up()
            factory = client.protocol.factory
            assert isinstance(factory, Asking)
            self.assertEqual(factory.asked, [A])


class Keeping(SteeringCase):
    def test_flush(self) -> None:
        """Both spellings of waiting mail, by either."""
        self.start()
        for domain in BOTH:
            self.remote.answers[b"a@" + domain] = LATER
            self.queue.send(b"ann@x.test", b"a@" + domain)
        self.go()
        found: Deferred[int] = Deferred.fromCoroutine(self.steering.flush(U))
        self.assertEqual(self.successResultOf(found), 2)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.steering.flush(A))), -1)

    def test_holds(self) -> None:
        for held, said in PAIRS:
            for value in (held, b"@" + held, b"joe@" + held):
                self.assertIsNotNone(Holds([Hold.make(SENDER, value)]).of_message(1, 1, b"Joe@" + said))
                self.assertIsNotNone(Holds([Hold.make(DESTINATION, value)]).of_recipient(b"Joe@" + said))
                self.assertIn(Hold.make(SENDER, value), Holds([Hold.make(SENDER, value.replace(held, said))]))


class Sending(SynchronousTestCase):
    def test_routes(self) -> None:
        """smtproutes, qmtproutes, authsenders."""
        none = ConstantMap()
        for listed, said in PAIRS:
            lines = ConstantMap.colon([listed + b":relay.test"])
            self.assertEqual(find_route(lines, none, said).relay.host, b"relay.test")
            self.assertEqual(find_route(none, lines, said).qmtp_port, 209)
            below = ConstantMap.colon([b"." + listed + b":relay.test"])
            self.assertEqual(find_route(below, none, b"a." + said).relay.host, b"relay.test")
            for sender in (b"joe@" + listed, b"@" + listed):
                senders = ConstantMap.colon([sender + b":relay.test|u|p"])
                route = find_route(none, none, b"far.test", senders, b"Joe@" + said)
                self.assertEqual(route.relay.host, b"relay.test")

    def test_relay(self) -> None:
        """The name of a relay: what the DNS is asked, and what its certificate must be for, is in A-labels."""
        for relay in BOTH:
            for value in (relay, relay + b":587", b"[" + relay + b"]"):
                lines = ConstantMap.colon([b"far.test:" + value])
                self.assertEqual(find_route(lines, ConstantMap(), b"far.test").relay.host, A, value)

    def test_dns(self) -> None:
        for domain in BOTH:
            self.assertEqual(canonical(domain), A)

    def test_hosts_of_tls(self) -> None:
        """tlshosts/ and notlshosts/: files are called by either."""
        directory = self.mktemp()
        for folder in ("tlshosts", "notlshosts"):
            os.makedirs(os.path.join(directory, folder))
        tls = ClientTLS(Control(directory))
        for called, host in PAIRS:
            self.assertFalse(tls.demand(text(host)).verified)
            path = os.path.join(directory, "tlshosts", text(called) + ".pem")
            with open(path, "wb"):
                pass
            self.assertTrue(tls.demand(text(host)).verified, (called, host))
            os.remove(path)
            path = os.path.join(directory, "notlshosts", text(called))
            with open(path, "wb"):
                pass
            self.assertIs(tls.demand(text(host)), NO_TLS)
            os.remove(path)

    def test_memory_of_tls(self) -> None:
        for seen, said in PAIRS:
            memory = SeenTLS(self.mktemp(), lambda: NOW)
            memory.good(seen)
            self.assertTrue(memory.demands(said))

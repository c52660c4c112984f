"""AUTH on a transport: authenticator, policies, who may relay, Received (RFC 3848, 4954; spec/related.md §14.3)."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred

from qtwist.auth.authenticator import Authenticator
from qtwist.auth.checkers import StoreChecker
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.passwords import Passwords
from qtwist.auth.realm import MailRealm
from qtwist.auth.scram import ScramKeys
from qtwist.policy import Policy, Reply, Session, refuse
from qtwist.smtpd.factory import SMTPFactory
from qtwist.tls.info import ClientCertificate, TLSInfo
from tests.auth_tools import AtOnce, MailHome, cheap
from tests.scram_client import ScramClient
from tests.test_auth_login import Events
from tests.test_smtpd import Client, WithFactory

TIM = b64encode(b"\0tim\0tanstaaf")
WRONG = b64encode(b"\0tim\0guess")
HERE = "127.0.0.1"


class AuthCase(WithFactory):
    """A home with tim in it, and a factory whose authenticator knows that home's store."""

    def setUp(self) -> None:
        super().setUp()
        self.home = MailHome(self)
        self.home.account(b"tim")
        self.home.store.set(b"tim", cheap(b"tanstaaf"))
        self.logouts = 0
        checker = StoreChecker(Passwords(self.home.store), self.home.mailboxes, AtOnce())  # type: ignore[arg-type]
        self.authenticator = Authenticator(Portal(MailRealm(), [checker]), self.clock)
        self.events = Events(self)

    def factory(self, *policies: Policy, kind: type[SMTPFactory] = SMTPFactory) -> SMTPFactory:
        factory = super().factory(*policies, kind=kind)
        factory.authenticator = self.authenticator
        return factory

    def greeted(self, *policies: Policy, host: str = HERE) -> Client:
        client = self.client(*policies, host=host)
        client.say(b"EHLO client")
        return client


class Logins(AuthCase):
    def test_session(self) -> None:
        """Who has logged in may send to anywhere; the message says so, and so does the log."""
        client = self.greeted()
        self.assertEqual(client.codes(b"MAIL FROM:<tim@x.test>", b"RCPT TO:<joe@far.test>"), [250, 553])
        self.assertEqual(client.codes(b"RSET", b"AUTH PLAIN " + TIM), [250, 235])
        self.assertEqual(client.protocol.session.user, b"tim")
        self.assertEqual(
            client.codes(b"MAIL FROM:<tim@x.test>", b"RCPT TO:<joe@far.test>", b"DATA", b"x", b"."),
            [250, 250, 354, 250],
        )
        [message] = self.queue.messages
        self.assertIn(b"(HELO client) (tim@127.0.0.1)\n  by 10.0.0.1 with ESMTPA; ", message.data)
        text = self.events.text()
        self.assertIn("PLAIN", text)
        self.assertIn("login tim", text)
        self.assertNotIn("tanstaaf", text)

    def test_over_tls(self) -> None:
        """RFC 3848: ESMTPSA."""
        session = Session("1", user=b"tim", tls=TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
        self.assertIn(b" with ESMTPSA (TLS_AES_256_GCM_SHA384 encrypted); ", session.received(b"SMTP", 0))

    def test_offered(self) -> None:
        """To this host, or with control/plaintextauth; where somebody can log in; by control/smtpauth."""

        def offers(host: str = HERE) -> bool:
            return b"250 AUTH PLAIN LOGIN" in self.client(host=host).say(b"EHLO client")

        self.assertTrue(offers())
        self.assertFalse(offers("192.0.2.1"))
        self.assertEqual(self.greeted(host="192.0.2.1").codes(b"AUTH PLAIN " + TIM), [538])
        self.put("plaintextauth", "1\n")
        self.assertTrue(offers("192.0.2.1"))
        self.put("smtpauth", "0\n")
        self.assertFalse(offers())
        self.assertEqual(self.greeted().codes(b"AUTH PLAIN " + TIM), [502])
        self.put("smtpauth", "1\n")
        self.home.store.delete(b"tim")
        self.assertFalse(offers())

    def test_offered_where_it_is_encrypted(self) -> None:
        """Wherever the client is, and though control/plaintextauth says nothing."""
        client = self.client(host="192.0.2.1")
        client.protocol._engine.secured = True  # as after a handshake, which a transport in memory lacks
        self.assertEqual(client.say(b"EHLO client")[-1], b"250 AUTH PLAIN LOGIN")
        self.assertEqual(client.codes(b"AUTH PLAIN " + TIM), [235])

    def test_what_the_store_has(self) -> None:
        """A mechanism is offered when it works for everybody."""

        def offered() -> bytes:
            return self.client(host=HERE).say(b"EHLO client")[-1]

        self.home.store.set(b"tim", b"{PLAIN}tanstaaf")
        self.assertEqual(offered(), b"250 AUTH SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN")
        keys = ScramKeys.make(b"tanstaaf", b"saltsalt1234", 4096)
        self.home.store.set(b"tim", cheap(b"tanstaaf"), keys)
        self.assertEqual(offered(), b"250 AUTH SCRAM-SHA-256 PLAIN LOGIN")
        self.home.store.set(b"ann", cheap(b"other"))
        self.assertEqual(offered(), b"250 AUTH PLAIN LOGIN")

    def test_failures(self) -> None:
        """They are slowed down, and the connection ends after five."""
        client = self.greeted()
        self.assertEqual(client.say(b"AUTH PLAIN " + WRONG), [])
        self.clock.advance(0.99)
        self.assertEqual(client.replies(), [])
        self.clock.advance(0.01)
        self.assertEqual(client.replies(), [b"535 5.7.8 wrong name or password"])
        self.assertFalse(client.protocol.session.may_relay)
        for _ in range(3):
            client.say(b"AUTH PLAIN " + WRONG)
            self.clock.advance(60)
        client.replies()
        client.say(b"AUTH PLAIN " + WRONG)
        self.clock.advance(60)
        self.assertEqual(client.replies(), [b"421 4.7.0 too many errors, closing the connection"])
        self.assertTrue(client.transport.disconnecting)
        self.assertNotIn("guess", self.events.text())

    def test_hanging_up(self) -> None:
        client = self.greeted()
        client.say(b"AUTH PLAIN " + WRONG)
        client.hang_up()
        self.clock.advance(60)

    def test_not_now(self) -> None:
        """RFC 4954 §4: 454; without the mechanisms, EHLO has none."""
        client = self.greeted()
        self.home.write("users/credentials", b"tim\n")
        self.assertEqual(client.codes(b"AUTH PLAIN " + TIM), [454])
        self.assertNotIn(b"AUTH", b"".join(self.client(host=HERE).say(b"EHLO client")))

    def test_policy(self) -> None:
        """A policy may object to a login; then nobody has logged in."""

        class Picky(Policy):
            def auth(self, session: Session) -> Reply | None:
                return refuse(535, b"not today (#5.7.8)") if session.user == b"tim" else None

        client = self.greeted(Picky())
        self.assertEqual(client.say(b"AUTH PLAIN " + TIM), [b"535 5.7.8 not today"])
        self.assertIsNone(client.protocol.session.user)
        self.assertFalse(client.protocol.session.may_relay)

    def test_scram(self) -> None:
        """From end to end, and a wrong proof costs as much time as a wrong password."""
        keys = ScramKeys.make(b"tanstaaf", b"saltsalt1234", 4096)
        self.home.store.set(b"tim", cheap(b"tanstaaf"), keys)
        client = self.greeted()
        scram = ScramClient(b"tim", b"tanstaaf")
        [challenge] = client.say(b"AUTH SCRAM-SHA-256 " + scram.first())
        [last] = client.say(scram.final(challenge[4:]))
        self.assertTrue(scram.check(last[4:]))
        self.assertIsNone(client.protocol.session.user)
        self.assertEqual(client.codes(b""), [235])
        self.assertEqual(client.protocol.session.user, b"tim")
        client = self.greeted()
        scram = ScramClient(b"tim", b"guess")
        [challenge] = client.say(b"AUTH SCRAM-SHA-256 " + scram.first())
        self.assertEqual(client.say(scram.final(challenge[4:])), [])
        self.clock.advance(1)
        self.assertEqual([reply[:3] for reply in client.replies()], [b"535"])

    def test_unknown_names_have_salts(self) -> None:
        """Always the same one, as those have that exist."""
        keys = ScramKeys.make(b"tanstaaf", bytes(16))
        self.home.store.set(b"tim", cheap(b"tanstaaf"), keys)
        salts = [
            self.successResultOf(self.authenticator.salt(name)) for name in (b"tim", b"eve", b"Eve", b"joe", b"eve")
        ]
        self.assertEqual(salts[1], salts[2])
        self.assertEqual(salts[1], salts[4])
        self.assertEqual(len({salt for salt, _ in salts}), 3)
        self.assertEqual({(len(salt), iterations) for salt, iterations in salts}, {(16, 65_536)})
        again = Passwords(type(self.home.store)(self.home.store.path)).salt((b"eve",))
        self.assertEqual(again, salts[1])

    def test_certificate(self) -> None:
        """EXTERNAL: the address in a certificate that is believed, if it is in the store; and no other."""
        self.home.write("control/virtualdomains", b"x.test:tim\n")
        self.home.assign("=tim-ann:tim:1000:1000:HOME/homes/tim:::")
        self.home.store.set(b"ann@x.test", cheap(b"other"))
        shown = ClientCertificate("CN=ann", (b"Ann@x.test", b"eve@x.test"), "00")

        def client() -> Client:
            client = self.client(host="192.0.2.1")
            client.protocol.session.tls = TLSInfo("TLSv1.3", "x", client=shown)
            client.protocol._plaintext = True  # stands for the TLS that a transport in memory lacks
            return client

        one = client()
        self.assertEqual(one.say(b"EHLO c")[-1], b"250 AUTH EXTERNAL PLAIN LOGIN")
        self.assertEqual(one.codes(b"AUTH EXTERNAL ="), [235])
        self.assertEqual(one.protocol.session.user, b"ann@x.test")
        one = client()
        one.say(b"EHLO c")
        self.assertEqual(one.codes(b"AUTH EXTERNAL " + b64encode(b"tim")), [535])
        one.say(b"AUTH EXTERNAL " + b64encode(b"eve@x.test"))
        self.clock.advance(1)
        self.assertEqual(one.replies(), [b"535 5.7.8 wrong name or password"])

    def test_logout(self) -> None:
        class Slow:
            """Lets in whoever comes, when it is told to."""

            def __init__(self) -> None:
                self.answer: Deferred[Any] = Deferred()

            def mechanisms(self) -> Deferred[tuple[bytes, ...]]:
                result: Deferred[tuple[bytes, ...]] = Deferred()
                result.callback((b"PLAIN",))
                return result

            def login(self, *arguments: Any) -> Deferred[Any]:
                return self.answer

        self.authenticator = slow = Slow()  # type: ignore[assignment]
        client = self.greeted()
        client.say(b"AUTH PLAIN " + TIM)
        done: list[str] = []

        class Somebody:
            name = b"tim"

        slow.answer.callback((Somebody(), lambda: done.append("out")))
        self.assertEqual(client.codes(), [235])
        self.assertEqual(done, [])
        client.hang_up()
        self.assertEqual(done, ["out"])

    def test_salt_not_now(self) -> None:
        self.home.store.set(b"tim", b"{PLAIN}tanstaaf")
        client = self.greeted()
        self.home.write("users/credentials", b"tim\n")
        self.assertEqual(client.codes(b"AUTH SCRAM-SHA-256 " + ScramClient(b"tim", b"x").first()), [454])
        self.failureResultOf(self.authenticator.salt(b"tim"), LoginUnavailable)

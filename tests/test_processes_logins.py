"""Logins across a packet socket: what a server asks the role that checks passwords (doc/security.md)."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from qtwist.auth.credentials import CertifiedName, CRAMCredentials, ScramCredentials
from qtwist.auth.errors import LoginUnavailable
from qtwist.auth.making import make_authenticator
from qtwist.auth.realm import IAccount
from qtwist.auth.scram import ITERATIONS, ScramKeys
from qtwist.control import Control
from qtwist.processes import logins
from qtwist.processes.logins import LoginClient, LoginServer
from qtwist.processes.packets import PacketConnection
from tests.auth_tools import MailHome, cheap
from tests.test_wire_scram import SALT


class LoginTests(TestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)  # type: ignore[arg-type]  # it wants addCleanup alone
        self.home.assign("=tim:tim:1000:1001:HOME/mail/tim:::")
        self.keys = ScramKeys.make(b"tanstaaf", SALT, 4096)
        self.home.store.set(b"tim", cheap(b"tanstaaf"), self.keys)
        ours, theirs = PacketConnection.pair()
        authenticator = make_authenticator(Control(self.home.join("control")), self.home.path, reactor)
        self.server = LoginServer(reactor, theirs, authenticator, self.home.mailboxes, self.fail)
        self.client = LoginClient(reactor)
        self.client.connect(ours)
        self.addCleanup(self.server._connection.close)
        self.addCleanup(lambda: self.client._connection and self.client._connection.close())

    async def login(self, credentials: Any) -> Any:
        account, logout = await self.client.login(credentials, "192.0.2.1", "smtp", IAccount)
        logout()
        return account

    async def test_account(self) -> None:
        """Name, home and ids come over; the mailbox stays where it is."""
        account = await self.login(UsernamePassword(b"Tim", b"tanstaaf"))
        self.assertEqual((account.name, account.home), (b"tim", self.home.join("mail/tim").encode()))
        self.assertEqual((account.uid, account.gid, account.maildir), (1000, 1001, None))
        with self.assertRaises(UnauthorizedLogin):
            await self.login(UsernamePassword(b"tim", b"guess"))

    async def test_mechanisms(self) -> None:
        self.assertEqual(await self.client.mechanisms(), (b"SCRAM-SHA-256", b"EXTERNAL", b"PLAIN", b"LOGIN"))
        self.home.write("control/authmechanisms", b"plain\nLOGIN\ncram-md5\n")
        self.assertEqual((await self.client.mechanisms())[0], b"SCRAM-SHA-256")  # for some seconds
        self.patch(logins, "MECHANISMS_LIFETIME", 0)
        self.client._mechanisms = None
        self.assertEqual(await self.client.mechanisms(), (b"CRAM-MD5", b"PLAIN", b"LOGIN"))
        self.home.write("control/authmechanisms", b"DIGEST-MD5\n")
        with self.assertRaises(LoginUnavailable):
            await self.client.mechanisms()

    async def test_scram(self) -> None:
        """The keys stay; the signature comes."""
        self.assertEqual(await self.client.salt(b"tim"), (SALT, 4096))
        self.assertEqual((await self.client.salt(b"eve"))[1], ITERATIONS)
        message = b"n=tim,r=x,r=xy,s=z,i=4096,c=biws,r=xy"
        salted = hashlib.pbkdf2_hmac("sha256", b"tanstaaf", SALT, 4096)
        key = hmac.digest(salted, b"Client Key", "sha256")
        mask = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(key, mask, strict=True))
        credentials = ScramCredentials(b"tim", message, proof)
        self.assertEqual((await self.login(credentials)).name, b"tim")
        self.assertEqual(credentials.signature, self.keys.signature_for(message, proof))

    async def test_others(self) -> None:
        self.assertEqual((await self.login(CertifiedName(b"tim"))).name, b"tim")
        self.home.store.set(b"tim", b"{PLAIN}tanstaaftanstaaf")
        # RFC 2195 section 3.
        challenge = b"<1896.697170952@postoffice.reston.mci.net>"
        cram = CRAMCredentials(b"tim", challenge, b"b913a602c7eda7a495b4e6e7334d3890")
        self.assertEqual((await self.login(cram)).name, b"tim")

    async def test_nobody_there(self) -> None:
        lonely = LoginClient(reactor)
        for answer in (
            lonely.mechanisms(),
            lonely.salt(b"tim"),
            lonely.login(CertifiedName(b"tim"), "", "smtp", IAccount),
        ):
            with self.assertRaises(LoginUnavailable):
                await answer
        waiting = self.client.salt(b"tim")
        self.server._connection.close()
        with self.assertRaises(LoginUnavailable):
            await waiting

"""Whose an address is: users/assign, extensions, virtual domains, aliases (spec/qmail.md §12; issue 9, item 3)."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth.addresses import Addresses
from qtwist.auth.mailboxes import MailboxError
from tests.auth_tools import MailHome
from tests.unprivileged import ORDINARY

ME = b"@mail.example.org"


class AddressTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)
        self.home.write("control/locals", b"mail.example.org\nexample.org\n")
        self.home.write("control/virtualdomains", b"shop.test:shop\nann.test:tim-ann\n")
        self.home.assign(
            "=tim:tim:1000:1000:HOME/mail/tim:::",
            "+tim-:tim:1000:1000:HOME/mail/tim:-::",
            "=sales:tim:1000:1000:HOME/mail/tim:-:sales:",
            "=eve:tim:1000:1000:HOME/mail/eve:::",
            "+shop-:shop:1001:1001:HOME/shop:-::",
            "=front:shop:1001:1001:HOME/shop:-::",
        )
        os.mkdir(self.home.join("alias"))
        if os.geteuid() == 0:
            os.chown(self.home.join("alias"), ORDINARY, ORDINARY)
        self.addresses = Addresses(self.home.path, self.home.accounts.get)

    def assertOwns(self, login: bytes, *owned: bytes, but: tuple[bytes, ...] = ()) -> None:
        for address in owned:
            self.assertTrue(self.addresses.owns(login, address), address)
        for address in but:
            self.assertFalse(self.addresses.owns(login, address), address)

    def test_own(self) -> None:
        """In all local domains, in any letter case, with extensions, and by users/assign."""
        self.assertOwns(
            b"tim",
            *(b"tim" + ME, b"TIM@Example.org", b"tim-list" + ME, b"sales" + ME, b"x@ann.test"),
            but=(b"eve" + ME, b"tim@far.test", b"tim2" + ME, b"postmaster" + ME, b"", b"@", b"x@shop.test"),
        )
        self.assertOwns(b"tim" + ME, b"tim@example.org")

    def test_shared_home(self) -> None:
        """People of one virtual domain with one home directory are told apart (vpopmail's way)."""
        self.assertOwns(
            b"bob@shop.test",
            *(b"bob@shop.test", b"Bob-list@shop.test"),
            but=(b"bo@shop.test", b"carol@shop.test", b"bobby@shop.test", b"tim" + ME),
        )

    def test_nobody_of_a_shared_home_in_particular(self) -> None:
        """An assignment to ~/.qmail- is none of the people there, though the home is theirs."""
        self.assertOwns(b"front", b"front" + ME, but=(b"bob@shop.test", b"carol@shop.test"))

    def test_account(self) -> None:
        self.home.account(b"joe")
        self.assertOwns(b"joe", b"joe" + ME, b"joe-x" + ME, but=(b"tim" + ME,))

    def test_alias(self) -> None:
        """An alias that sends mail on to the login, but not to one that sends it on again."""
        self.home.write("alias/.qmail-info", b"# who answers\n&eve@example.org\ntim@example.org\n")
        self.home.write("alias/.qmail-more", b"&info@example.org\n")
        self.home.write("alias/.qmail-tim2", b"|tim\n./tim/\n")
        self.assertOwns(b"tim", b"info" + ME, but=(b"more" + ME, b"tim2" + ME, b"nobody" + ME))
        self.assertOwns(b"eve", b"info" + ME)

    def test_elsewhere(self) -> None:
        """A login that gets no mail here has its own address, and no other one."""
        self.assertOwns(b"joe@far.test", b"joe@far.test", but=(b"tim" + ME, b"jim@far.test"))

    def test_trouble(self) -> None:
        self.home.write("users/cdb", b"no database")
        self.assertRaises(MailboxError, self.addresses.owns, b"tim", b"x" + ME)

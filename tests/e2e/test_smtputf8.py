"""Addresses in letters of all the world, by a running daemon: in, to users, and out to Postfix (RFC 6531)."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage

from tests.certificates import Authority
from tests.e2e.harness import ME, PATIENCE, DaemonCase, wait_until
from tests.e2e.postfix import Postfix

BOOKS, BOOKS_ASCII = "bücher.example", "xn--bcher-kva.example"


class InTests(DaemonCase):
    def test_users_and_domains(self) -> None:
        """smtplib says SMTPUTF8; .qmail-jürgen gets it, under either name of the domain."""
        self.write_control("locals", f"{ME}\n{BOOKS}\n")
        self.write_control("rcpthosts", f"{ME}\n{BOOKS_ASCII}\n")
        self.write_dotqmail("jürgen", "./Maildir/\n")
        self.start()
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "müller@example.org", f"jürgen@{BOOKS}", "Grüße"
        message.set_content("für dich\n")
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            for domain in (BOOKS, BOOKS_ASCII):
                client.send_message(message, "müller@example.org", [f"{self.user}-jürgen@{domain}"])
            client.ehlo()
            client.mail("a@b.test", ["SMTPUTF8"])
            self.assertEqual(client.rcpt(f"nobody@nicht-{BOOKS}")[0], 553)
        wait_until("both messages", lambda: len(self.maildir()) == 2)
        for text in self.maildir():
            self.assertIn(b" with UTF8SMTP; ", text)
            self.assertTrue(text.startswith('Return-Path: <"müller"@example.org>'.encode()), text)
            self.assertIn("Subject: Grüße".encode(), text)


class InFromPostfixTests(DaemonCase):
    def test_postfix(self) -> None:
        """Postfix sends on what came to it with SMTPUTF8, for a user and a domain in letters of all the world."""
        self.write_control("locals", f"{ME}\n{BOOKS}\n")
        self.write_control("rcpthosts", f"{ME}\n{BOOKS}\n")
        self.write_dotqmail("jürgen", "./Maildir/\n")
        postfix = Postfix(
            self,
            "relay.test",
            Authority().certify("relay.test"),
            "smtputf8_enable = yes",
            f"relay_domains = {BOOKS}",
            f"relay_transport = relay:[127.0.0.1]:{self.port}",
            "smtp_tls_security_level = none",
        )
        self.write_control("smtproutes", f"example.org:[127.0.0.1]:{postfix.port}\n")
        self.start()
        recipient = f"{self.user}-jürgen@{BOOKS}"
        with smtplib.SMTP("127.0.0.1", postfix.port, timeout=PATIENCE) as client:
            client.ehlo()
            text = f"To: {recipient}\r\nSubject: Grüße\r\n\r\n".encode()
            client.sendmail("müller@example.org", [recipient], text, ["SMTPUTF8"], ["NOTIFY=SUCCESS"])
        wait_until("the message", lambda: self.maildir() or "status=bounced" in postfix.log())
        self.assertIn("status=sent", postfix.log())
        [message] = self.maildir()
        self.assertIn(b" with UTF8SMTP; ", message)
        self.assertIn(b"Delivered-To: " + recipient.encode(), message.replace(BOOKS_ASCII.encode(), BOOKS.encode()))
        wait_until("our report at Postfix", lambda: "to=<müller@example.org>, relay=none" in postfix.log())


class OutTests(DaemonCase):
    def relay(self, *settings: str) -> Postfix:
        postfix = Postfix(self, "relay.test", Authority().certify("relay.test"), *settings)
        self.write_control("smtproutes", f":[127.0.0.1]:{postfix.port}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        return postfix

    def submit(self) -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.ehlo()
            client.sendmail(self.address, ["müller@example.org"], "Subject: Grüße\r\n\r\n".encode(), ["SMTPUTF8"])
            client.sendmail(self.address, [f"joe@{BOOKS_ASCII}"], b"Subject: x\r\n\r\n")

    def test_postfix(self) -> None:
        postfix = self.relay("smtputf8_enable = yes", f"virtual_mailbox_domains = example.org {BOOKS_ASCII}")
        daemon = self.start()
        self.submit()
        daemon.log.wait("^delivery [12]: success: ", 2)
        wait_until("both messages", lambda: postfix.log().count("status=sent") == 2)
        self.assertIn("to=<müller@example.org>", postfix.log())

    def test_postfix_that_does_not_know_it(self) -> None:
        """The sender gets it back with #5.6.7; a domain alone is no reason."""
        self.relay("smtputf8_enable = no", f"virtual_mailbox_domains = example.org {BOOKS_ASCII}")
        daemon = self.start()
        self.submit()
        [line] = daemon.log.wait("^delivery [12]: failure: ")
        self.assertIn("does_not_offer_SMTPUTF8,_which_addresses_or_header_of_this_message_need._(#5.6.7)", line)
        daemon.log.wait("^delivery [12]: success: ")
        wait_until("the notice", lambda: len(self.maildir()) == 1)
        self.assertIn("<müller@example.org>:".encode(), self.maildir()[0])

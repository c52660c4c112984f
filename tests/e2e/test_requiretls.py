"""REQUIRETLS (RFC 8689) from a client over one daemon to another, each with its own certificate (doc/tls.md)."""

from __future__ import annotations

import copy
import os
import signal
import smtplib
import ssl

from tests.certificates import Authority
from tests.e2e.harness import ME, PATIENCE, DaemonCase, free_port, wait_until

FAR = "far.test"
TEXT = "From: joe@mx.test\nSubject: secret plans\n\nthe plans themselves\n"


class TwoDaemonsTests(DaemonCase):
    """`self` has the client and a certificate; `self.far` is the other daemon's home, which takes mail for far.test."""

    authority = Authority()

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SSL_CERT_FILE": self.trusted}

    def setUp(self) -> None:
        self.trusted = ""
        super().setUp()
        self.trusted = os.path.join(self.directory, "authority.pem")
        with open(self.trusted, "wb") as trusted:
            trusted.write(self.authority.pem)
        os.chmod(self.directory, 0o755)
        self.far = copy.copy(self)  # cleanups are shared: both daemons end with the test
        self.far.home = os.path.join(self.directory, "far")
        self.far.port = free_port()
        listen = f"smtp tcp:{self.far.port}:interface=127.0.0.1"
        self.run_command("init", self.far.home, "--me", FAR, "--user", self.user, "--listen", listen)
        self.write_control("relayclients", "127.0.0.1\n")
        self.write_control("smtproutes", f"{FAR}:127.0.0.1:{self.far.port}\n")
        self.write_control("servercert.pem", self.authority.certify(ME, "localhost").decode())
        self.recipient = f"{self.user}@{FAR}"

    def demand(self, recipient: str, sender: str = "") -> None:
        """Send a message that is to go by TLS only; the sender is the mailbox here, or `sender`."""
        context = ssl.create_default_context(cafile=self.trusted)
        with smtplib.SMTP("localhost", self.port, timeout=PATIENCE) as client:
            client.ehlo()
            self.assertFalse(client.has_extn("requiretls"))
            client.starttls(context=context)
            client.ehlo()
            self.assertTrue(client.has_extn("requiretls"))
            client.sendmail(sender or self.address, [recipient], TEXT, mail_options=["REQUIRETLS"])

    def certify_far(self, authority: Authority) -> None:
        self.far.write_control("servercert.pem", authority.certify("127.0.0.1").decode())

    def test_all_the_way(self) -> None:
        """The demand goes on with the message, from a forward here too, and is in both Received lines."""
        self.certify_far(self.authority)
        self.write_dotqmail("on", f"&{self.recipient}\n")
        far, daemon = self.far.start(), self.start()
        for count, recipient in enumerate((self.recipient, f"{self.user}-on@{ME}"), 1):
            self.demand(recipient)
            daemon.log.wait(r"success: 127\.0\.0\.1_accepted_message.*,_certificate_verified\./", count)
            far.log.wait("end msg", count)
        for message in self.far.maildir():
            self.assertEqual(message.count(b"encrypted, REQUIRETLS)"), 2, message)
        self.assertEqual(len(self.far.maildir()), 2)
        self.assertEqual((daemon.stop(), far.stop()), (0, 0))

    def test_a_certificate_that_nobody_knows(self) -> None:
        """Mail without the demand goes through; with it, the message waits, and goes when the certificate is good."""
        self.certify_far(Authority("Somebody else"))
        far, daemon = self.far.start(), self.start()
        self.send([self.recipient])
        daemon.log.wait("^delivery 1: success: ")
        self.demand(self.recipient)
        [line] = daemon.log.wait("^delivery 2: ")
        self.assertRegex(line, r"deferral: .*the_certificate_comes_from_an_unknown_authority.*\(REQUIRETLS\)")
        self.certify_far(self.authority)
        daemon.process.send_signal(signal.SIGALRM)  # all that is deferred is tried now
        daemon.log.wait("^delivery 3: success: .*verified")
        far.log.wait("end msg", 2)
        self.assertEqual(len(self.far.maildir()), 2)

    def test_no_tls_there(self) -> None:
        """It never goes in the clear: it comes back, and the notice, which shows no contents, demands the same."""
        far, daemon = self.far.start(), self.start()
        self.demand(self.recipient)
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertIn("(REQUIRETLS)", line)
        self.assertNotIn("success", line)
        self.assertEqual(far.log.find("new msg"), [])
        self.assertEqual(daemon.stop(), 0)
        self.write_control("queuelifetime", "0\n")
        daemon = self.start()
        daemon.process.send_signal(signal.SIGALRM)  # now, not when the schedule says
        daemon.log.wait("end msg", 2)
        [notice] = self.maildir()
        self.assertIn(b"REQUIRETLS)", notice.partition(b"\n\n")[0])
        self.assertIn(b"Subject: secret plans", notice)
        self.assertNotIn(b"the plans themselves", notice)
        self.assertEqual(self.far.maildir(), [])

    def test_without_the_extension(self) -> None:
        """TLS there, a good certificate, and no REQUIRETLS: it comes back at once (§4.2.1), not a word of it went."""
        self.certify_far(self.authority)
        self.far.write_control("ehlodiscard", "REQUIRETLS\n")
        far, daemon = self.far.start(), self.start()
        self.demand(self.recipient)
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertRegex(line, r"failure: .*does_not_offer_REQUIRETLS,_which_the_sender_demands\._\(#5\.7\.30\)")
        daemon.log.wait("end msg", 2)
        [notice] = self.maildir()
        self.assertIn(b"REQUIRETLS)", notice.partition(b"\n\n")[0])
        self.assertIn(b"#5.7.30", notice)
        self.assertNotIn(b"the plans themselves", notice)
        self.assertEqual(far.log.find("MAIL|accepted message"), [])
        self.assertEqual((daemon.stop(), far.stop(), self.far.maildir()), (0, 0, []))

    def test_the_notice_goes_on(self) -> None:
        """§5: to the sender's host it goes as the message came, by TLS and with REQUIRETLS. Where that host does not
        know it, the notice does not go at all: the postmaster here has it, without the contents."""
        self.certify_far(self.authority)
        self.write("alias/.qmail-postmaster", f"&{self.address}\n")
        far, daemon = self.far.start(), self.start()
        self.demand(f"no-such-mailbox@{ME}", sender=self.recipient)
        [line] = daemon.log.wait("^delivery .: success: 127.0.0.1_")
        self.assertRegex(line, "TLSv1.*,_certificate_verified")
        far.log.wait("end msg")
        [notice] = self.far.maildir()
        head, _, body = notice.partition(b"\n\n")
        self.assertEqual(head.count(b"encrypted, REQUIRETLS)"), 1, notice)  # of the far host
        self.assertEqual(head.count(b", REQUIRETLS)"), 2, notice)
        self.assertIn(b"Subject: secret plans", body)
        self.assertNotIn(b"the plans themselves", body)
        self.assertEqual(far.stop(), 0)
        self.far.write_control("ehlodiscard", "REQUIRETLS\n")
        far = self.far.start()
        self.demand(f"no-such-mailbox@{ME}", sender=self.recipient)
        daemon.log.wait("failure: .*does_not_offer_REQUIRETLS")
        wait_until("the postmaster to have it", lambda: bool(self.maildir()))
        [notice] = self.maildir()
        self.assertIn(b"it does not offer REQUIRETLS, which the sender demands. (#5.7.30)", notice)
        self.assertIn(b"REQUIRETLS)", notice.partition(b"\n\n")[0])
        self.assertNotIn(b"the plans themselves", notice)
        self.assertEqual(len(self.far.maildir()), 1)

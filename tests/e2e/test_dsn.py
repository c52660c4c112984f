"""DSN by a running daemon: asked for by SMTP, kept through a kill, passed on to Postfix, and asked for by Postfix."""

from __future__ import annotations

import signal
import smtplib
import subprocess
from email import message_from_bytes

from tests.certificates import Authority
from tests.e2e.harness import ME, PATIENCE, DaemonCase, free_port, wait_until
from tests.e2e.postfix import Postfix
from tests.e2e.test_roles import ANN, RootCase

ALL = "NOTIFY=SUCCESS,DELAY,FAILURE"


def actions(data: bytes) -> list[tuple[str, str, str]]:
    """Action, original and final recipient of each recipient in a report; nothing for another message."""
    whole = message_from_bytes(data)
    if whole.get_content_type() != "multipart/report":
        return []
    parts = whole.get_payload()
    assert isinstance(parts, list)
    _, *blocks = parts[1].get_payload()
    return [(one["Action"], one["Original-Recipient"] or "", one["Final-Recipient"]) for one in blocks]


class DSNCase(DaemonCase):
    def submit(self, recipient: str, mail: list[str], rcpt: list[str]) -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.ehlo()
            self.assertTrue(client.has_extn("dsn"))
            client.sendmail(self.address, [recipient], b"Subject: x\r\n\r\nhello\r\n", mail, rcpt)

    def reports(self) -> list[tuple[str, str, str]]:
        return [one for text in self.maildir() for one in actions(text)]


class AloneTests(DSNCase):
    def test_through_a_kill(self) -> None:
        """What was asked for survives kill -9: while the message waits for a server that is not there, and then."""
        port = free_port()
        self.write_control("smtproutes", f":[127.0.0.1]:{port}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        self.submit("joe@far.test", ["RET=HDRS", "ENVID=QQ1"], [ALL, "ORCPT=rfc822;joe+2B@old.test"])
        daemon.log.wait("^delivery 1: deferral: ")
        daemon.kill()
        self.smtp_sink("-N", port=port)
        daemon = self.start()
        daemon.process.send_signal(signal.SIGALRM)
        daemon.log.wait("^delivery 1: success: ")
        wait_until("the report", lambda: len(self.reports()) == 1)
        self.assertEqual(self.reports(), [("relayed", "rfc822; joe+@old.test", "rfc822; joe@far.test")])
        [text] = self.maildir()
        self.assertIn(b"Original-Envelope-Id: QQ1\n", text)
        self.assertNotIn(b"\nhello\n", text)

    def test_delivered(self) -> None:
        daemon = self.start()
        self.submit(self.address, [], [ALL])
        wait_until("message and report", lambda: len(self.maildir()) == 2)
        self.assertEqual(self.reports(), [("delivered", "", f"rfc822; {self.address}")])
        daemon.log.wait("^report msg ")
        self.submit(f"nobody-here@{ME}", [], ["NOTIFY=NEVER"])
        self.submit(f"nobody-here@{ME}", [], ["NOTIFY=FAILURE"])
        wait_until("the failure", lambda: len(self.maildir()) == 3)
        self.assertEqual([one[0] for one in self.reports()].count("failed"), 1)
        self.wait_empty_queue()

    def test_through_forwards(self) -> None:
        """§5.2.7.2: what was asked for goes with a forward to one address, over another one, to the end, and one report
        comes back, with the address that the sender knows. A forward to several is the end."""
        self.write_dotqmail("one", f"{self.user}-two@{ME}\n")
        self.write_dotqmail("two", f"&{self.address}\n")
        self.write_dotqmail("gone", f"nobody-here@{ME}\n")
        self.write_dotqmail("list", f"{self.address}\nnobody-here@{ME}\n")
        daemon = self.start()
        one, gone = f"{self.user}-one@{ME}", f"{self.user}-gone@{ME}"
        self.submit(one, ["RET=HDRS", "ENVID=QQ1"], [ALL, f"ORCPT=rfc822;{one}"])
        wait_until("message and report", lambda: len(self.maildir()) == 2)
        self.assertEqual(self.reports(), [("delivered", f"rfc822; {one}", f"rfc822; {self.address}")])
        [text] = [text for text in self.maildir() if actions(text)]
        self.assertIn(b"Original-Envelope-Id: QQ1\n", text)
        self.assertEqual(len(daemon.log.find("did_0.1.0/qp_[0-9]*/The_server_reports_further./")), 2)
        self.submit(gone, [], ["NOTIFY=NEVER"])
        daemon.log.wait("failure: Sorry|failure: .*5.1.1")
        self.submit(gone, [], ["NOTIFY=FAILURE", f"ORCPT=rfc822;{gone}"])
        wait_until("the failure", lambda: len(self.maildir()) == 3)
        self.assertIn(("failed", f"rfc822; {gone}", f"rfc822; nobody-here@{ME}"), self.reports())
        self.submit(f"{self.user}-list@{ME}", [], ["NOTIFY=SUCCESS"])
        wait_until("message, report and notice", lambda: len(self.maildir()) == 6)
        self.assertIn(("expanded", "", f"rfc822; {self.user}-list@{ME}"), self.reports())
        self.wait_empty_queue()


class PostfixTests(DSNCase):
    def postfix(self) -> Postfix:
        """One that has mail for ME taken here."""
        pem = Authority().certify("relay.test")
        back = f"relay_transport = relay:[127.0.0.1]:{self.port}"
        return Postfix(self, "relay.test", pem, f"relay_domains = {ME}", back, "smtp_tls_security_level = none")

    def test_takes_over(self) -> None:
        """§5.2.2: Postfix gets the parameters, and its report, not ours, comes back."""
        postfix = self.postfix()
        self.write_control("smtproutes", f"example.org:[127.0.0.1]:{postfix.port}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        self.submit("joe@example.org", ["ENVID=QQ1"], [ALL, "ORCPT=rfc822;joe@old.test"])
        [line] = daemon.log.wait("^delivery 1: success: ")
        self.assertIn("The_server_reports_further.", line)
        wait_until("Postfix's report", lambda: len(self.reports()) == 1)
        self.assertEqual(self.reports(), [("delivered", "rfc822;joe@old.test", "rfc822; joe@example.org")])
        [text] = self.maildir()
        self.assertIn(b"Reporting-MTA: dns; relay.test\n", text)
        self.assertIn(b"Original-Envelope-Id: QQ1\n", text)

    def test_asks(self) -> None:
        """Postfix passes on what it was asked, and hears from us of both ends: it delivers our report to its user."""
        postfix = self.postfix()
        self.write_control("smtproutes", f"example.org:[127.0.0.1]:{postfix.port}\n")
        daemon = self.start()
        with smtplib.SMTP("127.0.0.1", postfix.port, timeout=PATIENCE) as client:
            for recipient in (self.address, f"nobody-here@{ME}"):
                client.sendmail("ann@example.org", [recipient], b"Subject: x\r\n\r\nhello\r\n", ["RET=HDRS"], [ALL])
        daemon.log.wait("^report msg ")
        daemon.log.wait("^bounce msg ")
        wait_until("both reports", lambda: postfix.log().count("to=<ann@example.org>, relay=none") == 2)


class RolesTests(RootCase):
    def test_through_all_processes(self) -> None:
        """smtpd, the queue's manager, rspawn and lspawn under accounts of their own, and ann's process: the parameters
        pass all doors."""
        server = Postfix(self, "relay.test", Authority().certify("relay.test"))
        self.write_control("smtproutes", f":[127.0.0.1]:{server.port}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        self.instructions("ann", ANN, f"ann@{ME}\n", "-on")
        daemon = self.start()
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.sendmail(f"joe@{ME}", ["x@example.org"], b"Subject: x\r\n\r\n", ["RET=HDRS"], ["NOTIFY=NEVER"])
            for name in ("ann", "ann-on"):
                client.sendmail(f"joe@{ME}", [f"{name}@{ME}"], b"Subject: x\r\n\r\n", [], ["NOTIFY=SUCCESS"])
        daemon.log.wait("^delivery .*: success: .*_verified.*/The_server_reports_further./$")
        daemon.log.wait("^delivery .*: success: did_0.1.0/qp_[0-9]*/The_server_reports_further./$")
        wait_until("the reports", lambda: len(self.mail_of("joe")) == 2)
        told = [one for text in self.mail_of("joe") for one in actions(text)]
        self.assertEqual(told, [("delivered", "", f"rfc822; ann@{ME}")] * 2)

    def test_sendmail(self) -> None:
        """Through the queue's door."""
        self.start()
        done = subprocess.run(
            self.runtime.command("sendmail", "-N", "success", "-f", f"joe@{ME}", f"ann@{ME}"),
            check=False,
            env={**self.environment(), "QTWISTHOME": self.home},
            input=b"Subject: x\n\nhello\n",
            capture_output=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        wait_until("the report", lambda: len(self.mail_of("joe")) == 1)
        self.assertEqual([one[0] for one in actions(self.mail_of("joe")[0])], ["delivered"])

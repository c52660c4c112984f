"""Messages that are looked at before the 250, by the real clamd, rspamd, OpenDKIM, and by programs (issue 8)."""

from __future__ import annotations

import base64
import os
import re
import smtplib
import subprocess

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.e2e.harness import ME, PATIENCE, DaemonCase, program, wait_until
from tests.e2e.test_roles import RootCase

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
VIRUS = "X-QTWIST-TEST-VIRUS"
MESSAGE = "From: Joe <joe@b.test>\nTo: ann@mx.test\nSubject:  two  spaces\nDate: Mon, 23 Nov 2026 12:00:00 +0000\n"
MESSAGE += "Message-ID: <1@b.test>\nX-Folded: a\n\tb\n\n.dot\n\nbody\n"

RSPAMD = """
options { pidfile = "DIR/pid"; filters = ""; url_tld = "DIR/tld"; dns { nameserver = ["127.0.0.1:1:1"]; } }
logging { type = "console"; level = "error"; }
actions { reject = 15; add_header = 6; greylist = 4; }
worker { type = "normal"; bind_socket = "DIR/socket mode=0666"; count = 1; }
"""

CLAMD = """
LocalSocket DIR/socket
LocalSocketMode 666
DatabaseDirectory DIR/db
Foreground yes
"""

DKIM = """
Mode MODE
Domain b.test
Selector s
KeyFile DIR/key.pem
Socket local:DIR/MODE
UMask 000
Background no
RequireSafeKeys no
InternalHosts DIR/internal
TestDNSData DIR/dns
AuthservID mx.test
"""


class ServiceCase(DaemonCase):
    def folder(self, name: str) -> str:
        path = os.path.join(self.directory, name)
        os.mkdir(path, 0o755)
        if self.runtime.account.switch:
            os.chown(path, self.runtime.account.uid, self.runtime.account.gid)
        return path

    def put(self, path: str, text: str) -> None:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(path, 0o644)

    def serve(self, socket: str, *command: str) -> None:
        """Run a service as the account until it has its socket; it is ended with the test."""
        with open(socket + ".log", "wb") as log:
            service = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.runtime.account.identity()
            )

        def end() -> None:
            service.terminate()
            service.wait(PATIENCE)

        self.addCleanup(end)
        wait_until(f"{command[0]} to listen", lambda: os.path.exists(socket) or service.poll() is not None)
        if service.poll() is not None:
            with open(socket + ".log", "rb") as log:
                self.fail(f"{command[0]} has ended: {log.read()!r}")

    def refused(self, text: str) -> tuple[int, bytes]:
        with self.assertRaises(smtplib.SMTPDataError) as refusal:
            self.send([self.address], text)
        error = refusal.exception.smtp_error
        return refusal.exception.smtp_code, error if isinstance(error, bytes) else error.encode()


class ScannerTests(ServiceCase):
    def test_clamd(self) -> None:
        """Found, clean, and gone: 451, or let in, as the file says."""
        clamd = program("clamd", "clamav-daemon")
        folder = self.folder("clamd")
        os.mkdir(f"{folder}/db", 0o755)
        self.put(f"{folder}/db/test.ndb", f"Qtwist.Test:0:*:{VIRUS.encode().hex()}\n")
        self.put(f"{folder}/conf", CLAMD.replace("DIR", folder))
        self.serve(f"{folder}/socket", clamd, "-c", f"{folder}/conf")
        self.write_control("clamd", f"{folder}/socket\n")
        daemon = self.start()
        self.send([self.address], f"Subject: x\n\n{'y' * 60}\n" * 3000)
        code, text = self.refused(f"Subject: x\n\n{VIRUS}\n")
        self.assertEqual((code, text), (554, b"5.7.1 the message has a virus: Qtwist.Test.UNOFFICIAL"))
        self.write_control("clamd", f"{folder}/nothing\n")
        self.assertEqual(self.refused("Subject: x\n\n")[0], 451)
        self.write_control("clamd", f"{folder}/nothing accept\n")
        self.send([self.address], "Subject: x\n\nin\n")
        wait_until("both messages", lambda: len(self.maildir()) == 2)
        daemon.log.wait(re.escape("rule=clamd (Qtwist.Test.UNOFFICIAL, by "))
        self.assertEqual(daemon.stop(), 0)

    def test_rspamd(self) -> None:
        rspamd = program("rspamd", "rspamd")
        folder = self.folder("rspamd")
        self.put(f"{folder}/tld", "com\n")
        self.put(f"{folder}/conf", RSPAMD.replace("DIR", folder))
        self.serve(f"{folder}/socket", rspamd, "-f", "-i", "-c", f"{folder}/conf")
        self.write_control("rspamd", f"{folder}/socket\n")
        daemon = self.start()
        self.send([self.address], MESSAGE)
        code, text = self.refused(MESSAGE + GTUBE + "\n")
        self.assertEqual((code, text), (554, b"5.7.1 Gtube pattern"))
        wait_until("the message", lambda: len(self.maildir()) == 1)
        self.assertTrue(self.maildir()[0].endswith(MESSAGE.encode()))
        daemon.log.wait(re.escape("rule=rspamd (reject, score 15.00, by "))


class MilterTests(ServiceCase):
    def test_dkim(self) -> None:
        """One OpenDKIM signs, another one verifies what the first has left: not an octet was changed between them."""
        opendkim = program("opendkim", "opendkim")
        folder = self.folder("dkim")
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = base64.b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        self.put(f"{folder}/key.pem", pem.decode())
        self.put(f"{folder}/dns", f"s._domainkey.b.test v=DKIM1; k=rsa; p={public.decode()}\n")
        self.put(f"{folder}/internal", "127.0.0.1\n")
        self.put(f"{folder}/nobody", "192.0.2.1\n")
        for mode in "sv":
            conf = DKIM.replace("MODE", mode).replace("DIR", folder)
            if mode == "v":
                conf = conf.replace("DIR/internal", "DIR/nobody").replace(f"{folder}/internal", f"{folder}/nobody")
            self.put(f"{folder}/{mode}.conf", conf)
            self.serve(f"{folder}/{mode}", opendkim, "-f", "-x", f"{folder}/{mode}.conf")
        self.write_control("milters", f"unix:{folder}/s\nunix:{folder}/v\n")
        self.start()
        self.send([self.address], MESSAGE, sender="joe@b.test")
        self.send([self.address], MESSAGE + "line\n" * 20000, sender="joe@b.test")
        wait_until("both messages", lambda: len(self.maildir()) == 2)
        for message in self.maildir():
            self.assertIn(b"\nDKIM-Signature: v=1; a=rsa-sha256;", message)
            self.assertIn(b"dkim=pass", message)
            self.assertIn(MESSAGE.encode().partition(b"\n\n")[0], message)


class ProgramTests(DaemonCase):
    def filter(self) -> str:
        """As doc/content.md shows one; qmail-queue is ours."""
        path = os.path.join(self.directory, "filter")
        queue = " ".join(f"'{word}'" for word in self.runtime.command("queue"))
        with open(path, "w", encoding="ascii") as file:
            file.write(
                '#!/bin/sh\ntmp=$(mktemp) && cat >"$tmp" || exit 53\n'
                "if grep -q '^X-Unwanted: ' \"$tmp\"; then\n"
                '  rm "$tmp"; echo "Dwe do not want this (#5.7.1)" >&6; exit 82\nfi\n'
                f'exec <"$tmp"; rm "$tmp"\n{{ echo "X-Filter: $TCPREMOTEIP"; cat; }} | {queue}\n'
            )
        os.chmod(path, 0o755)
        return path

    def test_a_classic_filter(self) -> None:
        """control/qmailqueue: refused in its own words, or changed and handed on."""
        self.write_control("qmailqueue", self.filter() + "\n")
        self.start()
        self.send([self.address], "Subject: one\n\nbody\n" * 20000)
        with self.assertRaises(smtplib.SMTPDataError) as refusal:
            self.send([self.address], "X-Unwanted: yes\n\nbody\n")
        self.assertEqual(refusal.exception.smtp_code, 554)
        self.assertEqual(refusal.exception.smtp_error, b"5.7.1 we do not want this")
        wait_until("the message", lambda: len(self.maildir()) == 1)
        [message] = self.maildir()
        self.assertIn(b"\nX-Filter: 127.0.0.1\nReceived: from ", message)
        self.assertTrue(message.endswith(b"Subject: one\n\nbody\n" * 20000))
        self.write_control("qmailqueue", "/nonexistent\n")
        with self.assertRaises(smtplib.SMTPException) as gone:
            self.send([self.address])
        self.assertEqual(getattr(gone.exception, "smtp_code", 0), 451)


class RoleTests(RootCase):
    def test_a_filter_in_a_rule(self) -> None:
        """QMAILQUEUE in tcp.smtp: it runs as qmaild, and the queue's door knows that the mail is from the network."""
        path = os.path.join(self.directory, "filter")
        queue = " ".join(f"'{word}'" for word in self.runtime.command("queue"))
        with open(path, "w", encoding="ascii") as file:
            # It ends some time after it has closed everything.
            file.write(
                f'#!/bin/sh\n{{ echo "X-Filter: $(id -un)"; cat; }} | {queue} || exit\nexec <&- >&- 6>&-; sleep 0.3\n'
            )
        os.chmod(path, 0o755)
        self.write_control("tcp.smtp", f'127.:allow,QMAILQUEUE="{path}"\n')
        self.start()
        self.send([f"joe@{ME}"])
        new = os.path.join(self.home, "mail", "joe", "Maildir", "new")
        wait_until("the message", lambda: len(os.listdir(new)) == 1)
        with open(os.path.join(new, os.listdir(new)[0]), "rb") as file:
            message = file.read()
        self.assertIn(b"X-Filter: " + self.accounts["qmaild"].pw_name.encode(), message)
        self.assertRegex(message, rb"Received: \(qmail \d+ invoked from network\)")

"""One message to many recipients at one host: few transactions, a result for each (issue 7 (c); RFC 5321 §3.3)."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import ClassVar

from tests.e2e.harness import DaemonCase, wait_until
from tests.e2e.test_roles import RootCase

RECIPIENTS = 90
END = r"end msg \d+$"


class RecipientsCase(DaemonCase):
    def far(self, count: int = RECIPIENTS) -> list[str]:
        return [f"user{number}@far.test" for number in range(count)]

    def prepare(self, *options: str) -> None:
        """A host that takes mail, with smtp-sink's `options`."""
        port, self.folder = self.smtp_sink(*options)
        self.write_control("relayclients", "127.0.0.1\n")
        self.write_control("smtproutes", f":127.0.0.1:{port}\n")

    def transactions(self) -> list[set[str]]:
        """The recipients of each message that has arrived."""
        found = []
        for name in os.listdir(self.folder):
            with open(os.path.join(self.folder, name)) as file:
                found.append(set(re.findall(r"^X-Rcpt-Args: <(.*)>$", file.read(), re.M)))
        return found

    def check_together(self) -> None:
        """Everybody gets it once, in transactions that hold some; each has log lines of its own, as ever."""
        self.prepare()
        daemon = self.start()
        self.send(self.far())
        daemon.log.wait(END)
        wait_until("all files of smtp-sink", lambda: sum(map(len, self.transactions())) == RECIPIENTS)
        arrived = Counter(name for recipients in self.transactions() for name in recipients)
        self.assertEqual(arrived, Counter(self.far()))
        # 20 slots of which a message may have 15: six transactions, were everybody on time.
        self.assertLess(len(self.transactions()), RECIPIENTS // 3)
        self.assertEqual(len(daemon.log.find("delivery .*: success: 127.0.0.1_accepted_message")), RECIPIENTS)
        self.assertEqual(len(daemon.log.find("starting delivery")), RECIPIENTS)
        self.assertEqual(daemon.stop(), 0)


class FilesTests(RecipientsCase):
    def test_together(self) -> None:
        self.check_together()

    def test_as_qmail(self) -> None:
        """§15.2: with control/remoterecipients at 1, a transaction for each."""
        self.write_control("remoterecipients", "1\n")
        self.prepare()
        daemon = self.start()
        self.send(self.far(20))
        daemon.log.wait(END)
        wait_until("all files of smtp-sink", lambda: len(self.transactions()) == 20)
        self.assertEqual({len(recipients) for recipients in self.transactions()}, {1})

    def test_refused(self) -> None:
        """All are refused: each has a paragraph in the bounce."""
        self.prepare("-f", "RCPT")
        daemon = self.start()
        self.send(self.far(20), sender=self.address)
        daemon.log.wait(END, 2)
        [bounce] = self.maildir()
        for name in self.far(20):
            self.assertIn(f"<{name}>:\n127.0.0.1 does not like recipient.\n".encode(), bounce)

    def test_deferred_content(self) -> None:
        """What comes after the dot is heard by each alone, in this try; the next try is due later."""
        self.prepare("-q", ".")
        daemon = self.start()
        self.send(self.far(5))
        daemon.log.wait("delivery .*: deferral: ", 5)
        self.assertEqual(daemon.log.find("delivery .*: success"), [])
        self.assertEqual(daemon.stop(), 0)


class JournalTests(RecipientsCase):
    control: ClassVar = {"journal": "1\n"}

    def test_together(self) -> None:
        self.check_together()


class RolesTests(RootCase, RecipientsCase):
    """The hint of the queue manager gets through to another process."""

    control: ClassVar = {"journal": "1\n"}

    def test_together(self) -> None:
        self.check_together()

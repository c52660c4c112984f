"""`make demo`, without make: a whole play with real processes, and its end."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tools import demo
from tools.account import ordinary_account


class DemoTests(SynchronousTestCase):
    def test_play(self) -> None:
        """Every message takes its road, one is read back by POP3, and nothing is left running."""
        account = ordinary_account()
        if not demo.usable(account, sys.executable):
            raise SkipTest(f"{account.name} cannot run qtwist with {sys.executable}")
        root = os.path.realpath(tempfile.mkdtemp(prefix="qtwist-demo-"))
        self.addCleanup(shutil.rmtree, root)
        os.chmod(root, 0o755)
        self.patch(demo, "DEMO", root)
        place = demo.Place(root, sys.executable, account)
        for folder in (place.home, place.sink):
            os.mkdir(folder, 0o755)
            if account.switch:
                os.chown(folder, account.uid, account.gid)
        self.addCleanup(demo.stop)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            demo.play(place)
        text = output.getvalue()
        for number, (_, fate, _) in enumerate(demo.letters(account.name, place.reader), 1):
            self.assertIn(f"  Subject: {number}: {fate}\n", text)
        self.assertRegex(
            text, rf"(?s)USER {place.reader} +\+OK.*RETR 1 +\+OK.*Delivered-To: {place.reader}@.*QUIT +\+OK"
        )
        [password] = re.findall(rf"curl --user {place.reader}:(\S+) pop3://127\.0\.0\.1:\d+/1\n", text)
        self.assertNotIn(password, text.partition("Talk to it")[0])
        [pid] = map(int, re.findall(r"The daemon still runs \(process (\d+)\)", text))
        self.assertTrue(demo.running(pid, root))
        self.assertTrue(demo.stop())
        self.assertFalse(demo.running(pid, root))
        self.assertFalse(demo.stop())

"""Tests of qtwist.mail.dates and qtwist.mail.received."""

from __future__ import annotations

import calendar
import re
import time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.dates import ctime_date, rfc822_date
from qtwist.mail.received import queue_received, server_received

WHEN = calendar.timegm((2026, 11, 2, 3, 4, 5))
SECONDS = st.integers(0, 2**33)


class DateTests(SynchronousTestCase):
    def test_rfc822(self) -> None:
        """§2.5: no weekday, the day without a leading zero."""
        self.assertEqual(rfc822_date(WHEN), b"2 Nov 2026 03:04:05 -0000")
        self.assertEqual(rfc822_date(WHEN + 0.9), b"2 Nov 2026 03:04:05 -0000")
        self.assertEqual(rfc822_date(0), b"1 Jan 1970 00:00:00 -0000")

    def test_ctime(self) -> None:
        """§2.5: the day with a leading zero."""
        self.assertEqual(ctime_date(WHEN), b"Mon Nov 02 03:04:05 2026")

    @given(SECONDS)
    def test_both_tell_the_time(self, seconds: int) -> None:
        then = time.strptime(rfc822_date(seconds).decode(), "%d %b %Y %H:%M:%S -0000")
        self.assertEqual(calendar.timegm(then), seconds)
        expected = re.sub(r" ( \d) ", lambda day: f" {day[1].replace(' ', '0')} ", time.asctime(time.gmtime(seconds)))
        self.assertEqual(ctime_date(seconds).decode(), expected)


class ReceivedTests(SynchronousTestCase):
    def test_queue(self) -> None:
        """§6.2."""
        self.assertEqual(
            queue_received(28188, b"by uid 0", WHEN),
            b"Received: (qmail 28188 invoked by uid 0); 2 Nov 2026 03:04:05 -0000\n",
        )

    def test_server(self) -> None:
        """§16.7, §28.8: HELO is left out when it is the host's name."""
        for helo in (None, b"cli.test", b"CLI.test"):
            self.assertEqual(
                server_received(
                    remote_host=b"cli.test",
                    remote_ip=b"10.0.0.9",
                    local=b"mx.local",
                    protocol=b"SMTP",
                    seconds=WHEN,
                    helo=helo,
                ),
                b"Received: from cli.test (10.0.0.9)\n  by mx.local with SMTP; 2 Nov 2026 03:04:05 -0000\n",
            )

    def test_server_with_odd_bytes(self) -> None:
        """§28.8: EHLO foo;bar, no host name, IDENT ide(nt."""
        self.assertEqual(
            server_received(
                remote_host=b"unknown",
                remote_ip=b"10.0.0.9",
                remote_info=b"ide(nt",
                local=b"127.0.0.1",
                protocol=b"SMTP",
                seconds=WHEN,
                helo=b"foo;bar",
            ),
            b"Received: from unknown (HELO foo?bar) (ide?nt@10.0.0.9)\n"
            b"  by 127.0.0.1 with SMTP; 2 Nov 2026 03:04:05 -0000\n",
        )

    @given(st.binary(max_size=30), st.binary(max_size=30), st.none() | st.binary(max_size=30))
    def test_nobody_adds_a_line(self, host: bytes, helo: bytes, info: bytes | None) -> None:
        line = server_received(
            remote_host=host,
            remote_ip=host,
            remote_info=info,
            local=host,
            protocol=b"SMTP",
            seconds=WHEN,
            helo=helo,
        )
        self.assertEqual((line.count(b"\n"), line.count(b"("), line.count(b";")), (2, line.count(b")"), 1))

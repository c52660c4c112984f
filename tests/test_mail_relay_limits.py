"""control/relaylimits: what its lines mean, and how recipients are counted (spec/related.md §14.3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.relay_limits import DAY, Meter, Rate, parse, parse_all, rates_of


class TextTests(SynchronousTestCase):
    def test_lines(self) -> None:
        self.assertEqual(parse(b":1000"), (b"", (Rate(1000, DAY),)))
        self.assertEqual(parse(b"Ann@X.test:100/3600,500"), (b"ann@x.test", (Rate(100, 3600), Rate(500, DAY))))
        self.assertEqual(parse(b"root:0"), (b"root", ()))
        for line in (b"1000", b"ann:", b"ann:x", b"ann:1/0", b"ann:1/", b"ann:-1", b"ann:1,,2"):
            self.assertRaises(ValueError, parse, line)

    def test_whom(self) -> None:
        """The login's own line, else its domain's, else everybody's."""
        limits = parse_all([b"ann@x.test:1", b"@x.test:2", b":3", b"joe:0"])
        for login, wanted in ((b"ann@x.test", 1), (b"bob@x.test", 2), (b"tim", 3), (b"tim@y.test", 3)):
            self.assertEqual(rates_of(limits, login)[0].recipients, wanted)
        self.assertEqual(rates_of(limits, b"joe"), ())
        self.assertEqual(rates_of({}, b"joe"), ())


class MeterTests(SynchronousTestCase):
    def test_enough(self) -> None:
        meter, rates = Meter(), (Rate(3, 30),)
        self.assertEqual([meter.take(b"joe", rates, 0) for _ in range(4)], [None, None, None, rates[0]])
        self.assertIsNone(meter.take(b"ann", rates, 0))
        self.assertEqual(meter.take(b"joe", rates, 9.9), rates[0])
        self.assertIsNone(meter.take(b"joe", rates, 10))
        self.assertEqual(meter.take(b"joe", rates, 10), rates[0])

    def test_news(self) -> None:
        """The log gets one line for each time that somebody is stopped."""
        meter, rates = Meter(), (Rate(1, 10),)
        told = []
        for now in (0, 1, 2, 10, 11, 12):
            if meter.take(b"joe", rates, now) is not None:
                told.append(meter.is_news(b"joe"))
        self.assertEqual(told, [True, False, True, False])

    @given(st.lists(st.floats(0, 50), max_size=60), st.integers(1, 5), st.integers(1, 100))
    def test_never_more(self, pauses: list[float], recipients: int, seconds: int) -> None:
        """In any time of `seconds`, not more than twice the rate."""
        meter, rates = Meter(), (Rate(recipients, seconds),)
        now, taken = 0.0, []
        for pause in pauses:
            now += pause
            if meter.take(b"joe", rates, now) is None:
                taken.append(now)
        for start in taken:
            self.assertLessEqual(sum(start <= moment < start + seconds for moment in taken), 2 * recipients)

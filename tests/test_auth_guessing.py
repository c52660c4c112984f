"""Guessing is slow, for those who guess; proofs of recent logins (issue 4, item 2)."""

from __future__ import annotations

import tracemalloc

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth import guessing, proofs
from qtwist.auth.guessing import FIRST_DELAY, LONGEST_DELAY, Guard, network_of
from qtwist.auth.proofs import LIFETIME, Proofs

HERE, THERE = "192.0.2.1", "198.51.100.7"


class GuardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.guard = Guard()

    def test_networks(self) -> None:
        for ip, network in (
            ("192.0.2.1", "192.0.2.0/24"),
            ("192.0.2.254", "192.0.2.0/24"),
            ("2001:db8:1:2:3::1", "2001:db8:1:2::/64"),
            ("", ""),
        ):
            self.assertEqual(network_of(ip), network)

    def test_growth(self) -> None:
        """Twice as long each time, up to a limit."""
        delays = [self.guard.failed(HERE, b"joe", 0.0) for _ in range(8)]
        self.assertEqual(delays, [1, 2, 4, 8, 16, 30, 30, 30])
        self.assertEqual((FIRST_DELAY, LONGEST_DELAY), (1, 30))

    def test_by_network(self) -> None:
        """One network that tries many names."""
        delays = [self.guard.failed(f"192.0.2.{number}", b"n%d" % number, 0.0) for number in range(4)]
        self.assertEqual(delays, [1, 2, 4, 8])

    def test_by_name(self) -> None:
        """Many networks that try one name."""
        delays = [self.guard.failed(f"192.0.{number}.1", b"joe", 0.0) for number in range(4)]
        self.assertEqual(delays, [1, 2, 4, 8])

    def test_not_waiting_does_not_help(self) -> None:
        """Who hangs up waits before the next try instead, and so do connections side by side, one after the other."""
        self.assertEqual(self.guard.wait(HERE, b"joe", 0.0), 0)
        delay = self.guard.failed(HERE, b"joe", 0.0)
        waits = [self.guard.wait(HERE, b"joe", 0.0) for _ in range(4)]
        self.assertEqual(waits, [delay, delay + 2, delay + 4, delay + 6])
        self.assertEqual(self.guard.wait(HERE, b"ann", 100.0), 0)

    def test_waits_shrink_with_time(self) -> None:
        """What a wait is counted from is the time of the try."""
        self.guard.failed(HERE, b"joe", 1000.0)
        self.assertEqual(self.guard.wait(HERE, b"joe", 1000.25), 0.75)
        self.assertEqual(self.guard.wait(HERE, b"joe", 1010.0), 0)

    def test_not_too_many_wait(self) -> None:
        for _ in range(10):
            self.guard.failed(HERE, b"joe", 0.0)
        waits = [self.guard.wait(HERE, b"joe", 0.0) for _ in range(5)]
        self.assertEqual(waits, [30, 60, None, None, None])

    def test_nobody_is_locked_out(self) -> None:
        """Whatever strangers do to a name, from elsewhere it logs in without waiting."""
        for number in range(200):
            self.guard.failed(f"10.0.{number}.1", b"joe", 0.0)
        self.assertEqual(self.guard.wait(THERE, b"joe", 0.0), 0)

    def test_neighbours(self) -> None:
        """Who has logged in from a network is not slowed by others there, until failing itself."""
        self.guard.succeeded(HERE, b"joe")
        for _ in range(5):
            self.guard.failed(HERE, b"ann", 0.0)
        self.assertEqual(self.guard.wait(HERE, b"joe", 0.0), 0)
        self.assertEqual(self.guard.wait(HERE, b"ann", 0.0), 16)
        self.guard.failed(HERE, b"joe", 0.0)
        self.assertNotEqual(self.guard.wait(HERE, b"joe", 0.0), 0)

    def test_success_does_not_pay_for_guesses(self) -> None:
        """Who has an account of his own cannot take back his failures with it."""
        self.guard.failed(HERE, b"joe", 0.0)
        self.guard.failed(HERE, b"joe", 0.0)
        self.guard.succeeded(HERE, b"mallory")
        self.assertEqual(self.guard.failed(HERE, b"joe", 0.0), 4)

    def test_forgiveness(self) -> None:
        for _ in range(3):
            self.guard.failed(HERE, b"joe", 0.0)
        self.assertEqual(self.guard.failed(HERE, b"joe", 3 * guessing.FORGIVENESS), 1)

    def test_bounded(self) -> None:
        """A million addresses do not take all memory, and the ones seen last are remembered."""
        self.patch(guessing, "MOST_REMEMBERED", 50)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for number in range(2000):
            ip = f"10.{number // 250}.{number % 250}.1"
            self.guard.failed(ip, b"n%d" % number, 0.0)
            self.guard.succeeded(ip, b"n%d" % number)
        self.assertLess(tracemalloc.get_traced_memory()[0], 200_000)
        self.assertEqual(self.guard.failed("10.7.249.1", b"x", 0.0), 2)
        self.assertEqual(self.guard.failed("10.0.0.1", b"y", 0.0), 1)


class ProofTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.proofs = Proofs(self.clock.seconds)
        self.proofs.remember(b"joe", b"secret", b"hash")

    def test_holds(self) -> None:
        self.assertTrue(self.proofs.holds(b"joe", b"secret", b"hash"))

    def test_bound_to_all(self) -> None:
        """To the name, the password, and the hash that is stored now."""
        for name, password, stored in (
            (b"ann", b"secret", b"hash"),
            (b"joe", b"Secret", b"hash"),
            (b"joe", b"", b"hash"),
            (b"joe", b"secret", b"new hash"),
            (b"joe", b"secreth", b"ash"),
        ):
            self.assertFalse(self.proofs.holds(name, password, stored))

    def test_ends(self) -> None:
        self.clock.advance(LIFETIME - 1)
        self.assertTrue(self.proofs.holds(b"joe", b"secret", b"hash"))
        self.clock.advance(1)
        self.assertFalse(self.proofs.holds(b"joe", b"secret", b"hash"))

    def test_another_process(self) -> None:
        """What is kept has nothing of the password, and is worth nothing elsewhere."""
        other = Proofs(self.clock.seconds)
        other.remember(b"joe", b"secret", b"hash")
        self.assertNotEqual(other._known, self.proofs._known)
        self.assertNotIn("secret", repr(self.proofs._known))

    def test_bounded(self) -> None:
        self.patch(proofs, "MOST_REMEMBERED", 3)
        for number in range(9):
            self.proofs.remember(b"n%d" % number, b"secret", b"hash")
        self.assertEqual(list(self.proofs._known), [b"n6", b"n7", b"n8"])

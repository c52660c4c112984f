"""The schedule of the queue manager (spec/qmail.md §9.5)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.interfaces import RecipientRecord
from qtwist.send.schedule import Channel, Pass, is_dying, next_attempt

BIRTH = 1_000_000_000.0


def ages(channel: str, until: float) -> list[int]:
    """The ages at which a message is tried that always fails, up to the first one past `until`."""
    tried = [0]
    while tried[-1] <= until:
        tried.append(int(next_attempt(BIRTH, BIRTH + tried[-1], channel) - BIRTH))
    return tried


class RetryTests(SynchronousTestCase):
    def test_local_ages(self) -> None:
        """§9.5: local 0, 100, 400, 900, 1600, 2500, 3600 …"""
        self.assertEqual(ages("local", 3599), [0, 100, 400, 900, 1600, 2500, 3600])

    def test_remote_ages(self) -> None:
        """§9.5: remote 0, 400, 1600, 3600, 6400, 10000 …"""
        self.assertEqual(ages("remote", 9999), [0, 400, 1600, 3600, 6400, 10000])

    def test_last_attempt(self) -> None:
        """§9.5: with the default lifetime the last attempt is at age 608400, the first one past 604800."""
        self.assertEqual(ages("remote", 604800)[-1], 608400)
        self.assertFalse(is_dying(BIRTH, BIRTH + 604800, 604800))
        self.assertTrue(is_dying(BIRTH, BIRTH + 608400, 604800))

    def test_birth_in_the_future(self) -> None:
        """§9.5, §26.10: n is 0 when the clock has been set back."""
        self.assertEqual(next_attempt(BIRTH, BIRTH - 5000, "remote"), BIRTH + 400)

    @given(st.integers(0, 10**7), st.sampled_from(["local", "remote"]))
    def test_always_later(self, age: int, channel: str) -> None:
        self.assertGreater(next_attempt(BIRTH, BIRTH + age, channel), BIRTH + age)


def recipients(count: int) -> list[RecipientRecord]:
    return [RecipientRecord(offset, False, b"r%d@x.test" % offset) for offset in range(count)]


class ChannelTests(SynchronousTestCase):
    def open(self, channel: Channel, number: int, count: int) -> Pass:
        channel.add_new(number, BIRTH)
        self.assertEqual(channel.take_due(BIRTH), number)
        one = channel.begin(number, b"s@x.test", BIRTH, BIRTH, 604800)
        one.pending.extend(recipients(count))
        one.at_end = True
        return one

    def test_nothing_before_its_time(self) -> None:
        channel = Channel("local", 10)
        channel.add(1, BIRTH + 5)
        channel.add(2, BIRTH + 3)
        self.assertEqual(channel.next_due(), BIRTH + 3)
        self.assertIsNone(channel.take_due(BIRTH + 2.9))
        self.assertEqual(channel.take_due(BIRTH + 5), 2)
        self.assertEqual(channel.take_due(BIRTH + 5), 1)
        self.assertIsNone(channel.take_due(BIRTH + 5))

    def test_other_times(self) -> None:
        """What was withdrawn does not come, and what was put off comes at its new time, once."""
        channel = Channel("local", 10)
        channel.add(1, BIRTH)
        self.assertEqual(channel.withdraw(1), BIRTH)
        channel.add(2, BIRTH)
        channel.add(2, BIRTH + 50)
        self.assertEqual(channel.next_due(), BIRTH + 50)
        self.assertIsNone(channel.take_due(BIRTH + 49))
        self.assertEqual(channel.take_due(BIRTH + 50), 2)
        self.assertIsNone(channel.take_due(BIRTH + 50))

    def test_slots_are_bounded(self) -> None:
        channel = Channel("local", 4)
        for number in range(6):
            self.open(channel, number, 1)
        started = [chosen for _ in range(4) if (chosen := channel.choose()) is not None]
        self.assertEqual(len(started), 4)
        self.assertIsNone(channel.choose())
        channel.free_slot(started[0][0])
        self.assertIsNotNone(channel.choose())

    def test_new_mail_and_later_tries_take_turns(self) -> None:
        """All the mail of a day without the daemon is due: what has just come does not wait for the end of it."""
        channel = Channel("remote", 100)
        for number in range(50):
            channel.add(number, BIRTH - 1000 + number)
        for number in range(90, 93):
            channel.add_new(number, BIRTH)
        taken = [channel.take_due(BIRTH) for _ in range(8)]
        self.assertEqual(taken, [90, 0, 91, 1, 92, 2, 3, 4])

    def test_later_tries_leave_slots_to_new_mail(self) -> None:
        """However many hosts hang: a quarter of the slots, and of the passes, is for what was never tried."""
        channel = Channel("remote", 8)
        for number in range(50):
            channel.add(number, BIRTH)
        opened = []
        while (number := channel.take_due(BIRTH)) is not None:
            opened.append(channel.begin(number, b"s@x.test", BIRTH, BIRTH, 604800))
            opened[-1].pending.extend(recipients(1))
        self.assertEqual(len(opened), 12)
        started = []
        while (chosen := channel.choose()) is not None:
            started.append(chosen[0])
        self.assertEqual(len(started), 6)
        new = self.open(channel, 90, 1)
        chosen = channel.choose()
        assert chosen is not None
        self.assertIs(chosen[0], new)
        # When one of theirs has ended, the next of them begins, and when its pass has, another message is looked at.
        self.assertIsNone(channel.choose())
        channel.free_slot(started[0])
        self.assertIsNotNone(channel.choose())
        self.assertIsNone(channel.take_due(BIRTH))
        channel.end(started[0])
        self.assertEqual(channel.take_due(BIRTH), 12)
        channel.give_back(12, BIRTH)
        self.assertEqual(channel.take_due(BIRTH), 12)

    def test_new_mail_that_is_put_off(self) -> None:
        """A message that was new comes again when it is due, and not before; so does one that was withdrawn."""
        channel = Channel("remote", 8)
        channel.add_new(1, BIRTH)
        channel.add_new(2, BIRTH)
        self.assertEqual(channel.next_due(), BIRTH)
        channel.wake_all(BIRTH - 5)
        self.assertEqual(list(channel.unrecorded()), [])
        self.assertEqual(channel.take_due(BIRTH), 1)
        channel.give_back(1, BIRTH + 123)
        self.assertEqual(channel.withdraw(2), BIRTH)
        channel.add(2, BIRTH + 400)
        self.assertEqual(channel.next_due(), BIRTH + 123)
        self.assertIsNone(channel.take_due(BIRTH + 122))
        self.assertEqual(channel.take_due(BIRTH + 400), 1)
        self.assertEqual(channel.take_due(BIRTH + 400), 2)
        self.assertIsNone(channel.next_due())

    def test_concurrency_zero_holds_the_channel(self) -> None:
        """§9.1: concurrency 0 puts that channel on hold."""
        channel = Channel("remote", 0)
        channel.add(1, BIRTH)
        self.assertIsNone(channel.take_due(BIRTH))
        self.assertIsNone(channel.choose())

    def test_a_huge_message_leaves_slots_to_others(self) -> None:
        channel = Channel("remote", 20)
        huge = self.open(channel, 1, 1000)
        while channel.choose():
            pass
        self.assertEqual(huge.running, 15)
        small = self.open(channel, 2, 1)
        chosen = channel.choose()
        assert chosen is not None
        self.assertIs(chosen[0], small)

    def test_siblings(self) -> None:
        """How many of a message may be under way: those that are there, as far as there are slots for them."""
        channel = Channel("remote", 20)
        one = self.open(channel, 1, 100)
        self.assertEqual(channel.siblings(one), 15)
        few = self.open(channel, 2, 3)
        while channel.choose() is not None:
            pass
        self.assertEqual((few.running, len(few.pending), channel.siblings(few)), (3, 0, 3))
        self.assertEqual(channel.siblings(self.open(channel, 3, 1)), 1)
        one.first = False
        self.assertEqual(channel.siblings(one), 1)

    def test_siblings_of_local_deliveries(self) -> None:
        """As many as there are slots for, but one other only when those become few."""
        channel = Channel("local", 8)
        one = self.open(channel, 1, 100)
        hints = []
        while channel.choose() is not None:
            hints.append(channel.siblings(one))
        self.assertEqual(hints, [8, 7, 6, 5, 2, 2])
        channel = Channel("local", 1)
        one = self.open(channel, 1, 100)
        self.assertIsNotNone(channel.choose())
        self.assertEqual(channel.siblings(one), 1)

    def test_the_least_served_goes_first(self) -> None:
        channel = Channel("remote", 6)
        first = self.open(channel, 1, 100)
        second = self.open(channel, 2, 100)
        while channel.choose():
            pass
        self.assertEqual((first.running, second.running), (3, 3))

    def test_open_passes_are_bounded(self) -> None:
        channel = Channel("local", 2)
        for number in range(50):
            channel.add(number, BIRTH)
        taken = []
        while (number := channel.take_due(BIRTH)) is not None:
            taken.append(number)
        self.assertEqual(taken, [0, 1, 2, 3])
        channel.give_back(0, BIRTH + 123)
        self.assertEqual(channel.take_due(BIRTH), 4)
        self.assertEqual(channel.waiting(), 46)

    def test_alarm_makes_all_due_and_remembers_what_to_record(self) -> None:
        """§9.2: ALRM sets every due time to now; the end writes due times into the mtimes."""
        channel = Channel("local", 1)
        channel.add(7, BIRTH + 900)
        channel.add(8, BIRTH - 900)
        self.assertEqual(list(channel.unrecorded()), [])
        channel.wake_all(BIRTH)
        self.assertEqual(sorted(channel.unrecorded()), [(7, BIRTH), (8, BIRTH - 900)])
        self.assertEqual(channel.take_due(BIRTH), 8)
        self.assertEqual(list(channel.unrecorded()), [(7, BIRTH)])

    @given(st.lists(st.integers(0, 100), max_size=60))
    def test_messages_come_in_order_of_time(self, dues: list[int]) -> None:
        channel = Channel("local", 100)
        for number, due in enumerate(dues):
            channel.add(number, BIRTH + due)
        order = []
        while (number := channel.take_due(BIRTH + 100)) is not None:
            order.append(dues[number])
        self.assertEqual(order, sorted(dues))

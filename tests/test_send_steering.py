"""Holding, failing, dropping and retrying under a running queue manager (doc/queue.md)."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport

from qtwist.control import ControlError
from qtwist.mail.envelope import Report
from qtwist.mail.holds import DESTINATION, SENDER, Hold, Holds
from qtwist.send import desk
from qtwist.send.desk import CONNECTIONS, DeskFactory
from qtwist.send.flushing import INTERVAL, STARTED
from qtwist.send.steering import DROP, FAIL, PATIENCE, Steering, SteeringError
from tests.test_send_manager import ManagerCase

LATER = Report.deferral(b"greylisted\n")


class SteeringCase(ManagerCase):
    def setUp(self) -> None:
        super().setUp()
        self.held: list[Hold] = []
        self.manager.keeper._read = lambda: Holds(self.held)
        self.steering = Steering(self.manager)

    def settle(self, number: int, verdict: str) -> Deferred[int]:
        return Deferred.fromCoroutine(self.steering.settle(number, self.birth(number), verdict, 7))

    def birth(self, number: int) -> float:
        return self.queue.infos[number].birth if number in self.queue.infos else 0.0

    def deferred_message(self) -> int:
        self.remote.answers[b"a@far.test"] = LATER
        self.local.answers[b"joe@here.test"] = LATER
        self.start()
        number = self.queue.send(b"ann@far.test", b"a@far.test", b"joe@here.test")
        self.go()
        self.log()
        return number

    def hold(self, *holds: Hold) -> None:
        self.held = list(holds)
        self.steering.reread_holds()


class SettleTests(SteeringCase):
    def test_fail(self) -> None:
        """Both channels are bounced at once, in one notice; the message ends."""
        number = self.deferred_message()
        self.remote.answers[b"ann@far.test"] = Report.success()
        self.assertEqual(self.successResultOf(self.settle(number, FAIL)), 2)
        self.go()
        envelope, notice = self.queue.accepted[-1]
        self.assertEqual(envelope.recipients, (b"ann@far.test",))
        self.assertIn(b"<a@far.test>:\n", notice)
        self.assertIn(b"<joe@here.test>:\n", notice)
        self.assertIn(f"fail msg {number} by uid 7", self.log_but_status()[0])
        self.assertNotIn(number, self.queue.messages)
        self.assertEqual(self.manager.keeper.claimed, set())

    def test_drop(self) -> None:
        """Nothing is sent, not even what had failed before."""
        number = self.deferred_message()
        self.queue.bounces[number] = b"<x@y>:\nno\n\n"
        self.successResultOf(self.settle(number, DROP))
        self.go(1000)
        self.assertEqual(len(self.queue.accepted), 1)
        self.assertEqual((self.queue.messages, self.queue.files, self.queue.bounces), ({}, {}, {}))
        self.assertEqual(self.log_but_status(), [f"drop msg {number} by uid 7", f"end msg {number}"])

    def test_unknown(self) -> None:
        self.start()
        self.failureResultOf(self.settle(4711, DROP), SteeringError)

    def test_running_delivery_is_waited_for(self) -> None:
        self.start()
        number = self.queue.send(b"ann@far.test", b"a@far.test")
        self.go()
        result = self.settle(number, DROP)
        self.assertNoResult(result)
        self.remote.open[0][1].callback(LATER)
        self.go(1)
        self.successResultOf(result)
        self.assertNotIn(number, self.queue.messages)

    def test_delivery_that_does_not_end(self) -> None:
        """After some time nothing is done, and the message goes on."""
        self.start()
        number = self.queue.send(b"ann@far.test", b"a@far.test")
        self.go()
        result = self.settle(number, DROP)
        for _ in range(PATIENCE):
            self.go(1)
        self.failureResultOf(result, SteeringError)
        self.remote.open[0][1].callback(LATER)
        self.go(400)
        self.assertEqual(len(self.remote.seen), 2)

    def test_pass_that_is_being_opened(self) -> None:
        """Wherever the disk is slow while a pass opens or ends: the decision waits for it, and counts once."""
        for method in ("info", "postpone", "recipients", "mark", "finish_channel"):
            with self.subTest(method=method):
                self.setUp()
                number = self.deferred_message()
                self.queue.slow.add(method)
                self.manager.retry([number])
                result = self.settle(number, FAIL)
                self.manager.keep_back()
                self.go()
                self.queue.slow.clear()
                self.queue.resume()
                self.go(1)
                self.go(1)
                self.assertEqual(self.successResultOf(result), 2)
                self.assertEqual(self.log_but_status().count(f"fail msg {number} by uid 7"), 1)
                self.assertNotIn(number, self.queue.messages)
                self.assertEqual(self.flushLoggedErrors(), [])

    def test_one_channel_is_being_opened(self) -> None:
        """The other one waits for its time: the decision is about both."""
        number = self.deferred_message()
        self.queue.slow.add("info")
        self.go(100)  # the local one is due
        self.queue.slow.clear()
        result = self.settle(number, FAIL)
        self.assertNoResult(result)
        self.queue.resume()
        self.go(1)
        self.assertEqual(self.successResultOf(result), 2)
        tried = [recipient for _, recipient in self.local.seen + self.remote.seen]
        self.assertEqual(tried, [b"joe@here.test", b"a@far.test", b"ann@far.test"])  # the last is told of it

    def test_one_channel_is_ending(self) -> None:
        """One pass has ended, the other one has not yet recorded when it is due again."""
        self.local.answers[b"joe@here.test"] = LATER
        self.start()
        number = self.queue.send(b"ann@far.test", b"a@far.test", b"joe@here.test")
        self.queue.slow.add("postpone")
        self.go()
        self.queue.slow.clear()
        self.queue.resume_one(1)  # the remote pass goes on
        self.remote.open[0][1].callback(Report.success())
        result = self.settle(number, FAIL)
        self.assertNoResult(result)
        self.queue.resume()
        self.go(1)
        self.assertEqual(self.successResultOf(result), 1)

    def test_number_of_another_message(self) -> None:
        """While deliveries are waited for, the message may end, and its number be given to another one."""
        self.remote.answers[b"b@far.test"] = LATER
        self.start()
        number = self.queue.send(b"ann@far.test", b"a@far.test")
        self.go()
        result = self.settle(number, DROP)
        self.remote.open[0][1].callback(Report.success())
        self.queue._next = number - 1
        self.clock.advance(0.5)
        self.assertEqual(self.queue.send(b"eve@far.test", b"b@far.test"), number)
        self.go(1)
        self.go(2)
        self.failureResultOf(result, SteeringError)
        self.assertIn(number, self.queue.messages)
        self.assertEqual(self.log_but_status().count(f"drop msg {number} by uid 7"), 0)

    def test_stop(self) -> None:
        """A decision that has begun is waited for."""
        number = self.deferred_message()
        self.queue.slow.add("append_bounce")
        result = self.settle(number, FAIL)
        stopped = self.manager.stopService()
        self.assertNoResult(stopped)
        self.queue.slow.clear()
        self.queue.resume()
        self.assertEqual(self.successResultOf(result), 2)
        self.successResultOf(stopped)

    def test_stop_while_waiting(self) -> None:
        """A decision that waits for a delivery is given up."""
        self.start()
        number = self.queue.send(b"ann@far.test", b"a@far.test")
        self.go()
        result = self.settle(number, DROP)
        stopped = self.manager.stopService()
        self.go(1)
        self.assertIn("stopping", str(self.failureResultOf(result, SteeringError).value))
        self.assertNoResult(stopped)
        self.remote.open[0][1].callback(LATER)
        self.successResultOf(stopped)
        self.assertIn(number, self.queue.messages)

    def test_disk_trouble(self) -> None:
        """What the disk refuses leaves the message where it was."""
        number = self.deferred_message()
        self.queue.broken.add("append_bounce")
        self.failureResultOf(self.settle(number, FAIL), SteeringError)
        self.queue.broken.clear()
        self.assertEqual(len([key for key in self.queue.files if key[0] == number]), 2)
        self.go(400)
        self.assertEqual(len(self.remote.seen), 2)


class HoldTests(SteeringCase):
    def test_sender(self) -> None:
        """A held sender's mail is not tried; released, it is at once."""
        self.held = [Hold.make(SENDER, b"ann@far.test")]
        self.remote.answers[b"a@far.test"] = Report.success()
        self.start()
        number = self.queue.send(b"ann@far.test", b"a@far.test")
        self.go(2000)
        self.assertEqual(self.remote.seen, [])
        self.hold()
        self.go()
        self.assertEqual(len(self.remote.seen), 1)
        self.assertNotIn(number, self.queue.messages)

    def test_destination(self) -> None:
        """Only the recipients there are kept back, even beyond the lifetime."""
        self.held = [Hold.make(DESTINATION, b"far.test")]
        self.remote.answers[b"a@far.test"] = self.remote.answers[b"b@near.test"] = Report.success()
        self.start()
        number = self.queue.send(b"ann@x.test", b"a@far.test", b"b@near.test")
        self.go()
        for _ in range(3):
            self.go(400_000)
        self.assertEqual([recipient for _, recipient in self.remote.seen], [b"b@near.test"])
        self.assertIn(number, self.queue.messages)
        self.hold()
        self.go()
        self.assertEqual([recipient for _, recipient in self.remote.seen], [b"b@near.test", b"a@far.test"])

    def test_destination_by_either_name(self) -> None:
        """As the sender knew the address, and as it is delivered to in a virtual domain."""
        for address in (b"a@v.test", b"joe-a@v.test"):
            self.virtual = b"v.test:joe"
            self.setUp()
            self.held = [Hold.make(DESTINATION, address)]
            self.local.answers[b"joe-a@v.test"] = self.local.answers[b"joe-b@v.test"] = Report.success()
            self.start()
            self.queue.send(b"ann@x.test", b"a@v.test", b"b@v.test")
            self.go()
            self.assertEqual([recipient for _, recipient in self.local.seen], [b"joe-b@v.test"], address)
            self.hold()
            self.go()
            self.assertEqual(len(self.local.seen), 2)

    def test_hold_during_a_pass(self) -> None:
        """What is not started yet is kept back."""
        self.concurrency = {"local": 10, "remote": 1}
        self.manager = self.build()
        self.manager.keeper._read = lambda: Holds(self.held)
        self.steering = Steering(self.manager)
        self.start()
        number = self.queue.send(b"ann@x.test", b"a@far.test", b"b@far.test")
        self.go()
        self.hold(Hold.of_message(number, self.queue.infos[number].birth))
        self.remote.open[0][1].callback(Report.success())
        self.go(5000)
        self.assertEqual(len(self.remote.seen), 1)
        self.hold()
        self.go()
        self.assertEqual(len(self.remote.seen), 2)

    def test_hold_of_the_last_recipient(self) -> None:
        """A hold that comes when all is under way keeps nothing back: the message ends with its deliveries."""
        self.start()
        number = self.queue.send(b"ann@x.test", b"a@far.test")
        self.go()
        self.hold(Hold.of_message(number, self.queue.infos[number].birth))
        self.remote.open[0][1].callback(Report.success())
        self.go()
        self.assertNotIn(number, self.queue.messages)

    def test_released_once(self) -> None:
        """What is free again is tried at once, and then as often as anything else, however often holds change."""
        self.held = [Hold.make(DESTINATION, b"far.test")]
        self.remote.answers[b"a@far.test"] = LATER
        self.start()
        self.queue.send(b"ann@x.test", b"a@far.test")
        self.go()
        self.assertEqual(len(self.remote.seen), 0)
        for held in ((), (Hold.make(DESTINATION, b"near.test"),), ()):
            self.hold(*held)
            self.go()
            self.assertEqual(len(self.remote.seen), 1)

    def test_signals_while_it_stops(self) -> None:
        """What is held, released or made due while due times are being recorded changes nothing of the stop."""
        self.concurrency = {"local": 1, "remote": 1}
        self.manager = self.build()
        self.manager.keeper._read = lambda: Holds(self.held)
        self.start()
        for _ in range(3):
            self.queue.send(b"ann@x.test", b"a@far.test", b"joe@here.test")
        self.go()
        self.queue.slow.add("postpone")
        self.manager.retry_all()
        stopped = self.manager.stopService()
        for spawner in (self.local, self.remote):
            spawner.open[0][1].callback(LATER)
        while self.queue.held_up:
            self.held = [] if self.held else [Hold.make(SENDER, b"ann@x.test")]
            self.manager.reread()
            self.manager.retry_all()
            self.queue.resume_one(0)
        self.successResultOf(stopped)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.log()[-1], "status: exiting")

    def test_retry(self) -> None:
        number = self.deferred_message()
        self.steering.retry([number])
        self.go()
        self.assertEqual((len(self.remote.seen), len(self.local.seen)), (2, 2))


class FlushTests(SteeringCase):
    def flush(self, domain: bytes) -> Deferred[int]:
        return Deferred.fromCoroutine(self.steering.flush(domain))

    def test_flush(self) -> None:
        """RFC 1985: what waits for the domain is tried now, and nothing else."""
        addresses = (b"a@far.test", b"b@FAR.test", b"c@other.test", b"d@sub.far.test")
        self.start()
        for address in addresses:
            self.remote.answers[address] = LATER
            self.queue.send(b"ann@x.test", address)
        self.go()
        before = len(self.remote.seen)
        self.assertEqual(self.successResultOf(self.flush(b"Far.Test")), 2)
        self.go()
        self.assertEqual({recipient for _, recipient in self.remote.seen[before:]}, {b"a@far.test", b"b@FAR.test"})

    def test_not_too_often(self) -> None:
        number = self.deferred_message()
        self.assertEqual(self.successResultOf(self.flush(b"far.test")), 1)
        self.go()
        tries = len(self.remote.seen)
        self.assertEqual(self.successResultOf(self.flush(b"far.test")), STARTED)
        self.go()
        self.assertEqual(len(self.remote.seen), tries)
        self.go(INTERVAL)
        self.assertEqual(self.successResultOf(self.flush(b"far.test")), 1)
        self.assertEqual(self.successResultOf(self.flush(b"none.test")), 0)
        self.assertIn(number, self.queue.messages)

    def test_done_recipients(self) -> None:
        """Who has got the message already needs no try."""
        self.remote.answers[b"b@other.test"] = LATER
        self.start()
        self.queue.send(b"ann@x.test", b"a@far.test", b"b@other.test")
        self.go()
        self.assertEqual(self.successResultOf(self.flush(b"far.test")), 0)

    def test_held(self) -> None:
        """What is held stays held."""
        self.deferred_message()
        self.hold(Hold(SENDER, b"ann@far.test", b"why"))
        tries = len(self.remote.seen)
        self.successResultOf(self.flush(b"far.test"))
        self.go()
        self.assertEqual(len(self.remote.seen), tries)

    def test_disk_trouble(self) -> None:
        self.deferred_message()

        def broken(*_: Any) -> Deferred[Any]:
            raise OSError(5, "Input/output error")

        self.queue.recipients = broken  # type: ignore[method-assign]
        self.assertEqual(self.successResultOf(self.flush(b"far.test")), 0)


class DeskTests(SteeringCase):
    def desk(self, uid: int) -> DeskFactory:
        """Root and 7 may steer, 9 is a server; `uid` is who comes."""
        return DeskFactory(self.steering, frozenset((0, 7)), lambda _: uid, frozenset((9,)), self.clock)

    def test_bounds(self) -> None:
        """So many requests of an account at once, and each has to come within a minute; others are not kept out."""
        factory = self.desk(9)
        connections = []
        for _ in range(CONNECTIONS + 1):
            protocol = factory.buildProtocol(None)
            protocol.makeConnection(transport := StringTransport())
            connections.append((protocol, transport))
        self.assertEqual([one.transport.disconnecting for one, _ in connections], [False] * CONNECTIONS + [True])
        self.assertIn(b"too many requests", connections[-1][1].value())
        factory.peer_uid = lambda _: 7
        other = factory.buildProtocol(None)
        other.makeConnection(transport := StringTransport())
        self.assertEqual(transport.value(), b"")
        self.clock.advance(desk.PATIENCE)
        self.assertTrue(all(one.disconnecting for _, one in connections))
        for protocol, _ in connections:
            protocol.connectionLost()
        other.connectionLost()
        self.assertEqual(factory.connections, {})

    def test_servers_may_flush(self) -> None:
        """Servers of other accounts may have mail tried; they may not steer."""
        self.deferred_message()
        factory = self.desk(9)
        for request, wanted in (
            (b'{"op": "flush", "domain": "far.test"}', {"count": 1}),
            (b'{"op": "flush"}', {"error": "this is no request"}),
            ('{"op": "flush", "domain": "fär.test"}'.encode(), {"error": "this is no request"}),
            (b'{"op": "holds"}', {"error": "only root and the daemon's account may do that"}),
            (b'{"op": "retry", "numbers": []}', {"error": "only root and the daemon's account may do that"}),
        ):
            protocol = factory.buildProtocol(None)
            transport = StringTransport()
            protocol.makeConnection(transport)
            protocol.dataReceived(b"%d:%b," % (len(request), request))
            protocol.connectionLost()
            self.assertEqual(json.loads(transport.value().partition(b":")[2][:-1]), wanted)

    def ask(self, request: bytes, uid: int = 7) -> dict[str, Any]:
        protocol = self.desk(uid).buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        for position in range(len(request)):
            protocol.dataReceived(request[position : position + 1])
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost()
        answer: dict[str, Any] = json.loads(transport.value().partition(b":")[2][:-1])
        return answer

    def asked(self, **request: Any) -> dict[str, Any]:
        text = json.dumps(request).encode()
        return self.ask(b"%d:%b," % (len(text), text))

    def test_attempts(self) -> None:
        """Every attempt with its reply; forgotten with the message."""
        number = self.deferred_message()
        self.go(400)
        [local, remote] = sorted(self.asked(op="attempts", numbers=[number])["attempts"][str(number)], key=str)[::1]
        found = {one["channel"]: one for one in (local, remote)}
        self.assertEqual([one["text"] for one in found["remote"]["attempts"]], ["greylisted\n"] * 2)
        self.assertEqual(found["local"]["address"], "joe@here.test")
        self.assertEqual(self.asked(op=DROP, number=number, birth=self.birth(number)), {"count": 0})
        self.assertEqual(self.asked(op="attempts", numbers=None), {"attempts": {}})

    def test_others_are_refused(self) -> None:
        self.assertIn("only root", self.ask(b'15:{"op": "holds"},', uid=8)["error"])
        self.assertEqual(self.asked(op="holds"), {})
        # Nothing that they say is looked at, nor what servers may do.
        self.assertIn("only root", self.ask(b'39:{"op": "flush", "domain": "far.test"}  ,', uid=8)["error"])

    def test_wrong_holds(self) -> None:
        """Who asks for it hears what is wrong with control/holds; what was held stays held."""
        self.start()
        self.hold(Hold.make(SENDER, b"ann@x.test"))

        def wrong() -> Holds:
            raise ControlError("control/holds", 3, "'x'", "a hold")

        self.manager.keeper._read = wrong
        self.assertIn("control/holds, line 3", self.asked(op="holds")["error"])
        self.queue.send(b"ann@x.test", b"a@far.test")
        self.go()
        self.assertEqual(self.remote.seen, [])

    def test_nonsense(self) -> None:
        self.start()
        for request in (b"x", b"2:{},", b"2:[],", b"3:{{{,", b"99999999:"):
            self.assertIn("no request", self.ask(request)["error"])
        self.assertIn("no request", self.asked(op="retry", numbers=["x"])["error"])
        self.assertIn("unknown operation", self.asked(op="explode")["error"])

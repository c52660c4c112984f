"""`qtwist queue route`: what would become of each recipient now, and why. Nothing is delivered or dialled."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from qtwist.home import Home
from qtwist.local import dotqmail
from qtwist.local.deliver import Forwarded, Job, Parts, deliver
from qtwist.local.errors import DeliveryError
from qtwist.local.users import Users, folder_account
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.envelope import Report
from qtwist.mail.rewriting import LOCAL, Rewriter
from qtwist.queue.looking import NEW, Message
from qtwist.remote.lookup import find_hosts
from qtwist.remote.own import OwnAddresses
from qtwist.remote.routes import RouteError, find_route


def explain(home_path: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """For each recipient that is left: message number, channel, address, and the steps in words."""
    from twisted.internet import reactor

    home = Home(home_path, reactor)
    results: list[Any] = []

    def run() -> None:
        Deferred.fromCoroutine(_explain(home, messages)).addBoth(end)

    def end(result: Any) -> None:
        results.append(result)
        home.reactor.stop()

    home.reactor.callWhenRunning(run)
    home.reactor.run(installSignalHandlers=False)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    rows: list[dict[str, Any]] = results[0]
    return rows


async def _explain(home: Home, messages: Sequence[Message]) -> list[dict[str, Any]]:
    rewriter = home.rewriter()
    rows = []
    for message in messages:
        for channel, address in message.undone():
            there, target = rewriter.route(address) if channel == NEW else (channel, address)
            steps = _rewriting(rewriter, channel, address)
            if there == LOCAL:
                steps += explain_local(home, message, target)
            else:
                steps += await explain_remote(home, target, message.sender)
            rows.append({"id": message.number, "channel": there, "recipient": _text(address), "steps": steps})
    return rows


def _rewriting(rewriter: Rewriter, channel: str, address: bytes) -> list[str]:
    original = address if channel == NEW else rewriter.original(address)
    now = rewriter.route(original)
    steps = [f"rewriting: {_text(original)} is {now[0]}, {_text(now[1])}"]
    if channel != NEW and now != (channel, address):
        steps[0] += f"; but this message was queued when it was {channel}, {_text(address)}, and stays so"
    return steps


def explain_local(home: Home, message: Message, recipient: bytes) -> list[str]:
    """Who owns the address, which .qmail file counts, and what its lines say."""
    local, _, domain = recipient.rpartition(b"@")
    if not local:
        return ["local: nobody; the message is thrown away"]
    base = os.fsencode(home.path)
    users = Users(os.path.join(base, b"users", b"cdb"), partial(folder_account, os.path.join(base, b"alias")))
    try:
        owner = users.find(local)
    except DeliveryError as error:
        return [f"local: no owner: {_text(error.text) or f'code {error.code}'}"]
    steps = [f"local: {_text(local)} belongs to {_text(owner.user)} (user id {owner.uid}), home {_text(owner.home)}"]
    for candidate in dotqmail.candidates(owner.dash, owner.ext):
        if os.path.isfile(os.path.join(owner.home, candidate.name)):
            steps.append(f"file: {_text(candidate.name)}")
            break
    else:
        steps.append("file: none; control/defaultdelivery" if not owner.dash else "file: none")
    default = home.control.text("defaultdelivery") or b""
    job = Job.of(owner, local, domain, message.sender, default, -1, dry_run=True)
    outcome = deliver(job, Parts(home.disk, time.time, b"", _no_forward, {}, 0))
    word = {0: "would do", 100: "would fail"}.get(outcome.code, "would be deferred")
    return [*steps, *(f"{word}: {_text(line)}" for line in outcome.output.splitlines())]


def _no_forward(*_: object) -> Forwarded:
    raise AssertionError("a dry run forwards nothing")


async def explain_remote(home: Home, recipient: bytes, sender: bytes) -> list[str]:
    """The route and the hosts that would be tried, in their order."""
    host = recipient.rpartition(b"@")[2]
    try:
        routes = [home.control.map(name) or ConstantMap() for name in ("smtproutes", "qmtproutes", "authsenders")]
        route = find_route(routes[0], routes[1], host, routes[2], sender)
    except RouteError as error:
        return [f"remote: control/{error.args[0]} cannot be used for {_text(host)}: {error.args[1]}"]
    relay = route.relay
    if route.qmtp_port is not None:
        place = f"{_text(relay.host)}, by QMTP on port {route.qmtp_port}, else by SMTP on port {relay.port}"
        steps = [f"remote: control/qmtproutes sends {_text(host)} to {place}"]
    elif relay.host:
        whose = f"mail of {_text(sender)}" if route.file == "authsenders" else _text(host)
        steps = [f"remote: control/{route.file} sends {whose} to {_text(relay.host)}, port {relay.port}"]
    else:
        steps = [f"remote: the DNS decides for {_text(host)}, port {relay.port}"]
    if route.credentials is not None:
        steps.append(f"login: {_text(route.credentials.username)}")
    hosts = await find_hosts(home.resolver, host, relay, OwnAddresses().get, random.shuffle)
    if isinstance(hosts, Report):
        word = "would fail" if hosts.letter == b"D" else "would be deferred"
        return [*steps, f"{word}: {_text(hosts.text.strip())}"]
    return [*steps, *(f"would try: {one.address} (preference {one.preference})" for one in hosts)]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

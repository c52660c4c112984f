"""control/rspamd: rspamd looks at messages, by its own protocol (POST /checkv2 of its normal worker)."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import TaskDone, TaskFailed, TaskStopped, cooperate
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.control_services import Service
from qtwist.mail.header_fields import HeaderFields
from qtwist.policy.asking import NoAnswer, Scanner, endpoint_of
from qtwist.policy.base import Opinion, refuse
from qtwist.policy.content import Content, discard
from qtwist.policy.session import Session

_LONGEST_ANSWER = 1 << 20
_UNPRINTABLE = re.compile(r"[^ -~]")


class Rspamd(Scanner):
    """Refuses, puts off or marks messages as rspamd says, and has its header fields put in."""

    name = "rspamd"
    idle_without = ("rspamd",)
    timeout = 60

    async def _scan(self, service: Service, session: Session, content: Content) -> Opinion:
        line = _Line(endpoint_of(service, self._clock))
        try:
            code, said = await self._post(line, session, content)
        finally:
            # Twisted's agent gives up the answer, but keeps the connection of one that reads no further.
            line.cut()
        if code != 200:
            raise NoAnswer(f"it answered {code} {said[:100].decode('ascii', 'backslashreplace')!r}")
        try:
            return verdict(json.loads(said), content.fields, service.name)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise NoAnswer(f"its answer makes no sense ({error})") from error

    async def _post(self, line: _Line, session: Session, content: Content) -> tuple[int, bytes]:
        """Code and body of the answer."""
        # It takes long to import, and few servers need it.
        from twisted.web.client import Agent, RequestTransmissionFailed, ResponseFailed
        from twisted.web.http_headers import Headers
        from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer

        @implementer(IAgentEndpointFactory)
        class Here:
            """Where the service is, whatever the address says."""

            def endpointForURI(self, uri: Any) -> Any:
                return line

        agent = Agent.usingEndpointFactory(self._clock, Here())
        try:
            response = await agent.request(
                b"POST",
                b"http://rspamd/checkv2",
                Headers(_told(session, content)),
                implementer(IBodyProducer)(_Blocks)(content.size, content.blocks()),
            )
        except (ResponseFailed, RequestTransmissionFailed) as error:
            raise NoAnswer("; ".join(reason.getErrorMessage() for reason in error.reasons)) from error
        except OSError as error:
            raise NoAnswer(str(error)) from error
        collected = _Collected()
        response.deliverBody(collected)
        return response.code, await collected.all


@implementer(IStreamClientEndpoint)
class _Line:
    """An endpoint that knows what it has connected."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint
        self._connected: list[Any] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(self._keep)

    def _keep(self, protocol: Any) -> Any:
        self._connected.append(protocol)
        return protocol

    def cut(self) -> None:
        """End all; harmless for what has ended."""
        for protocol in self._connected:
            protocol.transport.abortConnection()


def verdict(answer: Any, fields: HeaderFields, name: str) -> Opinion:
    """What rspamd's answer, decoded JSON, means; what it wants in the header is done to `fields`.

    ValueError, TypeError, KeyError, AttributeError or OverflowError when it makes no sense.
    """
    action, score = answer["action"], float(answer.get("score", 0))
    why = f"{action}, score {score:.2f}, by {name}"
    said = (answer.get("messages") or {}).get("smtp_message")
    text = _UNPRINTABLE.sub("?", str(said))[:400].encode() if said else None
    if action == "reject":
        return refuse(554, (text or b"the message is taken for spam") + b" (#5.7.1)", why)
    if action == "soft reject":
        return refuse(451, (text or b"try again later") + b" (#4.7.1)", why)
    if action == "discard":
        return discard(why)
    if action not in ("no action", "greylist", "add header", "rewrite subject", "quarantine"):
        raise ValueError(f"unknown action {action!r}")
    if action in ("add header", "quarantine"):
        fields.add(b"X-Spam", b"Yes")
    if action == "rewrite subject" and answer.get("subject"):
        fields.change(b"Subject", 1, _value(answer["subject"]))
    milter = answer.get("milter") or {}
    for known in milter.get("remove_headers") or {}:
        fields.remove(known.encode("ascii"))
    for known, values in (milter.get("add_headers") or {}).items():
        for value in values if isinstance(values, list) else [values]:
            one = value if isinstance(value, dict) else {"value": value}
            order = int(one.get("order", -1))
            if order < 0:
                fields.add(known.encode("ascii"), _value(one["value"]))
            else:
                fields.insert(order, known.encode("ascii"), _value(one["value"]))
    return None


def _value(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _told(session: Session, content: Content) -> dict[bytes, list[bytes]]:
    """What rspamd gets told beside the message."""
    told: dict[bytes, list[bytes]] = {
        b"From": [content.sender or b"<>"],
        b"Rcpt": list(content.recipients),
        b"Queue-Id": [session.id.encode()],
        b"Content-Type": [b"application/octet-stream"],
    }
    if session.remote_ip:
        told[b"IP"] = [session.remote_ip.encode()]
    if session.helo:
        told[b"Helo"] = [session.helo]
    if b"TCPREMOTEHOST" in session.environment:
        told[b"Hostname"] = [session.environment[b"TCPREMOTEHOST"]]
    if session.user is not None:
        told[b"User"] = [session.user]
    if session.tls is not None:
        told[b"TLS-Cipher"] = [session.tls.cipher.encode()]
    return told


class _Blocks:
    """A body that is made of blocks, `length` octets in all."""

    def __init__(self, length: int, blocks: Iterator[bytes]) -> None:
        self.length = length
        self._blocks = blocks

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self._task = cooperate(consumer.write(block) for block in self._blocks)
        done: Deferred[None] = Deferred()

        def ended(result: Any) -> None:
            if not (isinstance(result, Failure) and result.check(TaskStopped)):
                done.callback(result if isinstance(result, Failure) else None)

        self._task.whenDone().addBoth(ended)
        return done

    def pauseProducing(self) -> None:
        self._task.pause()

    def resumeProducing(self) -> None:
        self._task.resume()

    def stopProducing(self) -> None:
        with contextlib.suppress(TaskStopped, TaskDone, TaskFailed):
            self._task.stop()


class _Collected(Protocol):
    """An answer of bounded length: `all` of it. NoAnswer when there is more."""

    def __init__(self) -> None:
        self._said: list[bytes] = []
        self._size = 0
        self.all: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._said.append(data)
        self._size += len(data)
        if self._size > _LONGEST_ANSWER and not self.all.called:
            self.all.errback(NoAnswer(f"its answer has more than {_LONGEST_ANSWER} octets"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.all.called:
            self.all.callback(b"".join(self._said))

"""What stands between the engines and the wire, or beside them, under fuzz: headers of proxies, clients of QMQP, QMTP
and milters, the packets of a server's process, BINARYMIME, and our own login with a relay.

The invariant is that of :mod:`tests.fuzz.engines`: any bytes are understood or refused with the error that the module
names, however they are cut, and what is passed on is bounded and of its kind.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from qtwist.mail.binary_mime import BinaryMIME, NotConvertible
from qtwist.wire import milter, pipelined, proxy_protocol, qmqp_client, qmtp_client, smtp_client
from qtwist.wire.netstring import NetstringError
from qtwist.wire.sasl_client import Login
from qtwist.wire.smtp_body import BinaryDecoder, ChunkDecoder
from qtwist.wire.smtp_client import SMTPClient, Transaction

Outcome = tuple[Any, ...]


def proxy_outcome(parts: Iterable[bytes]) -> Outcome:
    """PP: a header is what it is from its last octet on, whatever follows; addresses are addresses."""
    seen = b""
    for part in parts:
        for at in range(len(part)) if len(part) < 2000 else (0,):
            try:
                found = proxy_protocol.parse(seen + part[: at + 1] if len(part) < 2000 else seen + part)
            except proxy_protocol.ProxyError:
                return ("no header",)
            if found is not None:
                who, length = found
                if who is not None:
                    assert ip_address(who.source).version == ip_address(who.destination).version
                    assert all(0 <= port <= 65535 for port in (who.source_port, who.destination_port))
                assert 0 < length <= proxy_protocol.MAX_V2
                return found
        seen += part
    # As long as it is none, it is short.
    assert len(seen) < proxy_protocol.MAX_V2
    return (None,)


def qmqp_client_outcome(parts: Iterable[bytes]) -> Outcome:
    """§17.3: a letter, and one line of text."""
    reader = qmqp_client.AnswerReader()
    for part in parts:
        reader.receive(part)
        assert len(reader._text) <= qmqp_client.TEXT_LIMIT + 1
    if reader.verdict is not None:
        assert len(reader.verdict[1]) <= qmqp_client.TEXT_LIMIT
        assert not any(octet < 0x20 or octet == 0x7F for octet in reader.verdict[1])
        qmqp_client.queue_number(reader.verdict[1])
    return reader.verdict, reader.ended


def qmtp_client_outcome(parts: Iterable[bytes]) -> Outcome:
    reader = qmtp_client.AnswerReader()
    for part in parts:
        reader.receive(part)
        assert len(reader._text) <= qmtp_client.ANSWER_LIMIT
    if reader.answer is not None:
        assert reader.answer[0] in (b"K", b"Z", b"D")
    # What is shown of nonsense depends on how much of it has come.
    return reader.answer, reader.nonsense is not None


def _packets(read: Callable[[bytes], Any], parts: Iterable[bytes]) -> Outcome:
    reader = pipelined.Reader(read)
    found: list[Any] = []
    try:
        for part in parts:
            found += reader.feed(part)
            assert reader._octets <= pipelined.LONGEST + 4
    except NetstringError:
        # What stood before the garbage may have been acted on or not.
        return ("garbage",)
    return tuple(found)


def pipelined_outcome(parts: Iterable[bytes]) -> Outcome:
    """A server's requests, and the answers of the process that has the queue."""
    given = list(parts)
    requests = _packets(pipelined.read_request, given)
    for one in requests if requests != ("garbage",) else ():
        assert pipelined.Reader(pipelined.read_request).feed(pipelined.request(*one) or b"") == [one]
    return requests, _packets(pipelined.read_answer, given)


def milter_outcome(parts: Iterable[bytes]) -> Outcome:
    """What a filter says: packets of at most so many octets, or MilterError."""
    conversation = milter.Milter()
    found: list[Any] = []
    try:
        for part in parts:
            for packet in conversation.receive(part):
                found.append(packet)
                for read in (lambda one=packet: one.texts(2), packet.numbered):
                    try:
                        found.append(read())
                    except milter.MilterError:
                        found.append("incomplete")
                if packet.letter == milter.NEGOTIATE:
                    conversation.negotiated(packet)
                    assert conversation.answers(milter.END_OF_BODY) and conversation.wants(milter.END_OF_BODY)
            assert len(conversation._input) <= milter.LARGEST_PACKET + 4
    except milter.MilterError:
        return ("garbage",)  # what stood before it may have been told or not
    return tuple(found)


def binary_mime_outcome(parts: Iterable[bytes]) -> Outcome:
    """RFC 3030 §3: converted or refused; once converted there is nothing left to convert; what is taken are lines."""
    given = list(parts)
    text = _converted(given)
    if text is not None:
        # But for the empty line behind a header, where nothing but headers is there.
        assert (_converted([text]) or b"").rstrip(b"\r\n") == text.rstrip(b"\r\n"), text
    decoder = BinaryDecoder()
    lines = b"".join(map(decoder.feed, given)) + decoder.finish()
    if decoder.refused:
        return (text,)
    assert not set(lines) & set(b"\r\0")
    again = ChunkDecoder()
    assert again.feed(text or b"") == lines and not again.refused
    return text, lines


def _converted(parts: Iterable[bytes]) -> bytes | None:
    conversion = BinaryMIME()
    try:
        return b"".join(map(conversion.feed, parts)) + conversion.finish()
    except NotConvertible:
        return None


def relay_outcome(parts: Iterable[bytes]) -> Outcome:
    """A client that has to log in over TLS, and to ask for REQUIRETLS: nothing of the login goes out in the clear,
    and no message without it."""
    engine = SMTPClient(b"client.test", require_tls=True, login=Login(b"joe", b"secret\xff"))
    seen: list[Any] = []
    sent = []
    secured = False
    # As a server that waits for its client: what is said before TLS and belongs behind it breaks the connection.
    for part in b"".join(parts).splitlines(keepends=True):
        for event in engine.receive(part):
            seen.append(event)
            if isinstance(event, smtp_client.StartTLS):
                secured = True
                engine.secured()
            elif isinstance(event, smtp_client.Ready) and engine.idle:
                assert secured
                seen += engine.start(Transaction(b"me@y.test", (b"a@x.test",), 30, False, True))
                if engine.idle:
                    engine.quit()
            elif isinstance(event, smtp_client.NeedBody):
                engine.end_body()
        sent.append(engine.take_output())
        assert secured or b"AUTH" not in b"".join(sent)
    output = b"".join(sent)
    for line in output.split(b"\r\n"):
        assert b"secret" not in line and (not line.startswith(b"AUTH PLAIN ") or b64decode(line[11:]))
    assert b"MAIL" not in output or b" REQUIRETLS" in output
    assert output.count(b"AUTH ") <= 1
    return output, seen, engine.closed


FRAMING = {
    "proxy_protocol": proxy_outcome,
    "qmqp_client": qmqp_client_outcome,
    "qmtp_client": qmtp_client_outcome,
    "pipelined": pipelined_outcome,
    "milter": milter_outcome,
    "binary_mime": binary_mime_outcome,
    "relay": relay_outcome,
}

_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_REQUEST = pipelined.request(7, b"Subject: x\n\nbody\n", b"a@b", [b"c@d", b""]) or b""
_BINARY = b"Content-Transfer-Encoding: binary\r\n"

SEEDS: dict[str, tuple[bytes, ...]] = {
    "proxy_protocol": (
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1025 25\r\nEHLO x\r\n",
        b"PROXY TCP6 2001:db8::1 ::1 65535 0\r\n",
        b"PROXY UNKNOWN what ever\r\n",
        _V2 + b"\x21\x11\0\x0f" + bytes((192, 0, 2, 1, 192, 0, 2, 2, 4, 1, 0, 25)) + b"\4\0\0EHLO\r\n",
        _V2 + b"\x21\x21\0\x24" + bytes(32) + b"\0\1\0\2",
        _V2 + b"\x20\0\0\0",
    ),
    "qmqp_client": (b"14:Kok 1 qp 12345,", b"3:Dno,", b"5:Zlat", b"220 hello K\r\n", b"1:K,"),
    "qmtp_client": (b"7:Kok 1 q,", b"3:Dno,3:Zno,", b"-ERR\r\n", b"0:,"),
    "pipelined": (_REQUEST * 2, pipelined.answer(7, 0, 123) + pipelined.answer(8, 53, 0, "no"), b"\xff\xff\xff\xff"),
    "milter": (
        milter.packet(milter.NEGOTIATE, bytes((0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0))) + milter.packet(milter.CONTINUE),
        milter.packet(milter.INSERT_HEADER, b"\0\0\0\1X-A\0 b\0") + milter.texts(milter.REPLY_CODE, b"550 5.7.1 no"),
        milter.texts(milter.ADD_RECIPIENT, b"<a@b>") + milter.packet(milter.REPLACE_BODY, b"x\r\n"),
    ),
    "binary_mime": (
        _BINARY + b"\r\n\0\r\n\r.\n",
        _BINARY + b"Content-Type: multipart/x; boundary=b\r\n\r\nx\r\n--b\r\n" + _BINARY + b"\r\n\0\n\r\r\n--b--\r\ny",
        _BINARY + b"Content-Type: message/rfc822\r\n\r\n" + _BINARY + b"\r\n\xff\0",
        b'Content-Type: multipart/x;\r\n boundary="a b"\r\n\r\n--a b\r\n\r\nx\r\n--a b\r\n' + _BINARY + b"\r\n--a b--",
    ),
    "relay": (
        b"220 mx\r\n250-mx\r\n250 STARTTLS\r\n220 go\r\n250-mx\r\n250-REQUIRETLS\r\n250 AUTH PLAIN\r\n235 in\r\n"
        b"250 s\r\n250 r\r\n354 go\r\n250 ok\r\n221 bye\r\n",
        b"220 mx\r\n250-mx\r\n250 STARTTLS\r\n220 go\r\n250-mx\r\n250 AUTH CRAM-MD5\r\n334 PDEuMkBhPg==\r\n535 no\r\n",
        b"220 mx\r\n250-mx\r\n250 AUTH LOGIN\r\n",
        b"220 mx\r\n250 STARTTLS\r\n454 later\r\n",
    ),
}

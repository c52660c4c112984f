"""The protocol engines under fuzz: what each says and does for some bytes, however they are cut.

The invariant of all: any bytes are parsed or answered with an error reply; nothing else happens. So an engine raises
nothing, what it sends is well-formed, it does the same however the bytes are cut, and it keeps no more of them than it
must (``wire/smtp_server.py`` and the other heads; spec/qmail.md §16 to §18).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Any

from qtwist.wire import pop3_events, pop3_server, qmtp_server, sasl, sasl_mechanisms, smtp_client, smtp_server
from qtwist.wire.dot_stuffing import DotStuffer
from qtwist.wire.netstring import NetstringError, NetstringReader
from qtwist.wire.pop3_server import POP3Server
from qtwist.wire.qmqp import QMQPServer
from qtwist.wire.qmtp_server import QMTPServer
from qtwist.wire.sasl import SaltWanted
from qtwist.wire.sasl_mechanisms import MECHANISMS, Authenticating, Claimed, Confirmed
from qtwist.wire.smtp_body import BodyDecoder
from qtwist.wire.smtp_client import SMTPClient, Transaction
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import SMTPServer
from tests.fuzz import framing

_SMTP_REPLIES = re.compile(rb"(?:[2-5][0-9][0-9][ -][^\r\n\0]*\r\n)*")
_SMTP_COMMANDS = re.compile(rb"(?:[^\r\n\0]*\r\n)*")
_POP3_FIRST = re.compile(rb"(?:(?:\+OK|-ERR|\+ |\.|[^\r\n]*)[^\n]*\n)*")

Outcome = tuple[Any, ...]

CHANNEL = sasl.Channel(b"mx.test", lambda: b"nonce", {b"tls-exporter": b"bound"})


def join(events: Iterable[Any]) -> list[Any]:
    """Neighbouring pieces of a message are one: how they are cut is no part of the outcome."""
    joined: list[Any] = []
    for event in events:
        if isinstance(event, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += event
        else:
            joined.append(event)
    return joined


def authenticate(engine: Authenticating, event: Any, yes: Callable[[], None], no: Callable[[], None]) -> None:
    """Answer a question of AUTH: passwords are ``x``, all digests and proofs are right."""
    if isinstance(event, SaltWanted):
        engine.salted(b"salt", 4096)
    elif isinstance(event.claim, sasl.Proof):
        engine.confirm(b"signature")
    elif isinstance(event.claim, sasl.Secret) and event.claim.password != b"x":
        no()
    else:
        yes()


def smtp_server_outcome(parts: Iterable[bytes]) -> Outcome:
    """A server that refuses what has a ``z`` in it."""
    engine = SMTPServer(b"mx.test", limits=smtp_server.Limits(recipients=50))
    engine.databytes = 5000
    engine.offer_chunking = engine.offer_xclient = engine.offer_etrn = True
    engine.has_auth = True
    engine.mechanisms = tuple(MECHANISMS)
    engine.channel = CHANNEL
    seen: list[Any] = []
    sent = []
    data = 0
    for part in (b"", *parts):
        engine.receive(part)
        while (event := engine.next_event()) is not None:
            if isinstance(event, smtp_server.Chunk):
                seen.append(event.data)
                continue
            if isinstance(event, smtp_server.Data):
                data = len(seen)  # where the question is
            if isinstance(event, smtp_server.EndOfMessage) and event.refusal is not None:
                # What was told of a message that is thrown away depends on the cuts.
                del seen[data + 1 :]
                seen.append(event.refusal)
            else:
                seen.append(event)
            if isinstance(event, SaltWanted | Claimed):
                authenticate(engine, event, engine.accept, lambda: engine.reply(Reply(535, b"no")))
            elif isinstance(event, smtp_server.Mail | smtp_server.Rcpt) and b"z" in event.address:
                engine.reply(Reply(550, b"no\r\n250 forged"))
            elif isinstance(event, smtp_server.EndOfMessage):
                engine.reply(event.refusal or Reply(250, b"ok"))
            elif not isinstance(event, smtp_server.Reset | smtp_server.Quit):
                engine.accept()
        sent.append(engine.data_to_send())
        # What lies unread is a line that has no end, at most.
        longest = smtp_server.MAX_AUTH_LINE if engine._in_auth else smtp_server.MAX_LINE
        assert engine.closed or engine._unread <= longest + 1, engine._unread
    if engine.in_message or (engine.closed and seen and isinstance(seen[-1], bytes)):
        del seen[data + 1 :]  # nor is there a message without an end
    output = b"".join(sent)
    assert _SMTP_REPLIES.fullmatch(output), output
    assert output.startswith(b"220 mx.test")
    for event in seen:
        if isinstance(event, smtp_server.Mail | smtp_server.Rcpt):
            assert len(event.address) <= smtp_server.MAX_ADDRESS
            assert not set(event.address) & set(b"\r\n\0"), event
    return output, join(seen), engine.closed


def smtp_client_outcome(parts: Iterable[bytes]) -> Outcome:
    """What a client does whose server waits for it; one that answers before it is asked is tried, too."""
    given = list(parts)
    _smtp_client(given)
    return _smtp_client([line for part in given for line in part.splitlines(keepends=True)])


def _smtp_client(parts: Iterable[bytes]) -> Outcome:
    """A client with one message for three recipients, one with a dot and a NUL in it."""
    engine = SMTPClient(b"client.test")
    seen: list[Any] = []
    sent = []
    started = False
    for part in parts:
        events = engine.receive(part)
        while events:
            event = events.pop(0)
            seen.append(event)
            if isinstance(event, smtp_client.Ready) and engine.idle and not started:
                started = True
                recipients = (b"a@x.test", b"b@x.test", b"c\xff@x.test")
                events += engine.start(Transaction(b"me@y.test", recipients, 30, True))
            elif isinstance(event, smtp_client.NeedBody) and engine.wants_body:
                engine.body(b"Subject: x\n\n.\0\n.\r\r\nend")
                engine.end_body()
        sent.append(engine.take_output())
        assert len(engine._buffer) <= smtp_client.MAX_LINE
    seen += engine.lost()
    sent.append(engine.take_output())
    output = b"".join(sent)
    assert _SMTP_COMMANDS.fullmatch(output), output
    assert output.count(b"\r\n.\r\n") <= 1, output
    # Every recipient has a result when there is a verdict.
    assert sum(isinstance(event, smtp_client.Finished) for event in seen) <= 1
    return output, seen, engine.closed


def qmqp_outcome(parts: Iterable[bytes]) -> Outcome:
    engine = QMQPServer()
    message = []
    for part in parts:
        if engine.ended or engine.broken:
            break
        message.append(engine.receive(part))
        assert len(engine._text) <= engine._address_limit + 1
    for address in (engine.sender, *engine.recipients):
        assert b"\0" not in address and len(address) <= engine._address_limit
    return (
        # What broke it tells how far it had come, and the octets before are nobody's.
        (bool(engine.broken), engine.ended, engine.refusal)
        if engine.broken
        else (b"".join(message), engine.sender, engine.recipients, engine.refusal, engine.ended)
    )


def qmtp_outcome(parts: Iterable[bytes]) -> Outcome:
    engine = QMTPServer(pending=4)
    engine.databytes = 5000
    sent = []
    for part in parts:
        engine.receive(part)
        while (event := engine.next_event()) is not None:
            if isinstance(event, qmtp_server.Recipient):
                assert len(event.address) <= qmtp_server.MAX_ADDRESS + 1
                event.package.take(event.address)
            elif isinstance(event, qmtp_server.End):
                engine.answer(event.package, b"Kok 1 qp 2")
        sent.append(engine.data_to_send())
        assert len(engine._kept) <= qmtp_server.MAX_SENDER
    output = b"".join(sent)
    rest = output
    while rest:  # netstrings, one behind the other
        length, colon, rest = rest.partition(b":")
        assert colon and length.isdigit() and rest[int(length) : int(length) + 1] == b",", output
        rest = rest[int(length) + 1 :]
    # Of a package that breaks off, how much of its message was told depends on the cuts; it never was.
    return output, bool(engine.broken)


def pop3_outcome(parts: Iterable[bytes]) -> Outcome:
    """A maildrop of three messages; the password is ``x``."""
    engine = POP3Server(b"<1.2@pop.test>", plaintext=True, mechanisms=None)
    engine.channel = CHANNEL
    engine.greet()
    seen: list[Any] = []
    sent = []
    for part in (b"", *parts):
        engine.receive(part)
        while (event := engine.next_event()) is not None:
            seen.append(type(event).__name__)
            if isinstance(event, pop3_events.Login):
                if event.password == b"x":
                    engine.logged_in(3)
                else:
                    engine.refuse(b"no", pop3_server.BAD_CREDENTIALS)
            elif isinstance(event, pop3_events.MechanismsWanted):
                engine.give_mechanisms(tuple(MECHANISMS))
            elif isinstance(event, SaltWanted | Claimed):
                authenticate(engine, event, lambda: engine.logged_in(3), lambda: engine.refuse(b"no"))
            elif isinstance(event, Confirmed):
                engine.logged_in(3)
            elif isinstance(event, pop3_events.SizesWanted):
                engine.give_sizes([10, 200, 3])
            elif isinstance(event, pop3_events.UidsWanted):
                engine.give_uids([b"a", b"b", b"c"])
            elif isinstance(event, pop3_events.Retrieve):
                assert 0 <= event.index < 3
                engine.begin_message()
                if engine.message_part(b"Subject: x\n\n.dot\n"):
                    engine.message_part(b"more\nand more")
                engine.end_message()
            elif isinstance(event, pop3_events.Finish):
                engine.finished(0)
        sent.append(engine.data_to_send())
        assert engine.closed or engine._unread <= pop3_server.MAX_LINE + 1
    output = b"".join(sent)
    assert b"\0" not in output and output.count(b"\n") == output.count(b"\r\n"), output
    assert output.startswith(b"+OK ")
    return output, seen, engine.closed


def sasl_outcome(parts: Iterable[bytes]) -> Outcome:
    """The first line names the mechanism, the others are responses."""
    mechanism, *responses = b"".join(parts).split(b"\n")
    seen: list[Any] = []
    try:
        exchange = sasl_mechanisms.exchange(mechanism, CHANNEL)
        step = exchange.begin(responses.pop(0) if responses else None)
        while responses and isinstance(step, bytes | SaltWanted):
            seen.append(step)
            if isinstance(step, SaltWanted):
                step = exchange.salted(b"salt", 4096)
                continue
            step = exchange.respond(responses.pop(0))
        seen.append(step)
        if isinstance(step, sasl.Secret):
            assert all(len(part) <= sasl.LONGEST_PART and b"\0" not in part for part in step if isinstance(part, bytes))
    except sasl.SASLError as error:
        seen.append(error.kind)
    return (seen,)


def netstring_outcome(parts: Iterable[bytes]) -> Outcome:
    reader = NetstringReader(1000)
    contents = []
    try:
        for part in parts:
            position = 0
            while position < len(part) and not reader.ended:
                piece, position = reader.feed(part, position, len(part))
                contents.append(piece)
    except NetstringError as error:
        return (type(error),)
    found = b"".join(contents)
    assert len(found) <= 1000
    return found, reader.ended


def body_outcome(parts: Iterable[bytes]) -> Outcome:
    """A body, and what comes out of our own sender for what was in it: no end of data but its own (§26.3)."""
    decoder = BodyDecoder()
    text = []
    rest = None
    for part in parts:
        if rest is None:
            piece, rest = decoder.feed(part)
            text.append(piece)
        elif not decoder.refused:
            rest += part
    message = b"".join(text)
    assert decoder.refused or b"\0" not in message
    stuffer = DotStuffer()
    wire = stuffer.encode(message) + stuffer.finish()
    again = BodyDecoder()
    back, left = again.feed(wire)
    assert left == b"" and not again.refused
    assert back == (message if not message or message.endswith(b"\n") else message + b"\n") or b"\r" in message
    # When the body was refused, what was told of it before depends on the cuts, and is thrown away.
    return (decoder.refused,) if decoder.refused else (message, rest)


def sender_outcome(parts: Iterable[bytes]) -> Outcome:
    """Any stored message leaves so that no receiver, strict or lax, sees an end before the end (§26.3)."""
    stuffer = DotStuffer()
    wire = b"".join(stuffer.encode(part) for part in parts) + stuffer.finish()
    end = b"\r\n.\r\n"
    assert (b"\r\n" + wire).find(end) == len(wire) + 2 - len(end)
    assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")
    assert b"\0" not in wire
    return (wire,)


ENGINES = {
    "smtp_server": smtp_server_outcome,
    "smtp_client": smtp_client_outcome,
    "qmqp": qmqp_outcome,
    "qmtp_server": qmtp_outcome,
    "pop3_server": pop3_outcome,
    "sasl": sasl_outcome,
    "netstring": netstring_outcome,
    "smtp_body": body_outcome,
    "dot_stuffing": sender_outcome,
    **framing.FRAMING,
}

_FIRST = b64encode(b"n,,n=joe,r=abc")
_FINAL = b64encode(b"c=biws,r=abcnonce,p=" + b64encode(bytes(32)))
_SCRAM = b"SCRAM-SHA-256 %b\n%b\n" % (_FIRST, _FINAL)

SEEDS: dict[str, tuple[bytes, ...]] = {
    "smtp_server": (
        b"EHLO a\r\nAUTH " + _SCRAM.replace(b"\n", b"\r\n") + b"\r\nMAIL FROM:<a@b>\r\nQUIT\r\n",
        b"AUTH PLAIN AGpvZQB4\r\nAUTH CRAM-MD5\r\n*\r\nAUTH LOGIN\r\nam9l\r\neA==\r\nQUIT\r\n",
        b"EHLO c.test\r\nMAIL FROM:<a@b.test> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<c@mx.test>\r\nRCPT TO:<z@mx.test>\r\n"
        b"DATA\r\nReceived: x\r\nSubject: y\r\n\r\n..dot\r\n.\r\nQUIT\r\n",
        b"EHLO c.test\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\na\r\nRSET\r\nBDAT 2 LAST\r\nxx"
        b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 4\r\na\r\n\rDATA\r\nBDAT 3\r\n\nb\0BDAT 0 LAST\r\nQUIT\r\n",
        b"EHLO a\r\nETRN host.test\r\nETRN #queue\r\nETRN @b\r\nMAIL FROM:<a@b> REQUIRETLS\r\nETRN x\r\nQUIT\r\n",
        b"EHLO a\r\nMAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<c@d>\r\nBDAT 76\r\n"
        b"Content-Transfer-Encoding: binary\r\nContent-Type: multipart/x; boundary=b\r\n\r\n"
        b"BDAT 48 LAST\r\n\r\n--b\r\nContent-Transfer-Encoding: binary\r\n\r\n\0\n\r\r\n--b--",
        b"EHLO a\r\nXCLIENT NAME=a.b ADDR=IPV6:::1 HELO=x+20y\r\nEHLO b\r\nXCLIENT PORT=1\r\nXCLIENT x\r\nQUIT\r\n",
        b"HELO x\nMAIL FROM:a@b\nRCPT TO:<@r:c@d>\nDATA\nhello\n.\n\r\n.\r\nMAIL FROM:<x@y>\r\n",
        b'MAIL FROM:<"q \\" s"@[127.0.0.1]>\r\nRSET\r\nNOOP\r\nVRFY x\r\nHELP\r\nRCPT TO:<>\r\n'
        + b"x" * 2100
        + b"\r\n",
        b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n" + b"Received: a\r\n" * 110 + b"\r\n.\r\n",
    ),
    "smtp_client": (
        b"220 mx\r\n250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 1000\r\n250 s\r\n250 r\r\n550 r\r\n450 r\r\n"
        b"354 go\r\n250 queued\r\n221 bye\r\n",
        b"220 x\r\n500 no ehlo\r\n250 helo\r\n250 s\r\n250 r\r\n250 r\r\n250 r\r\n354 go\r\n451 later\r\n",
        b"421 busy\r\n",
        b"220-a\r\n220-b\r\n220 c\n250 x\n552 too big\n",
    ),
    "qmqp": (
        b"45:13:Subject: x\n\n.,8:a@b.test,7:c@d.com,1:x,,",
        b"+5:hello,0:,3:a@b,3:c@d,.",
        b"20:2:x\n,3:a@b,3:c@d,,",
    ),
    "qmtp_server": (
        b"7:\nhello\n,8:a@b.test,11:8:c@d.test,,",
        b"6:\rhi\r\n,0:,3:0:,,5:\nabc\n,1:a,8:1:b,1:c,,",
    ),
    "pop3_server": (
        b"CAPA\r\nUSER joe\r\nPASS x\r\nSTAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nTOP 2 1\r\n"
        b"DELE 3\r\nRSET\r\nDELE 1\r\nQUIT\r\n",
        b"APOP joe 0123456789abcdef0123456789abcdef\r\nAUTH PLAIN AGpvZQB4\r\nLIST 2\r\n"
        b"UIDL 9\r\nNOOP\r\nLAST\r\nQUIT\r\n",
        b"AUTH " + _SCRAM.replace(b"\n", b"\r\n") + b"\r\nSTAT\r\nQUIT\r\n",
        b"AUTH LOGIN\r\nam9l\r\neA==\r\nTOP 1 0\r\nRETR 99999999999\r\nUTF8\r\nQUIT\r\n",
    ),
    "sasl": (
        b"PLAIN\nAGpvZQB4",
        b"LOGIN\n\nam9l\neA==",
        b"login\nam9l\neA==",
        b"CRAM-MD5\n=",
        _SCRAM.replace(b" ", b"\n"),
        b"EXTERNAL\n=",
    ),
    "netstring": (b"5:hello,", b"0:,", b"1000:" + b"x" * 1000 + b","),
    "smtp_body": (b"Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n", b".\r\n", b"a\n.\nb\r\n.\r\n", b"a\r.\r\nb\0\r\n.\r\n"),
    **framing.SEEDS,
    "dot_stuffing": (b".\n..\n\r\n.\r\n.\r", b"hello\n.\n", b"\r\r\n.\0.\n"),
}

"""The parsers under fuzz: text and files of every kind, with the errors that each may raise and what must hold else.

Each function takes any bytes and returns; what is not one of the named errors of its module gets out, and is a
finding.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from email import message_from_bytes
from functools import cache
from hashlib import sha256
from ipaddress import ip_address
from typing import Any

from qtwist.control import CONTROL_FILES, Control, ControlError
from qtwist.control_reading import first_line, split_lines
from qtwist.control_services import parse_service
from qtwist.dns import message as dns
from qtwist.files import assign, cdb, cdb_text, mbox, tai64n, tcprules
from qtwist.inject import addresses, splitting, tokens
from qtwist.local import dotqmail
from qtwist.local.report import report
from qtwist.mail import address, asked, dsn, qsbmf, quoting, received, verp
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.header_fields import HeaderFields
from qtwist.mail.holds import Hold
from qtwist.mail.rewriting import Rewriter
from qtwist.policy import rspamd
from qtwist.queue import journal, records
from qtwist.remote import reports, routes, tcpto
from qtwist.send.bounces import BounceSettings
from qtwist.tls import dane
from qtwist.wire import mta_sts, spawning, xclient


@cache
def _folder() -> str:
    folder = tempfile.TemporaryDirectory(prefix="qtwist-fuzz-")
    _KEPT.append(folder)
    return folder.name


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _file(name: str, data: bytes) -> str:
    path = os.path.join(_folder(), name)
    with open(path, "wb") as file:
        file.write(data)
    return path


def mail_address(data: bytes) -> None:
    """§16.3: any argument has an address; quoted and unquoted again it is the same; logs and headers stay whole."""
    raw, rest = address.parse_path(data)
    assert len(raw) + len(rest) <= len(data)
    assert address.unquote(quoting.quote(raw)) == raw
    assert not set(address.sanitise_log(data)) & set(b"\n\r\0 ")
    assert b"\n" not in address.sanitise_received(data) and b"\r" not in address.sanitise_received(data)
    assert len(address.replace_own_ip(data, b"me", lambda ip: True)) <= len(data) + 2
    field = received.server_received(
        remote_host=data, remote_ip=data, local=data, protocol=b"SMTP", seconds=0.0, helo=raw, remote_info=data
    )
    assert field.count(b"\n") == 2 and b"\r" not in field
    verp.expand(data, raw)
    assert b"\n\n" not in qsbmf.recipient_paragraph(raw, data)[:-1] or not data
    one = address.Address(raw)
    assert one.raw == raw and len(one.local) + len(one.domain) <= len(raw)


def mail_rewriting(data: bytes) -> None:
    """§9.3: the first line is a recipient, the others virtualdomains; nothing is lost of the box but what % moves."""
    recipient, *lines = data.split(b"\n")
    rewriter = Rewriter(
        b"me.test", ConstantMap.plain([b"local.test"]), ConstantMap.plain([b"hack.test"]), ConstantMap.colon(lines)
    )
    channel, rewritten = rewriter.route(recipient)
    assert channel in ("local", "remote") and b"@" in rewritten
    rewriter.original(rewritten)


def mail_holds(data: bytes) -> None:
    for _, line in split_lines(data):
        try:
            hold = Hold.parse(line)
        except ValueError:
            continue
        again = Hold.parse(hold.line())
        assert (again.kind, again.value, again.reason) == (hold.kind, hold.value, hold.reason.rstrip(b" ")), hold


def dot_qmail(data: bytes) -> None:
    """§13.5."""
    for instruction in dotqmail.instructions(data):
        assert b"\0" not in bytes(getattr(instruction, "path", b"")) and b"\n" not in bytes(
            getattr(instruction, "command", b"")
        )
    for candidate in dotqmail.candidates(b"-", data[:100]):
        assert b"/../" not in b"/" + candidate.name + b"/" or b"/" in data


def control_files(data: bytes) -> None:
    """Any contents of any control file are right or reported in one line (design §5)."""
    name = sorted(CONTROL_FILES)[len(data) % len(CONTROL_FILES)]
    entry = CONTROL_FILES[name]
    folder = os.path.join(_folder(), "control")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(data)
    try:
        control = Control(folder)
        for error in control.check():
            assert isinstance(error, ControlError) and "\n" not in str(error), error
        for _ in split_lines(data):
            pass
        first_line(data)
    finally:
        os.unlink(path)
    assert entry.name == name


def cdb_file(data: bytes) -> None:
    """A damaged cdb is CDBError, and no search goes on for ever; any text is records or TextError."""
    path = _file("a.cdb", data)
    with contextlib.suppress(cdb.CDBError), cdb.CDB(path) as database:
        database.get(b"key")
        database.get(data[:5])
        for number, _ in enumerate(database):
            assert number <= len(data)
    try:
        found = list(cdb_text.parse_records([data[:7], data[7:]]))
    except cdb_text.TextError:
        return
    text = b"".join(cdb_text.format_record(key, value) for key, value in found) + b"\n"
    assert list(cdb_text.parse_records([text])) == found


def users_assign(data: bytes) -> None:
    """§12.2, and §12.4: a record that cannot be an assignment is RecordError."""
    try:
        compiled = list(assign.compile_assign(data))
    except assign.AssignError:
        compiled = []
    path = os.path.join(_folder(), "users.cdb")
    cdb.write_cdb(path, [*compiled, (b"!joe\0", data[:200]), (b"", b"-")])
    with cdb.CDB(path) as database:
        for local in (b"joe", b"joe-x", data[:30]):
            with contextlib.suppress(assign.RecordError):
                assign.find_assignment(database, local)


def tcp_rules(data: bytes) -> None:
    """§4.2."""
    try:
        compiled = dict(tcprules.compile_rules(data))
    except tcprules.RuleError:
        compiled = {}
    tcprules.find_rule(compiled.get, b"1.2.3.4", b"a.b.test", b"joe")
    tcprules.find_rule({b"": data}.get, b"::1")
    tcprules.find_rule(compiled.get, data[:40], data[:40])


def times_and_boxes(data: bytes) -> None:
    """§14.2: a message in an mbox has no line of its own that begins with From; tai64nlocal takes any line."""
    quoted = b"".join(mbox.quote_from([data[:9], data[9:]]))
    assert b"\nFrom " not in b"\n" + quoted
    assert quoted.replace(b">", b"").replace(b"\n", b"") == data.replace(b">", b"").replace(b"\n", b"")
    tai64n.readable(data)


def queue_records(data: bytes) -> None:
    """§6.4, §6.5, RFC 3461: a damaged file is ValueError, and so are parameters that are none."""
    taken: list[bytes] = []
    for parse in (
        lambda: records.parse_envelope([data[:11], data[11:]], "x", taken.extend),
        lambda: records.parse_info(data, "x"),
        lambda: records.parse_asked(data, "x"),
        lambda: asked.of_message(data),
        lambda: asked.of_recipient(data),
        lambda: records.parse_recipients(data, 0, 100, "x"),
    ):
        with contextlib.suppress(ValueError):
            parse()
    assert all(b"\0" not in one for one in taken)


def queue_journal(data: bytes) -> None:
    """Any octets are a segment with fewer records; records that make no sense are ValueError (qtwist.queue.journal)."""
    found = journal.Content()
    with contextlib.suppress(ValueError):
        found = journal.unpack(data)
    if found.use is None:
        assert not found.records and not found.damaged
    else:
        records_found = b"".join(journal.pack(record, found.use) for record in found.records)
        assert len(records_found) <= len(data)
        assert all(journal.pack(record, found.use) in data for record in found.records)
        assert all(start < end <= len(data) for start, end in found.damaged)
    if data:
        known = [journal.Record(bytes([octet]), 7, data[1:]) for octet in set(data[:1]) | set(b"ARMPBUDEF")]
        entry = journal.Entry(7, 1.0, b"Fa\0Tb\0", b"x", {"local": bytearray(b"Tb\0")}, {"local": 1.0})
        for record in known:
            with contextlib.suppress(ValueError):
                journal.replay([journal.accept(entry), record])


def dns_message(data: bytes) -> None:
    """A reply is taken apart, passed over, or MalformedReply."""
    question = dns.Question(b"mx.test", 15)
    for wire in (data, b"\x00\x07\x81\x80" + data, b"\x00\x07\x81\x80" + b"\x00\x01\x00\x02\x00\x00\x00\x00" + data):
        with contextlib.suppress(dns.MalformedReply):
            dns.decode_reply(wire, question, 7)


def header_fields(data: bytes) -> None:
    """§20, §21: a field that cannot be read is SyntaxTrouble; what can be read is written and read again the same."""
    try:
        found = tokens.parse(data)
    except tokens.SyntaxTrouble:
        found = None
    if found is not None:
        tokens.unquote(found)
        tokens.unparse(found)
    with contextlib.suppress(tokens.SyntaxTrouble):
        completion = addresses.Completion(b"h.test", b"d.test", b"p.test")
        addresses.rewrite_field(tokens.parse(b"To: " + data), completion)
    splitter = splitting.Splitter([data[:13], data[13:]])
    try:
        fields = list(splitter.fields())
    except splitting.HeaderTooLong:
        return
    body = b"".join(splitter.body())
    assert all(field.endswith(b"\n") for field in fields)
    assert len(b"".join(fields)) + len(body) <= len(data) + 12 * (data.count(b"\n") + 2)


def remote_texts(data: bytes) -> None:
    """Routes, tcpto, and what another host has said, as a report shows it."""
    with contextlib.suppress(routes.RouteError):
        routes.parse_relay(data)
    tcpto.unpack(data)
    for host in (b"\1\2\3\4", data[:4].ljust(4, b"\0")):
        tcpto.should_skip(tcpto.unpack(data), host, 1_000_000, 3)
    assert not set(reports.visible(data)) & set(b"\r\0")
    report(len(data) % 256, data)


def spawning_packets(data: bytes) -> None:
    for read in (spawning.read_request, spawning.read_reply, lambda packet: spawning.read_fields(packet, 3)):
        with contextlib.suppress(ValueError):
            read(data)


def xclient_attributes(data: bytes) -> None:
    """XR: attributes of their kind, or ValueError; nothing in them ends a line."""
    try:
        found = xclient.parse_xclient(data)
    except ValueError:
        return
    assert found and set(found) <= set(xclient.ATTRIBUTES)
    assert not any(set(value) & set(b"\r\n\0") for value in found.values() if value is not None)
    for keyword in (b"ADDR", b"DESTADDR"):
        if (address := found.get(keyword)) is not None:
            ip_address(address.decode("ascii"))


def sts_policy(data: bytes) -> None:
    """RFC 8461 §3: a policy or PolicyError; what is announced is an id."""
    announced = mta_sts.parse_record([data])
    assert announced is None or announced.isalnum()
    mta_sts.parse_record([data[:20], data[20:]])
    try:
        policy = mta_sts.parse_policy(data)
    except mta_sts.PolicyError:
        return
    assert policy.exchangers or policy.mode == "none"
    assert all(policy.matches(name) for name in policy.exchangers if not name.startswith(b"*"))


def tlsa_record(data: bytes) -> None:
    """RFC 6698 §2.1: what is usable can be held against a certificate; a certificate that is no DER is ValueError."""
    records = [dane.TLSA(*data[at : at + 3], data[at + 3 : at + 68]) for at in range(0, len(data) - 3, 68)]
    good = dane.usable(records[:100])
    assert len(good) <= dane.MOST_RECORDS and all(record.usable for record in good)
    with contextlib.suppress(ValueError):
        assert dane.public_key_info(data) in data
    dane.problem([], good, lambda: None)


def delivery_reports(data: bytes) -> None:
    """RFC 3461, 3464: parameters are read or ValueError, and written again as they were; a report about anything has
    its three parts, and one group of fields for each recipient, whatever their words were."""
    for parse in (asked.of_message, asked.of_recipient, asked.parse_orcpt, asked.parse_envid):
        with contextlib.suppress(ValueError):
            parse(data)
    with contextlib.suppress(ValueError):
        decoded = asked.decode_xtext(data)
        assert asked.decode_xtext(asked.encode_xtext(decoded)) == decoded
    with contextlib.suppress(ValueError):
        kept = records.parse_asked(data, "x")
        assert kept is None or records.parse_asked(records.format_asked(kept), "x") == kept
    address, _, text = data.partition(b"\n")
    paragraph = dsn.marked_paragraph(address, dsn.FAILED, "remote", 7, text)
    [found] = dsn.read_paragraphs(paragraph, marked=True)
    assert (found.action, found.channel, found.offset) == (dsn.FAILED, "remote", 7), found
    about = [found, *dsn.read_paragraphs(data, marked=True), *dsn.read_paragraphs(data, marked=False)]
    settings = BounceSettings(b"MAILER-DAEMON", b"mx.test", b"postmaster", b"mx.test")
    facts = dsn.ReportFacts(address, address, None, 0.0, 1.0, sha256(data).hexdigest().encode())
    head = dsn.report_head(settings, facts, about, full=False)
    message = message_from_bytes(head + b"Subject: x\n" + dsn.report_tail(facts.token))
    parts: Any = message.get_payload()
    kinds = [part.get_content_type() for part in parts]
    assert kinds == ["text/plain", "message/delivery-status", "text/rfc822-headers"], kinds
    assert len(parts[1].get_payload()) == len(about) + 1


def scanners(data: bytes) -> None:
    """doc/content.md: a line is about a service, or ValueError; an answer of rspamd makes sense, or raises what counts
    as no answer; whatever it wants, the header stays one."""
    with contextlib.suppress(ValueError):
        service = parse_service(data.decode("utf-8", "surrogateescape"), 60)
        assert service.timeout > 0 and (service.path is None) == bool(service.host)
    fields = HeaderFields(b"Subject: x\nReceived: y\n\tz\n")
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        opinion = rspamd.verdict(json.loads(data), fields, "rspamd")
        assert opinion is None or not set(opinion.text) & set(b"\r\n\0"), opinion
    assert HeaderFields(bytes(fields) + b"\n").items() == fields.items()


PARSERS = {
    "scanners": scanners,
    "delivery_reports": delivery_reports,
    "xclient_attributes": xclient_attributes,
    "sts_policy": sts_policy,
    "tlsa_record": tlsa_record,
    "mail_address": mail_address,
    "mail_rewriting": mail_rewriting,
    "mail_holds": mail_holds,
    "dot_qmail": dot_qmail,
    "control_files": control_files,
    "cdb_file": cdb_file,
    "users_assign": users_assign,
    "tcp_rules": tcp_rules,
    "times_and_boxes": times_and_boxes,
    "queue_records": queue_records,
    "queue_journal": queue_journal,
    "dns_message": dns_message,
    "header_fields": header_fields,
    "remote_texts": remote_texts,
    "spawning_packets": spawning_packets,
}

_CDB = bytes.fromhex("0800000000000000" * 1)
_JOURNAL = journal.pack_first(journal.Use(1, 0x0123456789ABCDEF), 1)

SEEDS: dict[str, tuple[bytes, ...]] = {
    "scanners": [
        b"unix:/run/x.sock accept timeout=5",
        b"inet:11333@[::1] reject",
        b'{"action": "rewrite subject", "score": 7.5, "subject": "y", "messages": {"smtp_message": "no"}}',
        b'{"action": "add header", "milter": {"add_headers": {"A": {"value": "b", "order": 1}}}}',
        b'{"action": "no action", "milter": {"remove_headers": {"Received": 0}, "add_headers": {"A": ["b"]}}}',
    ],
    "delivery_reports": (
        b"a@b.test\n550 5.1.1 no\nRemote host said: 550 no\n",
        b"<a@b>:\n=delayed local 12\nlater\n\n<c>:\n=failed remote 0\n\n--=_token_\n",
        b"RET=FULL ENVID=a+2Bb",
        b"NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+40b",
        b"mRET=HDRS\0l0 NOTIFY=NEVER\0r12 ORCPT=rfc822;x\0",
    ),
    "xclient_attributes": (
        b"NAME=a.b ADDR=IPV6:::1 HELO=x+20y PORT=25 PROTO=esmtp",
        b"NAME=[UNAVAILABLE] DESTADDR=192.0.2.1 DESTPORT=65536",
        b"ADDR=1.2.3.4 ADDR=1.2.3.4 HELO=+0D+0A",
    ),
    "sts_policy": (
        b"version: STSv1\r\nmode: enforce\r\nmx: *.a.test\r\nmx: b.test.\r\nmax_age: 86400\r\n",
        b"version: STSv1\nmode: none\nmax_age: 99999999999\n",
        b"v=STSv1; id=20160831085700Z;",
    ),
    "tlsa_record": (
        b"\3\1\1" + bytes(32) + b"\2\0\2" + bytes(64),
        bytes.fromhex("3016a003020102020101300030003000300030060302000003"),
        b"\x30\x84\xff\xff\xff\xff\xa0",
    ),
    "mail_address": (b"FROM:<@a,@b:c@d.test> SIZE=5", b'TO:<"a b\\""@[127.0.0.1]>', b"a%b@c -@[]", b"x@[127.0.0.1]"),
    "mail_rewriting": (
        b"a%b%c@hack.test\nx.test:p\n.y.test:\n:all\nu@z.test:q",
        b"a@b@local.test\n",
        b"a%b@c%d@hack.test",
    ),
    "mail_holds": (b"domain x.test because\nsender a%20b@c\nmessage 12/34 x\nall\n", b"sender <>\n# x\n"),
    "dot_qmail": (b"\n", b"# c\n./Maildir/\n/m/box\n|cat >x\n&a@b\na@b\n+list\n:x\n", b"|a\0b\n&x\0\n./../x\n"),
    "control_files": (
        b"a.test\nb.test:c\n",
        b"10\n",
        b"smtp tcp:25:interface=127.0.0.1\npop3 x\n",
        b":[::1]:25\nx:y:z\n",
    ),
    "cdb_file": (_CDB * 256, b"+3,5:one->Hello\n+0,0:->\n\n", b"\0" * 2048 + b"\3\0\0\0\2\0\0\0keyhi", b"\xff" * 2060),
    "users_assign": (
        b"=joe:joe:1:2:/h:::\n+x-:u:3:4:/g:-:p:\n.\n",
        b"joe\x001\x002\0/h\0\0\0",
        b"+:alias:1:1:/a:-::\n.",
    ),
    "tcp_rules": (
        b'1.2.3.4:allow,A="b",C=/d/\n10.1-5.:deny\n=x.test:allow\n:deny\n',
        b"D\0+A=b\0",
        b"a@1.2:allow\n::1:deny\n",
    ),
    "times_and_boxes": (b"Return-Path: <x>\nFrom a\n>From b\n>>From c\nend", b"@4000000037c219bf2ef02e94 hello\n@40\n"),
    "queue_records": (b"u5\0p7\0Fa@b\0Tc@d\0Te\0", b"Fx\0", b"Ta\0Db\0Tc\0", b"u99999999999999999999999\0"),
    "queue_journal": (_JOURNAL, _JOURNAL * 2, b"ALocal", b"M\0\0\0\0\0\0\0\1", b"\0" * 40),
    "dns_message": (
        bytes.fromhex("000781800001000100000000026d780474657374000 00f0001".replace(" ", ""))
        + bytes.fromhex("c00c000f00010000003c00090005046d61696cc00f"),
        b"\2mx\4test\0\0\x0f\0\1\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4",
        b"\xc0\x0c" * 40,
    ),
    "header_fields": (
        b'To: a@b, "c d" <e@f>, g: h@i (x (y)), j;, <@k,@l:m@[1.2.3.4]>\nFrom: x\n\nbody',
        b"From x\nSubject: y\r\n z\r\n\r\nbody\r\n",
        b"Cc: " + b"(" * 50 + b")" * 50 + b"\n",
    ),
    "remote_texts": (b"relay.test:26", b"[IPv6:::1]:25", b":25", b"[1.2.3.4", bytes(32) + b"x", b"550 no\r\nway\0"),
    "spawning_packets": (
        spawning.request(1, 2, b"a@b", b"c@d"),
        spawning.reply(3, -1, b"out"),
        spawning.fields(b"a", b"b", b"c"),
    ),
}

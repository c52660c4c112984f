"""What the lines of control files must look like: one check for each kind of value.

A check gets a line as it was read and returns None when it is right, else a phrase that says what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qtwist.control_services import parse_service

_ACCOUNTS = (b"alias", b"qmaild", b"qmaill", b"qmailp", b"qmailq", b"qmailr", b"qmails")
_LIMITED = (b"send", b"rspawn", b"smtpd", b"submission", b"qmtpd", b"qmqpd", b"pop3d", b"auth")
_LEAST_MEMORY = 64_000_000  # a role that has nothing to do has some 36 million

_MECHANISMS = (b"SCRAM-SHA-256", b"EXTERNAL", b"CRAM-MD5", b"PLAIN", b"LOGIN")

#: What can be served; the first word of a line of control/listen.
ROLES = ("smtp", "smtps", "submission", "submissions", "qmtp", "qmtps", "qmqp", "pop3", "pop3s")

#: The roles among them whose connections are encrypted from the start.
IMPLICIT_TLS = ("smtps", "submissions", "qmtps", "pop3s")

#: Policies that control/policies may name by a word.
POLICIES = (
    "rblsmtpd",
    "greetdelay",
    "tarpit",
    "badhelo",
    "mfcheck",
    "badmailfrom",
    "badrcptto",
    "rcptcheck",
    "greylisting",
    "clamd",
    "rspamd",
    "milters",
)

Check = Callable[[bytes], "str | None"]

_NUMBER = re.compile(rb"([0-9]{1,18})(?:[ \t].*)?")
_HOST = re.compile(rb"[^\x00-\x20@:\x7f]+")
_IDENTIFIERS = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_ENDPOINT = re.compile(r"[A-Za-z0-9_-]+:.*")


def number(least: int) -> Check:
    """A check for a number that is not below `least`."""
    expected = f"a number, at least {least}" if least else "a number"

    def check(line: bytes) -> str | None:
        if not line:
            return None  # an emptied file means the default (§2.1)
        # Reading ignores what follows the digits, but "10M" is meant as something else than 10.
        match = _NUMBER.fullmatch(line)
        return None if match and int(match[1]) >= least else expected

    return check


def service(line: bytes) -> str | None:
    """Something that looks at messages: where it is, what counts without it, and how long it may take."""
    try:
        parse_service(line.decode("utf-8", "surrogateescape"), 1)
    except ValueError as error:
        return f"ADDRESS [tempfail|accept|reject] [timeout=SECONDS] ({error})"
    return None


def host(line: bytes) -> str | None:
    """A host or domain name, or what else could be one: only what certainly is none is wrong."""
    return None if _HOST.fullmatch(line) else "a host name"


def account(line: bytes) -> str | None:
    """A line of accounts."""
    role, colon, name = line.partition(b":")
    if colon and role in _ACCOUNTS and re.fullmatch(rb"[A-Za-z_][A-Za-z0-9_.-]*", name):
        return None
    names = b", ".join(_ACCOUNTS).decode()
    return f"qmail's name, a colon and the account, such as qmaild:smtpd; qmail's names are {names}"


def softlimit(line: bytes) -> str | None:
    """A line of softlimit."""
    role, colon, octets = line.partition(b":")
    if (
        colon
        and role in _LIMITED
        and re.fullmatch(rb"0|[1-9][0-9]{7,14}", octets)
        and not 0 < int(octets) < _LEAST_MEMORY
    ):
        return None
    roles = b", ".join(_LIMITED).decode()
    return f"a role, a colon and at least {_LEAST_MEMORY} octets, or 0 for no limit; roles are {roles}"


def domain(line: bytes) -> str | None:
    """A line of rcpthosts: a domain, or ``.suffix``."""
    return None if _HOST.fullmatch(line) else "a domain, or a dot and the end of domains"


def rule(line: bytes) -> str | None:
    """A line of tcp.smtp and its like (spec/related.md §4.2)."""
    from qtwist.files.tcprules import RuleError, compile_rules

    try:
        list(compile_rules(line))
    except RuleError:
        return 'ADDRESS:allow or ADDRESS:deny, then ,NAME="VALUE" for variables'
    return None


def pattern(line: bytes) -> str | None:
    """A line of badmailfrom and its like: an address, a name or a pattern."""
    from qtwist.policy.patterns import EXPECTED, trouble

    why = trouble(line)
    return None if why is None else f"{EXPECTED} ({why})"


def dnsbl(line: bytes) -> str | None:
    """A line of dnsbllist."""
    from qtwist.policy.rblsmtpd import Entry

    try:
        Entry.parse(line)
    except ValueError as error:
        return str(error)
    return None


def greylisting(line: bytes) -> str | None:
    """A line of greylisting."""
    key, _, value = line.partition(b" ")
    if key in (b"block_expire", b"record_expire", b"record_expire_good") and re.fullmatch(
        rb"[0-9]{1,9}", value.strip()
    ):
        return None
    return "block_expire or record_expire and minutes, or record_expire_good and days"


def exempt(line: bytes) -> str | None:
    """A line of greylistexempt."""
    if network(line) is None or (b"@" in line and pattern(line) is None):
        return None
    return "an IP address or a network, or a recipient: its address, @domain, a pattern"


def local_part(line: bytes) -> str | None:
    """bouncefrom, doublebounceto: any text but none."""
    return None if line else "the part of an address before the @"


def greeting(line: bytes) -> str | None:
    """smtpgreeting: one line of printable text."""
    if re.search(rb"[\x00-\x1f\x7f]", line) or not line:
        return "the text of the greeting, a host name first"
    return None


def virtual_domain(line: bytes) -> str | None:
    """A line of virtualdomains."""
    key, colon, _ = line.partition(b":")
    return None if colon and not re.search(rb"[\x00-\x20\x7f]", key) else "domain:prefix"


def route(line: bytes) -> str | None:
    """A line of smtproutes (spec/qmail.md §15.2) or qmtproutes, with IPv6 addresses in brackets."""
    line, bar, login = line.partition(b"|")
    user, _, password = login.partition(b"|")
    domain, colon, relay = line.partition(b":")
    if bar and not (user and password and relay):
        return "domain:relay|user|password"
    relay = relay.replace(b";", b":", 1)  # as s/qmail writes ports
    if not colon or (domain and not _HOST.fullmatch(domain)):
        return "domain:relay or domain:relay:port"
    if relay.startswith(b"["):
        address, bracket, port = relay[1:].partition(b"]")
        if address[:5].lower() == b"ipv6:":
            address = address[5:]
        if not bracket or not _is_ip(address) or (port and not port.startswith(b":")):
            return "domain:[address] or domain:[address]:port"
        colon, port = port[:1], port[1:]
    else:
        host, colon, port = relay.partition(b":")
        if b":" in port:
            return "an IPv6 address in brackets, domain:[address]:port"
        if host and not _HOST.fullmatch(host):
            return "domain:relay or domain:relay:port"
    if colon and not _is_port(port):
        return "a port number from 1 to 65535 after the relay"
    return None


def sender_route(line: bytes) -> str | None:
    """A line of authsenders."""
    sender, colon, relay = line.partition(b":")
    if not colon or not relay.partition(b"|")[0] or re.search(rb"[\x00-\x20\x7f]", sender):
        return "sender:relay|user|password, @domain:relay|user|password, or :relay|user|password"
    return route(b":" + relay)


def listen(line: bytes) -> str | None:
    """A line of listen. Whether Twisted knows the endpoint shows when it is opened."""
    roles = ", ".join(ROLES)
    try:
        role, *endpoint = line.decode().split(None, 1)
    except ValueError:
        return "a role and an endpoint, in UTF-8"
    if role not in ROLES:
        return f"a role ({roles}) and an endpoint, such as smtp tcp:25"
    if not endpoint or not _ENDPOINT.fullmatch(endpoint[0]):
        return f"an endpoint after the role, such as {role} tcp:25"
    return None


def class_name(line: bytes) -> str | None:
    """A line of policies. Whether there is such a class shows when it is imported."""
    if line.decode("latin-1") in POLICIES:
        return None
    try:
        if _IDENTIFIERS.fullmatch(line.decode()):
            return None
    except ValueError:
        pass
    names = ", ".join(POLICIES)
    return f"package.module.Class of a policy, or one of {names}"


def network(line: bytes) -> str | None:
    """A line of relayclients."""
    from ipaddress import ip_network

    try:
        ip_network(line.decode(), strict=False)
    except ValueError:
        return "an IP address or a network, such as 192.0.2.0/24"
    return None


def turn(line: bytes) -> str | None:
    """A line of etrnclients or autoturn."""
    from qtwist.mail.domains import ascii_domain

    name, colon, clients = line.partition(b":")
    name = ascii_domain(name)
    if colon and re.fullmatch(rb"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?", name) and network(clients) is None:
        return None
    return "domain:address or domain:network, such as example.org:192.0.2.7"


def proxy(line: bytes) -> str | None:
    """A line of proxyclients."""
    name, *ports = line.split() or [b""]
    if network(name) is None and all(map(_is_port, ports)):
        return None
    return "an IP address or a network, then nothing or ports of ours, such as 192.0.2.1 10025"


def server(line: bytes) -> str | None:
    """A line of dnsservers or qmqpservers."""
    expected = "an IP address, address:port, or [IPv6 address]:port"
    if line.startswith(b"["):
        address, bracket, port = line[1:].partition(b"]")
        if not bracket or (port and not port.startswith(b":")):
            return expected
        port = port[1:] if port else b"53"
    elif line.count(b":") == 1:
        address, _, port = line.partition(b":")
    else:
        address, port = line, b"53"
    return None if _is_ip(address) and _is_port(port) else expected


def hold(line: bytes) -> str | None:
    """A line of holds."""
    from qtwist.mail.holds import Hold

    try:
        Hold.parse(line)
    except ValueError as error:
        return f"message, sender or destination, its name, and a reason ({error})"
    return None


def command(line: bytes) -> str | None:
    """A line of checkpassword."""
    return None if line.startswith(b"/") or not line else "the absolute path of a program, and its arguments"


def relay_limit(line: bytes) -> str | None:
    """A line of relaylimits."""
    from qtwist.mail.relay_limits import parse

    try:
        parse(line)
    except ValueError as error:
        return f"{error}, such as :1000/86400"
    return None


def login_sender(line: bytes) -> str | None:
    """A line of submissionsenders."""
    login, colon, address = line.partition(b":")
    if colon and login and (address == b"*" or re.fullmatch(rb"[^\x00-\x20\x7f@]*@[^\x00-\x20\x7f]+", address)):
        return None
    return "login:address, login:@domain or login:*"


def mechanism(line: bytes) -> str | None:
    """A line of authmechanisms."""
    names = b", ".join(_MECHANISMS).decode()
    return None if line.upper() in _MECHANISMS else f"a mechanism: {names}"


def keyword(line: bytes) -> str | None:
    """A line of ehlodiscard (RFC 5321 §4.1.1.1, ehlo-keyword)."""
    return None if re.fullmatch(rb"[A-Za-z0-9][A-Za-z0-9-]*", line) else "a keyword of EHLO, such as CHUNKING"


def delivery(text: bytes) -> str | None:
    """The whole of defaultdelivery: without a line in it, mail would vanish."""
    return None if text.strip() else "at least one line as in a .qmail file, such as ./Maildir/"


def mail_address(line: bytes) -> str | None:
    """A line of tlsclients."""
    return None if re.fullmatch(rb"[^\x00-\x20\x7f]+@[^\x00-\x20@\x7f]+", line) else "a mail address"


def ciphers(line: bytes) -> str | None:
    """tlsserverciphers: whether OpenSSL knows them shows when they are used."""
    return None if re.fullmatch(rb"[A-Za-z0-9_!+@=:, -]*", line) else "a list of ciphers such as ECDHE+AESGCM:ECDHE+AES"


def _is_ip(text: bytes) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(text.decode())
    except ValueError:
        return False
    return True


def _is_port(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535
